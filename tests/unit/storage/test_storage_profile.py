"""Credentials of a profile that are replaced while the process runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from workers.storage import profile
from workers.storage.config import StoreConfig
from workers.storage.errors import AccessDenied
from workers.storage.profile import REREAD, ProfileCredentials
from workers.storage.s3 import S3Store
from workers.telemetry import metrics


@asynccontextmanager
async def store_that_knows(access_key: str) -> AsyncIterator[str]:
    """Serve a store with one object, for requests signed with one key; yield its address."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status = "200 OK" if f"Credential={access_key}/" in head else "403 Forbidden"
        lines = [f"HTTP/1.1 {status}", 'ETag: "e"', "Content-Length: 4", "Connection: close"]
        lines.append("Last-Modified: Sun, 22 Nov 2026 05:00:00 GMT")
        writer.write("\r\n".join([*lines, "", "data"]).encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the only credentials that there are stand."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return file


def write(file: Path, access_key: str | None) -> None:
    """Replace the credentials; None: there are none."""
    if access_key is None:
        file.unlink()
        return
    fresh = file.with_suffix(".new")
    keys = f"aws_access_key_id = {access_key}\naws_secret_access_key = S{access_key}\n"
    fresh.write_text(f"[store]\n{keys}")
    fresh.replace(file)


def test_a_profile_is_read_again_when_its_time_is_over(secret: Path) -> None:
    write(secret, "OLD")
    credentials = ProfileCredentials("store")
    assert credentials()["access_key_id"] == "OLD"
    write(secret, "NEW")
    renewed = credentials()
    assert (renewed["access_key_id"], renewed["secret_access_key"]) == ("NEW", "SNEW")
    ends = renewed["expires_at"]
    assert ends is not None
    assert ends <= datetime.now(UTC) + REREAD


async def test_a_store_goes_on_with_keys_that_were_replaced(
    secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "REREAD", timedelta(0))
    write(secret, "OLD")
    denials = metrics.STORE_DENIED.value()
    async with store_that_knows("NEW") as address:
        # The server shares this process: no request ends because the machine stands still.
        config = StoreConfig(
            "bucket",
            endpoint=address,
            profile="store",
            max_retries=0,
            request_timeout_s=600.0,
            operation_timeout_s=600.0,
        )
        store = S3Store(config)
        with pytest.raises(AccessDenied):
            await store.get("key")
        # Not there for a moment: no reason to end either.
        write(secret, None)
        with pytest.raises(AccessDenied):
            await store.get("key")
        assert metrics.STORE_DENIED.value() == denials + 2
        write(secret, "NEW")
        assert (await store.get("key")).data == b"data"
