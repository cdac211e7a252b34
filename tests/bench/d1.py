"""A small model of D1's secure index, as its explainer describes it: one object per node.

    label(keyword, counter) -> sealed {identifier, next counter}

The counter of a chain's first node is known (0); every other node is found only through the one
before it. Add walks to the last node, writes the new one, and rewrites the last one with its
counter. Labels, node keys and sealing are ours (HMAC, AES-256-GCM), the layout is D1's.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import struct
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from workers.storage.errors import NotFound
from workers.storage.store import Store

_LAST: Final = 0
_COUNTER: Final = struct.Struct(">Q")


class D1Index:
    """Adds and searches. `prefix`: where its objects are."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._key = os.urandom(32)

    async def add(self, keyword: str, identifier: str) -> None:
        """Add a pair."""
        counter = 0
        chain = await self._walk(keyword)
        if chain:
            last, held, _ = chain[-1]
            counter = int.from_bytes(os.urandom(8)) | 1
            await self._put(keyword, counter, identifier, _LAST)
            await self._put(keyword, last, held, counter)
        else:
            await self._put(keyword, counter, identifier, _LAST)

    async def search(self, keyword: str) -> list[str]:
        """Return the identifiers of a keyword: one request after the other."""
        return [identifier for _, identifier, _ in await self._walk(keyword)]

    async def load(self, keyword: str, identifiers: list[str], at_once: int) -> None:
        """Write a whole chain without walking, in parallel: only to prepare a measurement."""
        counters = [0, *(int.from_bytes(os.urandom(8)) | 1 for _ in identifiers[1:]), _LAST]
        free = asyncio.Semaphore(at_once)

        async def put(number: int) -> None:
            async with free:
                await self._put(
                    keyword, counters[number], identifiers[number], counters[number + 1]
                )

        await asyncio.gather(*(put(number) for number in range(len(identifiers))))

    async def _walk(self, keyword: str) -> list[tuple[int, str, int]]:
        chain: list[tuple[int, str, int]] = []
        counter = 0
        while True:
            label, key = self._derive(keyword, counter)
            try:
                blob = (await self._store.get(label)).data
            except NotFound:
                return chain
            plain = AESGCM(key).decrypt(blob[:12], blob[12:], None)
            (following,) = _COUNTER.unpack_from(plain)
            chain.append((counter, plain[_COUNTER.size :].decode(), following))
            if following == _LAST:
                return chain
            counter = following

    async def _put(self, keyword: str, counter: int, identifier: str, following: int) -> None:
        label, key = self._derive(keyword, counter)
        nonce = os.urandom(12)
        plain = _COUNTER.pack(following) + identifier.encode()
        await self._store.put(label, nonce + AESGCM(key).encrypt(nonce, plain, None))

    def _derive(self, keyword: str, counter: int) -> tuple[str, bytes]:
        name = keyword.encode() + _COUNTER.pack(counter)
        digest = hmac.digest(self._key, name, "sha512")
        return f"{self._prefix}/{digest[:16].hex()}", digest[32:]
