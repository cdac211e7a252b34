from __future__ import annotations

import subprocess
import sys

from schemas.ingest import IngestRequest
from schemas.prepare import prepare_types
from schemas.query import QueryRequest
from schemas.update import UpdateBatch, UpdateEnvelope
from workers.chain.head import Head
from workers.chain.segment import Directory

AT_ONCE = """
import sys, threading
import msgspec
from msgspec import Struct
from schemas.prepare import prepare_types

sys.setswitchinterval(1e-6)


class Inner(Struct, array_like=True):
    a: int
    b: bytes
    c: dict[str, int] = {}


def outer():
    fields = [(f"f{n}", list[Inner] if n % 2 else dict[str, Inner]) for n in range(20)]
    return msgspec.defstruct("Outer", fields, array_like=True)


values = [[[1, b"x", {}]] if n % 2 else {"k": [1, b"x", {}]} for n in range(20)]
encoded = msgspec.msgpack.encode(values)
for _ in range(300):
    kind = outer()
    prepare_types()
    start = threading.Barrier(4)

    def work():
        start.wait()
        msgspec.msgpack.decode(encoded, type=kind)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del kind
"""


def test_stored_and_sent_types_are_prepared() -> None:
    prepared = set(prepare_types())
    wanted = {Head, Directory, UpdateBatch, UpdateEnvelope, IngestRequest, QueryRequest}
    assert wanted <= prepared


def test_threads_may_decode_a_prepared_type_for_the_first_time_at_once() -> None:
    """Without the preparation this ends with SIGSEGV."""
    done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
