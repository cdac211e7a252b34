"""The local key file: any key id is a key, and nothing can fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kms_world import PATIENCE_S, World

from workers.kms.local import LocalKms


class LocalWorld(World):
    provider = "local"
    one, two = "one", "two"

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, *, timeout_s: float = PATIENCE_S, trusted: bool = True) -> LocalKms:
        return LocalKms(self._path, create=True)


@asynccontextmanager
async def start(folder: Path) -> AsyncIterator[LocalWorld]:
    yield LocalWorld(folder / "kms.key")
