"""Chain tokens of words that come again and again.

Words of a language repeat: with the cache an Enron mail costs a fraction of the HMACs (`derive.Prf`
for the rest). Two generations of a dict approximate LRU without any bookkeeping on a hit in the
young one.
"""

from __future__ import annotations

from collections.abc import Iterable

from workers.crypto.derive import TOKEN_BYTES, Prf, TokenKind
from workers.crypto.lp import lp
from workers.crypto.secret import Key

_CacheKey = tuple[int, str, str | bytes]


class TokenCache:
    """`derive.chain_token` under one TAG key, with the recent results kept.

    The cache holds words in clear beside their tokens: it lives no longer than the lease of its
    TAG; call `clear()` when the lease ends. Safe to use from several threads (the worst race
    derives twice).
    """

    __slots__ = ("_half", "_old", "_prf", "_young")

    def __init__(self, tag: Key, maxsize: int = 200_000) -> None:
        """Key the cache.

        Args:
            tag: the index's TAG key, 32 bytes.
            maxsize: tokens kept at most; one takes about 250 bytes.
        """
        self._prf = Prf(tag)
        self._half = max(1, maxsize // 2)
        self._young: dict[_CacheKey, bytes] = {}
        self._old: dict[_CacheKey, bytes] = {}

    def token(self, kind: TokenKind, field: str, value: str | bytes) -> bytes:
        """Return `chain_token(tag, kind, field, value)`."""
        key = (int(kind), field, value)
        found = self._young.get(key)
        if found is not None:
            return found
        found = self._old.get(key)
        if found is None:
            found = self._prf.digest(lp(kind, field, value))[:TOKEN_BYTES]
        if len(self._young) >= self._half:
            self._old = self._young
            self._young = {}
        self._young[key] = found
        return found

    def tokens(self, kind: TokenKind, field: str, values: Iterable[str | bytes]) -> list[bytes]:
        """Return the tokens of many values of one field, in their order."""
        return [self.token(kind, field, value) for value in values]

    def clear(self) -> None:
        """Forget all cached words and tokens."""
        self._young = {}
        self._old = {}

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())
