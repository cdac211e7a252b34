"""Damaged, truncated, exchanged, missing and old objects, as a query worker that starts meets them.

Whatever is wrong with an object on the path of a query, the answer is `DAMAGED` or exactly the
right one: never another and never a shorter one. The worker goes on, other indexes are served, and
when the bytes are as they were the same worker answers as before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import pytest
from chaos_kit import eventually
from damage_kit import INDEX, OTHER, TIMEOUT_S, Scene, flip, small_thresholds

from schemas.errors import ErrorCode
from workers.chain.kinds import BlockKind
from workers.client import Client
from workers.errors import Reject
from workers.storage import layout
from workers.vector.store import read_ref

pytestmark = pytest.mark.timeout(900)

# No query reads these; `sealstream verify`, the writer and compaction do.
UNREAD = {BlockKind.DICTIONARY, BlockKind.OBJECT_IDS}
# Objects of their own: deletion bitmaps are damaged below, access tables in test_chain_access.py.
APART = {BlockKind.DELETES, BlockKind.ACCESS}
BLOCKS = [kind for kind in BlockKind if kind not in UNREAD | APART]


@pytest.fixture(scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    with pytest.MonkeyPatch.context() as patch:
        small_thresholds(patch)
        scene = Scene(tmp_path_factory.mktemp("damage"))
        await scene.fill()
        yield scene
        await scene.aclose()


async def assert_noticed(
    scene: Scene, changes: Mapping[str, bytes | None], *, cold_keys: bool = False
) -> None:
    """Change objects, ask a cold worker everything; restore them, ask the same worker again."""
    undo = await scene.change(changes)
    assert undo != dict(changes), "nothing was changed"
    try:
        if cold_keys:
            await scene.world.latest.end()
            await scene.world.start_service()
        async with scene.running("query") as worker:
            answers = await scene.ask()
            assert not worker.done()
            await scene.change(undo)

            async def healed() -> bool:
                return await scene.ask() == scene.baseline

            await eventually(healed, "the same worker answers as before")
            assert not worker.done()
    finally:
        await scene.change(undo)
    wrong = {
        name: answer
        for name, answer in answers.items()
        if answer not in (scene.baseline[name], ErrorCode.DAMAGED)
    }
    assert not wrong
    assert answers["other index"] == scene.baseline["other index"]
    assert ErrorCode.DAMAGED in answers.values()


def test_the_scene_has_everything(scene: Scene) -> None:
    head = scene.opened.head
    assert len(head.segments) > 1
    assert any(deletes.base for deletes in head.deletes)
    assert read_ref(head.vector).uid
    assert read_ref(head.vector).clusters > 1
    assert len(list(scene.world.stored())) > 10
    for name, answer in scene.baseline.items():
        assert isinstance(answer, dict), (name, answer)
        assert answer["hits"] or answer["count"], name


# --- heads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["sealed", "certificate", "signature"])
async def test_flipped_head(scene: Scene, part: str) -> None:
    key = scene.head_key
    await assert_noticed(scene, {key: flip(scene.bytes_of(key), [scene.head_parts()[part]])})


@pytest.mark.parametrize("manner", ["truncated", "empty", "of another index", "old", "missing"])
async def test_wrong_head(scene: Scene, manner: str) -> None:
    key = scene.head_key
    data = scene.bytes_of(key)
    other = scene.world.directory.index(OTHER)
    wrong = {
        "truncated": data[:-1],
        "empty": b"",
        "of another index": scene.bytes_of(layout.head(other.uid, 0)),
        "old": scene.early_head,
        "missing": None,
    }
    await assert_noticed(scene, {key: wrong[manner]})


# --- segments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.name)
async def test_flipped_block(scene: Scene, kind: BlockKind) -> None:
    """One flipped bit in every block of a kind."""
    places = await scene.blocks(kind)
    if not places and kind is BlockKind.VECTOR_ROWS:
        return  # every row of the segment has a vector
    assert places
    key = scene.segments()[0].key
    await assert_noticed(scene, {key: flip(scene.bytes_of(key), places)})


async def test_flipped_large_nodes(scene: Scene) -> None:
    key = scene.segments()[0].key
    places = await scene.blocks(None)
    assert places
    await assert_noticed(scene, {key: flip(scene.bytes_of(key), places)})


@pytest.mark.parametrize("kind", sorted(UNREAD), ids=lambda kind: kind.name)
async def test_unread_block(scene: Scene, kind: BlockKind) -> None:
    """What no query reads may be damaged without harm to any."""
    key = scene.segments()[0].key
    places = await scene.blocks(kind)
    assert places
    undo = await scene.change({key: flip(scene.bytes_of(key), places)})
    try:
        async with scene.running("query"):
            assert await scene.ask() == scene.baseline
    finally:
        await scene.change(undo)


@pytest.mark.parametrize("manner", ["flipped", "truncated", "exchanged", "missing"])
@pytest.mark.parametrize("which", ["large", "small"])
async def test_wrong_segment(scene: Scene, which: str, manner: str) -> None:
    large, small = (scene.stored_segments()[number].key for number in (0, -1))
    key, another = (large, small) if which == "large" else (small, large)
    data = scene.bytes_of(key)
    wrong: dict[str, bytes | None] = {
        "flipped": flip(data, [(0, len(data))]),
        "truncated": data[: len(data) // 2],
        "exchanged": scene.bytes_of(another),
        "missing": None,
    }
    if which == "large" and manner == "flipped":
        # Ranges of it are read: the bit is in a block that everything needs.
        wrong["flipped"] = flip(data, await scene.blocks(BlockKind.DIRECTORY))
    await assert_noticed(scene, {key: wrong[manner]})


# --- what heads and segments name ----------------------------------------------------------------


def named(scene: Scene, kind: str) -> str:
    head = scene.opened.head
    if kind == "centroids":
        return layout.centroids(scene.uid, 0, read_ref(head.vector).uid)
    if kind == "deletes":
        base = next(deletes.base for deletes in head.deletes if deletes.base)
        return layout.deletes(scene.uid, 0, base)
    # Of documents that the probe asks for.
    return max(scene.early_packs, key=lambda key: len(scene.bytes_of(key)))


@pytest.mark.parametrize("manner", ["flipped", "truncated", "exchanged", "missing"])
@pytest.mark.parametrize("kind", ["centroids", "deletes", "pack"])
async def test_wrong_object(scene: Scene, kind: str, manner: str) -> None:
    key = named(scene, kind)
    data = scene.bytes_of(key)
    prefix = key.rpartition("/")[0] + "/"
    others = [one for one in scene.world.stored() if one.startswith(prefix) and one != key]
    another = others[-1] if others else scene.segments()[0].key
    # A pack holds several contents: a bit in each of its first 64 blocks of 1 KiB.
    spots = [(place, 2) for place in range(0, len(data) - 2, 1024)][:64]
    wrong: dict[str, bytes | None] = {
        "flipped": flip(data, spots),
        "truncated": data[: len(data) // 2],
        "exchanged": scene.bytes_of(another),
        "missing": None,
    }
    await assert_noticed(scene, {key: wrong[manner]})


# --- keys ----------------------------------------------------------------------------------------


def key_record(scene: Scene, kind: str, index: str) -> str:
    uid = scene.world.directory.index(index).uid
    match kind:
        case "envelope":
            return layout.envelope(uid)
        case "tag":
            return layout.tag(uid)
        case "dek":
            return layout.dek(uid, scene.opened.head.generation)
        case "ingest key":
            return scene.only(layout.ingest_key(uid, 0).rpartition("/")[0] + "/")
    return catalog_key(scene, index)


def catalog_key(scene: Scene, index: str) -> str:
    """Return which of the two entries of the catalog is of `index`: they were made in order."""
    infos = scene.world.store._shared.objects
    entries = [key for key in infos if key.startswith(layout.catalog_prefix())]
    assert len(entries) == 2
    return entries[0 if index == INDEX else 1]


@pytest.mark.parametrize("manner", ["flipped", "truncated", "exchanged"])
@pytest.mark.parametrize("kind", ["envelope", "tag", "dek", "ingest key", "catalog"])
async def test_wrong_key_record(scene: Scene, kind: str, manner: str) -> None:
    """Seen by a key service that starts cold, too."""
    key = key_record(scene, kind, INDEX)
    data = scene.bytes_of(key)
    wrong = {
        "flipped": flip(data, [(0, len(data))]),
        "truncated": data[: len(data) // 2],
        "exchanged": scene.bytes_of(key_record(scene, kind, OTHER)),
    }
    await assert_noticed(scene, {key: wrong[manner]}, cold_keys=True)


async def test_sealed_request_that_damaged_keys_cannot_open_is_answered(scene: Scene) -> None:
    """Whom to answer is sealed, too; the header `sealstream-reply` says it outside."""
    world = scene.world
    undo = await scene.change({key_record(scene, "dek", INDEX): b"damaged"})
    try:
        await world.latest.end()
        await world.start_service()
        async with scene.running("query"), Client(world.settings, broker=world.broker) as sealed:
            with pytest.raises(Reject) as refused:
                await sealed.count(INDEX, timeout_s=TIMEOUT_S)
    finally:
        await scene.change(undo)
    assert refused.value.code is ErrorCode.DAMAGED
