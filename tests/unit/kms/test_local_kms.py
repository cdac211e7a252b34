from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog

from schemas.errors import ErrorCode
from workers.crypto.secret import random_secret
from workers.errors import Damaged, Fatal
from workers.kms.errors import KmsUnavailable
from workers.kms.local import LocalKms

CONTEXT = {"purpose": "kek"}


def key_file(folder: Path, data: bytes = bytes(range(32)), mode: int = 0o600) -> Path:
    path = folder / "kms.key"
    path.write_bytes(data)
    path.chmod(mode)
    return path


def refused(path: Path, why: str) -> None:
    with pytest.raises(Fatal, match=why) as error:
        LocalKms(path)
    assert error.value.code is ErrorCode.KEY_UNAVAILABLE


def test_a_new_file_has_32_bytes_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "kms.key"
    LocalKms(path, create=True)
    assert path.stat().st_size == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["kms.key"]


async def test_creating_keeps_the_key_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "kms.key"
    key = random_secret()
    wrapped = await LocalKms(path, create=True).wrap("a", key, CONTEXT)
    assert await LocalKms(path, create=True).unwrap("a", wrapped.data, CONTEXT) == key
    assert await LocalKms(path).unwrap("a", wrapped.data, CONTEXT) == key


def test_the_loser_of_a_race_keeps_the_winners_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kms.key"
    link = os.link

    def slower(draft: Path, target: Path) -> None:
        key_file(tmp_path)
        link(draft, target)

    monkeypatch.setattr(os, "link", slower)
    LocalKms(path, create=True)
    assert path.read_bytes() == bytes(range(32))
    assert [p.name for p in tmp_path.iterdir()] == ["kms.key"]


def test_a_missing_file_is_not_made_unasked(tmp_path: Path) -> None:
    refused(tmp_path / "kms.key", "does not exist")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64, 65])
def test_a_file_of_another_length_is_refused(tmp_path: Path, size: int) -> None:
    refused(key_file(tmp_path, bytes(size)), "exactly 32 raw bytes")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601])
def test_a_file_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    refused(key_file(tmp_path, mode=mode), "chmod 600")


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "is not a file")
    os.mkfifo(tmp_path / "pipe", 0o600)
    refused(tmp_path / "pipe", "is not a file")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    blocker = key_file(tmp_path)
    with pytest.raises(Fatal, match="cannot be created"):
        LocalKms(blocker / "kms.key", create=True)


def test_it_warns_once_that_it_is_for_development(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        LocalKms(key_file(tmp_path))
    assert [line["log_level"] for line in lines] == ["warning"]
    assert "development only" in lines[0]["event"]


async def test_another_key_file_does_not_open(tmp_path: Path) -> None:
    wrapped = await LocalKms(key_file(tmp_path)).wrap("a", random_secret(), CONTEXT)
    other = LocalKms(key_file(tmp_path, bytes(32)))
    with pytest.raises(Damaged, match="key file"):
        await other.unwrap("a", wrapped.data, CONTEXT)


async def test_after_closing_it_gives_nothing(tmp_path: Path) -> None:
    kms = LocalKms(key_file(tmp_path))
    wrapped = await kms.wrap("a", random_secret(), CONTEXT)
    await kms.aclose()
    for ask in (
        kms.wrap("a", random_secret(), CONTEXT),
        kms.unwrap("a", wrapped.data, CONTEXT),
        kms.describe("a"),
    ):
        with pytest.raises(KmsUnavailable, match="closed"):
            await ask
