"""A second implementation of S3 for the tests: moto's server, in a process of its own.

It answers one request at a time. Its conditional writes look first and write then, without a lock:
with threads, two racing creates could both win.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.local import ports
from workers.local.process import die_with_parent
from workers.storage.config import StoreConfig

START_S = 240.0
BUCKET = "contract"


@contextmanager
def moto_s3(home: Path) -> Iterator[StoreConfig]:
    """Run the server with one empty bucket; everything is in memory."""
    port = ports.draw()
    with (home / "moto.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent(),
        )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        _make_bucket(f"{endpoint}/{BUCKET}", process)
        yield StoreConfig(
            bucket=BUCKET, endpoint=endpoint, access_key_id="moto", secret_access_key="moto"
        )
    finally:
        process.kill()
        process.wait()


def _make_bucket(url: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="PUT")):
                return
        except (urllib.error.URLError, ConnectionError):
            if process.poll() is not None or time.monotonic() > end:
                raise
        time.sleep(0.05)


def serve(port: int) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    application = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", port, application, threaded=False)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
