"""Sealed pages of records: versions, floors, changes by several processes."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from schemas.errors import ErrorCode
from workers.crypto.seal import SealPurpose
from workers.errors import Damaged, Reject, Retry
from workers.identity.pages import Pages
from workers.storage.memory import MemoryStore


class Note(msgspec.Struct, frozen=True):
    text: str


class Floors:
    """In memory; may be told to fail, or to lag behind."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.fail = False

    def version(self, name: str) -> int:
        return self.known.get(name, 0)

    async def publish(self, name: str, version: int) -> None:
        if self.fail:
            raise Retry(ErrorCode.KEY_UNAVAILABLE, "no topic")
        self.known[name] = max(version, self.version(name))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def floors() -> Floors:
    return Floors()


def pages(store: MemoryStore, floors: Floors, **options) -> Pages[Note]:
    return Pages(
        store,
        floors,
        b"k" * 32,
        kind="notes",
        purpose=SealPurpose.USER,
        entry=Note,
        **{"spread": 4, "fresh_s": 0.0, **options},
    )


def put(text: str):
    return lambda _: Note(text)


async def test_entries_come_back_and_go(store, floors):
    one = pages(store, floors)
    assert await one.get("a") is None
    for number in range(20):
        await one.change(f"somebody-{number}", put(str(number)))
    other = pages(store, floors)
    assert await other.get("somebody-7") == Note("7")
    found = {name: note.text async for name, note in other.all()}
    assert found == {f"somebody-{number}": str(number) for number in range(20)}
    assert len(list(store.keys())) == 4
    await other.change("somebody-7", lambda _: None)
    assert await one.get("somebody-7") is None
    # Long enough not to come up by chance in what is sealed.
    for key in list(store.keys()):
        assert b"somebody" not in (await store.get(key)).data


async def test_a_change_that_changes_nothing_writes_nothing(store, floors):
    one = pages(store, floors)
    await one.change("a", put("x"))
    before = dict(floors.known)
    puts = store.stats.puts
    assert await one.change("a", lambda known: known) == Note("x")
    assert await one.change("a", put("x")) == Note("x")
    assert (store.stats.puts, floors.known) == (puts, before)


async def test_what_a_change_refuses_is_not_written(store, floors):
    def refuse(_):
        raise Reject(ErrorCode.CONFLICT, "no")

    with pytest.raises(Reject):
        await pages(store, floors).change("a", refuse)
    assert not list(store.keys())


async def test_several_processes_change_one_page(store, floors):
    writers = [pages(store, floors, spread=1) for _ in range(4)]

    def append(text):
        return lambda known: Note((known.text if known else "") + text)

    await asyncio.gather(
        *(writer.change("log", append(str(i))) for i, writer in enumerate(writers * 3))
    )
    note = await writers[0].get("log")
    assert sorted(note.text) == sorted("".join(map(str, range(12))))


async def test_scopes_are_apart_and_dropped(store, floors):
    one = pages(store, floors)
    await one.change("a", put("x"), b"s1")
    await one.change("a", put("y"), b"s2")
    assert await one.get("a", b"s1") == Note("x")
    assert await one.get("a") is None
    await one.drop(b"s1")
    assert await pages(store, floors).get("a", b"s2") == Note("y")
    # What is dropped is never used again: it counts as put back.
    with pytest.raises(Damaged):
        await pages(store, floors).get("a", b"s1")


async def test_what_was_put_back_is_refused(store, floors):
    one = pages(store, floors, spread=1)
    await one.change("a", put("old"))
    [key] = list(store.keys())
    old = (await store.get(key)).data
    await one.change("a", put("new"))
    await store.put(key, old)
    for reader in (one, pages(store, floors, spread=1)):
        with pytest.raises(Damaged):
            await reader.get("a")
        with pytest.raises(Damaged):
            await reader.change("b", put("x"))
    # Without floors only who saw the newer one knows.
    forgetful = pages(store, Floors(), spread=1)
    assert await forgetful.get("a") == Note("old")
    await store.delete([key])
    with pytest.raises(Damaged):
        await pages(store, floors, spread=1).get("a")


async def test_pages_do_not_open_under_another_name_kind_or_key(store, floors):
    one = pages(store, floors)
    for number in range(20):
        await one.change(f"n{number}", put("x"))
    first, second, *_ = sorted(store.keys())
    await store.put(first, (await store.get(second)).data)
    with pytest.raises(Damaged):
        async for _ in pages(store, Floors()).all():
            pass
    other = Pages(
        store, Floors(), b"z" * 32, kind="notes", purpose=SealPurpose.USER, entry=Note, spread=4
    )
    with pytest.raises(Damaged):
        async for _ in other.all():
            pass


async def test_a_floor_that_was_not_published_is_made_up_for(store, floors):
    one = pages(store, floors, spread=1)
    floors.fail = True
    with pytest.raises(Retry):
        await one.change("a", put("x"))
    floors.fail = False
    assert not floors.known
    assert await pages(store, floors, spread=1).change("a", lambda known: known) == Note("x")
    assert list(floors.known.values()) == [1]


async def test_looking_asks_only_where_something_was_written(store, floors):
    one = pages(store, floors, spread=1)
    assert await one.peek("a") is None
    assert store.stats.gets == 0
    await pages(store, floors, spread=1).change("a", put("x"))
    assert await one.peek("a") == Note("x")


async def test_a_fresh_page_is_not_read_again_unless_its_floor_rose(store, floors):
    one = pages(store, floors, spread=1, fresh_s=60.0)
    await one.change("a", put("x"))
    gets = store.stats.gets
    assert await one.get("a") == Note("x")
    assert store.stats.gets == gets
    await pages(store, floors, spread=1).change("a", put("y"))
    assert await one.get("a") == Note("y")
