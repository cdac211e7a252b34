"""`seal`: what our sealed format costs on top of bare AES-GCM of the same library.

Bare is one `AESGCM.encrypt` with a random nonce and one `decrypt`. Ours derives a key and a
commitment for every object (HKDF), binds its name, and cuts it into chunks of 64 KiB; large chunks
are written in place.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from bench.report import Figure, Report
from bench.timing import alternate
from workers.crypto.seal import CHUNK_BYTES, SealPurpose, open_sealed, seal
from workers.crypto.secret import random_secret

SIZES: Final = {"64 B": 64, "4 kB": 4096, "64 kB": 65_536, "1 MB": 1 << 20}
ROUNDS: Final = 41
_BYTES_PER_ROUND: Final = 24 << 20
_MOST_CALLS: Final = 4000
_SHARE: Final = 0.8


async def run(home: Path | None) -> Report:
    """Run it; it needs no stack."""
    del home
    report = Report("seal", data=["random bytes"])
    report.settings = {"rounds": ROUNDS, "chunk": CHUNK_BYTES, "suite": "AES-256-GCM, HKDF-SHA-256"}
    for name, size in SIZES.items():
        report.figures += await _size(name, size)
    return report


async def _size(name: str, size: int) -> list[Figure]:
    calls = max(8, min(_MOST_CALLS, _BYTES_PER_ROUND // size))
    plain, key, object_id = os.urandom(size), random_secret(), bytes(16)
    cipher = AESGCM(bytes(key.view()))

    def seal_one() -> bytes:
        return seal(
            key, plain, purpose=SealPurpose.CONTENT, index_uid=object_id, object_id=object_id
        )

    def bare_one() -> tuple[bytes, bytes]:
        nonce = os.urandom(12)
        return nonce, cipher.encrypt(nonce, plain, None)

    sealed, (nonce, encrypted) = seal_one(), bare_one()

    def open_one() -> bytes:
        return open_sealed(
            key, sealed, purpose=SealPurpose.CONTENT, index_uid=object_id, object_id=object_id
        )

    def decrypt_one() -> bytes:
        return cipher.decrypt(nonce, encrypted, None)

    found = await alternate(
        {
            "seal": _times(seal_one, calls),
            "encrypt": _times(bare_one, calls),
            "open": _times(open_one, calls),
            "decrypt": _times(decrypt_one, calls),
        },
        ROUNDS,
    )
    figures = []
    for ours, bare in (("seal", "encrypt"), ("open", "decrypt")):
        value, spread = found[ours].rates(calls * size / 1e6)
        baseline, _ = found[bare].rates(calls * size / 1e6)
        ratio = value / baseline
        large = size >= CHUNK_BYTES
        figures.append(
            Figure(
                name=f"{ours} {name}",
                value=value,
                unit="MB/s",
                spread=spread,
                against=f"bare {bare}",
                baseline=baseline,
                ratio=ratio,
                target=f">= {_SHARE}x" if large else "",
                met=ratio >= _SHARE if large else None,
                detail={"us": found[ours].median / calls * 1e6},
            )
        )
    return figures


def _times(work: Callable[[], object], calls: int) -> Callable[[], float]:
    def repeat() -> float:
        # CPU time: nothing here waits, and other processes must not count.
        began = time.thread_time()
        for _ in range(calls):
            work()
        return time.thread_time() - began

    return repeat
