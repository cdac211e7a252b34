from __future__ import annotations

import threading

from workers.crypto.derive import TokenKind, chain_token
from workers.crypto.token_cache import TokenCache

TAG = bytes(range(32))


def test_tokens_are_those_of_chain_token() -> None:
    cache = TokenCache(TAG)
    for _ in range(2):
        for kind in TokenKind:
            for field in ("", "body"):
                for value in ("seal", b"seal", "Grüße"):
                    assert cache.token(kind, field, value) == chain_token(TAG, kind, field, value)


def test_many_at_once_keep_their_order() -> None:
    words = ["b", "a", "b"]
    expected = [chain_token(TAG, TokenKind.TERM, "body", word) for word in words]
    assert TokenCache(TAG).tokens(TokenKind.TERM, "body", words) == expected


def test_the_cache_is_bounded_and_stays_right() -> None:
    cache = TokenCache(TAG, maxsize=10)
    for n in range(100):
        word = str(n % 37)
        expected = chain_token(TAG, TokenKind.TERM, "", word)
        assert cache.token(TokenKind.TERM, "", word) == expected
        assert len(cache) <= 10


def test_recent_words_survive_a_flood_of_new_ones() -> None:
    cache = TokenCache(TAG, maxsize=100)
    common = cache.token(TokenKind.TERM, "", "common")
    for n in range(1000):
        cache.token(TokenKind.TERM, "", f"rare-{n}")
        # The same object: it came from the cache, it was not derived again.
        assert cache.token(TokenKind.TERM, "", "common") is common


def test_clearing_forgets_everything() -> None:
    cache = TokenCache(TAG)
    cache.tokens(TokenKind.TERM, "", ["a", "b"])
    cache.clear()
    assert len(cache) == 0


def test_threads_may_share_it() -> None:
    cache = TokenCache(TAG, maxsize=50)
    words = [str(n) for n in range(200)]
    expected = [chain_token(TAG, TokenKind.TERM, "", word) for word in words]
    found: list[list[bytes]] = []

    def work() -> None:
        found.append(cache.tokens(TokenKind.TERM, "", words))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8
