from __future__ import annotations

import pytest

from workers.storage.errors import OutcomeUnknown
from workers.storage.first import create_first
from workers.storage.memory import MemoryStore


class Silent(MemoryStore):
    """Does not answer to `create`, whether it wrote or not."""

    def __init__(self, *, writes: bool) -> None:
        super().__init__()
        self._writes = writes

    async def create(self, key: str, data: bytes) -> str:
        if self._writes:
            await super().create(key, data)
        raise OutcomeUnknown(key)


async def test_the_first_writer_wins_and_all_see_its_data() -> None:
    store = MemoryStore()
    assert await create_first(store, "k", b"first") == b"first"
    assert await create_first(store, "k", b"second") == b"first"


async def test_without_an_answer_it_is_looked_up_who_was_first() -> None:
    assert await create_first(Silent(writes=True), "k", b"mine") == b"mine"


async def test_without_an_answer_and_without_an_object_it_is_to_be_tried_again() -> None:
    with pytest.raises(OutcomeUnknown):
        await create_first(Silent(writes=False), "k", b"mine")
