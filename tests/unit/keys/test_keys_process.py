"""The key service as a process: what it opens before it serves."""

from __future__ import annotations

import asyncio
import urllib.request
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from workers.keys import worker
from workers.kms.local import LocalKms
from workers.settings import Settings


async def test_its_metrics_are_served(tmp_path: Path, monkeypatch: Any) -> None:
    await LocalKms(tmp_path / "kms.key", create=True).aclose()
    shown = []

    async def serve(*_: Any, **__: Any) -> None:
        # Any free port: the log says which.
        [port] = [line["port"] for line in logs if line["event"] == "metrics are served"]
        url = f"http://127.0.0.1:{port}/metrics"
        answer = await asyncio.to_thread(urllib.request.urlopen, url)
        with answer:
            shown.append(answer.read())

    monkeypatch.setattr(worker, "serve", serve)
    (tmp_path / "objects").mkdir()
    settings = Settings(home=tmp_path, store_folder=tmp_path / "objects", metrics_port=0)
    with capture_logs() as logs:
        await worker.run(settings, asyncio.Event())
    assert b"sealstream_store_requests_total" in shown[0]
