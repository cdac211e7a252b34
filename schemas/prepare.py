"""Build msgspec's decoding tables before threads need them.

msgspec builds the table of a Struct type at its first use, in steps between which other threads
run, and what it has so far is found by them: two threads that decode a type for the first time at
once end the process with SIGSEGV (seen with 0.22 on Python 3.11: a query worker that opened the
heads of four shards). Whoever decodes in threads calls `prepare_types` before the first of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec


def prepare_types() -> list[type[msgspec.Struct]]:
    """Build the tables of all Struct types that are imported now; return these types."""
    prepared = []
    for kind in _below(msgspec.Struct):
        try:
            msgspec.msgpack.Decoder(kind)
        except (TypeError, NameError):
            # Not a type to decode: it holds what no message can.
            continue
        prepared.append(kind)
    return prepared


def _below(kind: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for one in kind.__subclasses__():
        yield one
        yield from _below(one)
