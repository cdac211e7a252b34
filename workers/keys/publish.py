"""Write key-directory: the key service's own entry, one per index, and floors.

The version of an entry is that of its record, so all instances write the same; only the expiry
moves. An entry is written anew when half of its life is over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from schemas.topics import CONTENT_JSON, HEADER_CONTENT_TYPE
from schemas.values import encode_base64
from workers.crypto.sign import SigningKey
from workers.kafka.broker import Producer
from workers.keys.catalog import IndexRecord
from workers.keys.service_keys import ServiceKeys
from workers.leases.certificate import Clock
from workers.leases.directory import (
    FLOOR_PREFIX,
    KEY_SERVICE_KEY,
    FloorRecord,
    KeyDirectory,
    KeyServiceRecord,
    PublicKey,
    sign_record,
)

LIFE_S: Final = 7 * 86_400
_HEADERS: Final = ((HEADER_CONTENT_TYPE, CONTENT_JSON.encode()),)


class Publisher:
    """Writes directory entries and waits for their acknowledgement."""

    def __init__(
        self, producer: Producer, topic: str, signer: SigningKey, *, clock: Clock = time.time
    ) -> None:
        """Prepare; `topic` is key-directory with its prefix."""
        self._producer = producer
        self._topic = topic
        self._signer = signer
        self._clock = clock

    async def key_service(self, keys: ServiceKeys, streams: Mapping[str, int]) -> None:
        """Publish the key service. Raises Retry."""
        record = KeyServiceRecord(
            version=keys.version,
            expires_ms=self._expires_ms(),
            sign_key=encode_base64(self._signer.public.raw),
            hpke_keys=[PublicKey.of(key.private.public, key.created_ms) for key in keys.keys],
            streams=dict(streams),
        )
        await self._send(KEY_SERVICE_KEY, sign_record(KEY_SERVICE_KEY, record, self._signer))

    async def index(self, record: IndexRecord) -> None:
        """Publish an index, or that it is deleted. Raises Retry."""
        entry = record.directory_record(self._expires_ms())
        await self._send(record.index, sign_record(record.index, entry, self._signer))

    async def floor(self, name: str, version: int) -> None:
        """Publish that nothing below `version` is accepted under `name`. Raises Retry."""
        key = FLOOR_PREFIX + name
        await self._send(key, sign_record(key, FloorRecord(version=version), self._signer))

    async def refresh(self, record: IndexRecord, directory: KeyDirectory) -> None:
        """Publish an index if its entry is missing, older or half through its life."""
        entry = directory.find(record.index)
        half_ms = (self._clock() + LIFE_S / 2) * 1000
        if entry is None or entry.version < record.version or entry.expires_ms < half_ms:
            await self.index(record)

    def _expires_ms(self) -> int:
        return int((self._clock() + LIFE_S) * 1000)

    async def _send(self, key: str, value: bytes) -> None:
        await self._producer.send_and_wait(self._topic, value, key=key.encode(), headers=_HEADERS)
