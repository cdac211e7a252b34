"""Commands that used the object store end with their own exit code.

Without care, one in ten aborts: https://github.com/PyO3/pyo3-async-runtimes/issues/40
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

from workers.storage.config import StoreConfig

TIMES = 24
AT_ONCE = 4


async def test_pyo3_async_runtimes_40(seaweed: StoreConfig, tmp_path: Path) -> None:
    home = tmp_path / "operator"
    home.mkdir()
    (home / "stack.env").write_text(
        f"AWS_ACCESS_KEY_ID={seaweed.access_key_id}\n"
        f"AWS_SECRET_ACCESS_KEY={seaweed.secret_access_key}\n"
        f"SEALSTREAM_S3_ENDPOINT={seaweed.endpoint}\nSEALSTREAM_S3_BUCKET={seaweed.bucket}\n"
    )
    command = ("provision", "buckets", "--out", str(tmp_path))
    slots = asyncio.Semaphore(AT_ONCE)

    async def run() -> tuple[int | None, bytes]:
        async with slots:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "workers.cli.main", *command),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said, _ = await process.communicate()
            return process.returncode, said

    ended = Counter(await asyncio.gather(*(run() for _ in range(TIMES))))
    assert ended == {(0, b"buckets: there, with all that is needed\n"): TIMES}
