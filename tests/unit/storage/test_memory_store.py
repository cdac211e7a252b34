"""Failures on demand, and views of one bucket."""

from __future__ import annotations

import pytest

from workers.errors import Retry
from workers.storage.config import StoreConfig
from workers.storage.errors import NotFound, OutcomeUnknown, PreconditionFailed
from workers.storage.memory import MemoryStore


async def test_failed_write_is_not_there() -> None:
    store = MemoryStore()
    store.fail_next("create")
    with pytest.raises(OutcomeUnknown):
        await store.create("head", b"1")
    with pytest.raises(NotFound):
        await store.get("head")
    await store.create("head", b"1")


async def test_lost_answer_looks_like_a_conflict_with_oneself() -> None:
    """Why a head carries a nonce: the second attempt must read before it concludes."""
    store = MemoryStore()
    etag = await store.create("head", b"0")
    store.fail_next("replace", applied=True)
    with pytest.raises(OutcomeUnknown):
        await store.replace("head", b"my nonce", etag)
    with pytest.raises(PreconditionFailed):
        await store.replace("head", b"my nonce", etag)
    assert (await store.get("head")).data == b"my nonce"


async def test_faults_count_and_choose_keys() -> None:
    store = MemoryStore()
    await store.put("a/1", b"x")
    await store.put("b/1", b"x")
    store.fail_next("get", times=2, contains="a/")
    await store.get("b/1")
    for _ in range(2):
        with pytest.raises(Retry):
            await store.get("a/1")
    await store.get("a/1")


async def test_list_and_delete_can_fail() -> None:
    store = MemoryStore()
    await store.put("a", b"x")
    store.fail_next("list")
    with pytest.raises(Retry):
        _ = [info async for info in store.list("")]
    store.fail_next("delete")
    with pytest.raises(Retry):
        await store.delete(["a"])
    assert store.keys() == ["a"]


async def test_views_share_objects_not_statistics() -> None:
    store = MemoryStore(clock_ms=lambda: 42)
    other = store.view()
    await store.put("a", b"x")
    assert (await other.get("a")).data == b"x"
    assert (store.stats.gets, other.stats.gets) == (0, 1)
    assert [info.modified_ms async for info in other.list("")] == [42]


def test_credentials_stay_out_of_reprs() -> None:
    config = StoreConfig(
        bucket="b", access_key_id="AKIA1", secret_access_key="hunter2", session_token="hunter2"
    )
    assert "hunter2" not in repr(config)
    assert "AKIA1" not in repr(config)
