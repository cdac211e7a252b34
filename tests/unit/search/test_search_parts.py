from __future__ import annotations

import pytest

from workers.search.cache import DecodedCache
from workers.search.fuse import fuse


def test_fusion_counts_ranks_from_one():
    fused = dict(fuse([["a", "b"], ["b", "c"]], [1.0, 2.0], k=60))
    assert fused == pytest.approx({"a": 1 / 61, "b": 1 / 62 + 2 / 61, "c": 2 / 62})
    assert fuse([], []) == []
    with pytest.raises(ValueError):
        fuse([["a"]], [])


def test_the_cache_is_bounded_by_bytes_and_drops_the_least_recent():
    cache = DecodedCache(100)
    cache.put((b"i", 1), "one", 40)
    cache.put((b"i", 2), "two", 40)
    assert cache.get((b"i", 1)) == "one"
    cache.put((b"j", 3), "three", 40)
    assert cache.get((b"i", 2)) is None
    assert cache.peek((b"i", 1))
    assert cache.size_bytes == 80
    cache.put((b"i", 4), "too large", 101)
    assert len(cache) == 2
    cache.put((b"i", 1), "again", 10)
    assert (cache.get((b"i", 1)), cache.size_bytes) == ("again", 50)
    assert (cache.hits, cache.misses) == (2, 1)


def test_an_index_can_be_forgotten():
    cache = DecodedCache(100)
    cache.put((b"i", 1), "one", 10)
    cache.put((b"j", 1), "two", 10)
    cache.forget(b"i")
    assert not cache.peek((b"i", 1))
    assert cache.peek((b"j", 1))
    assert cache.size_bytes == 10
    cache.clear()
    assert (len(cache), cache.size_bytes) == (0, 0)
