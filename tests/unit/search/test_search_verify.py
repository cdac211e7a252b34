from __future__ import annotations

import numpy as np
from search_kit import PACK, SEALED, UID, Doc, delete, make_index, segment_keys, vector_keys, verify

from workers.search.verify import Report, Verifier, verify_index
from workers.storage import layout


async def check(index, **options) -> Report:
    verifier = Verifier(index.store, UID, segment_keys, vector_keys, verify, **options)
    return await verify_index(verifier, range(index.config.shards))


async def filled(**config):
    index = await make_index(dimension=16, **config)
    vectors = np.random.default_rng(0).normal(size=(600, 16))
    docs = [
        Doc(f"d{i}", {"body": f"word{i % 7} same"}, (f"k{i % 3}",), {"n": i}, vectors[i])
        for i in range(600)
    ]
    await index.write(*docs[:300])
    await index.write(*docs[300:], Doc("packed", packed=True))
    await index.write(delete("d5"), Doc("d6", {"body": "new text"}))
    await index.store.put(layout.pack(UID, PACK), SEALED + b"trailer")
    return index


async def test_a_sound_index_is_found_sound():
    seen = []
    index = await filled(padding="standard", shards=2)
    report = await check(index, progress=lambda done, of: seen.append((done, of)))
    assert report.problems == []
    assert report.ok
    assert (report.shards, report.documents, report.contents) == (2, 600, 1)
    assert report.segments == len(seen)
    assert report.nodes > 20
    await index.compact()
    assert (await check(index)).ok


async def test_an_index_that_was_never_written_is_sound():
    report = await check(await make_index(shards=3))
    assert report.ok
    assert report.documents == 0


async def flip(index, key: str, at: int) -> None:
    data = bytearray((await index.store.get(key)).data)
    data[at] ^= 1
    await index.store.put(key, bytes(data))


async def segment_keys_of(index) -> list[str]:
    return sorted([info.key async for info in index.store.list(layout.segments_prefix(UID, 0))])


async def test_a_flipped_bit_anywhere_in_a_segment_is_found():
    index = await filled()
    key, *_ = await segment_keys_of(index)
    size = len((await index.store.get(key)).data)
    for at in (0, size // 2, size - 1):
        await flip(index, key, at)
        report = await check(index)
        assert [problem.where for problem in report.problems] == [key]
        await flip(index, key, at)
    assert (await check(index)).ok


async def test_a_flipped_head_a_lost_segment_and_a_changed_pack_are_found():
    index = await filled()
    await flip(index, layout.head(UID, 0), 200)
    assert not (await check(index)).ok
    await flip(index, layout.head(UID, 0), 200)
    await flip(index, layout.pack(UID, PACK), 3)
    report = await check(index)
    assert [problem.where for problem in report.problems] == [layout.pack(UID, PACK)]
    await index.store.delete([layout.pack(UID, PACK)])
    assert "missing" in (await check(index)).problems[0].what
    await index.store.put(layout.pack(UID, PACK), SEALED)
    key, *_ = await segment_keys_of(index)
    await index.store.delete([key])
    assert "missing" in (await check(index)).problems[0].what
