"""What an ingest worker remembers of an index: its words, their tokens, what was sent of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from workers.crypto.derive import TOKEN_BYTES, Prf, TokenKind
from workers.crypto.lp import lp, lp_text
from workers.text.analyzer import get_analyzer
from workers.text.lexicon import Lexicon, Numbers, SentWords

MAX_WORDS: Final = 200_000
"""Words and tokens kept of one index; each takes about 250 bytes. Then it begins anew, which costs
analysing, deriving and sending once more those words that still come."""


class IndexWords:
    """The words of one index while its lease lasts. Safe to use from several threads."""

    def __init__(self, analyzer: str, prf: Prf) -> None:
        """Begin with none.

        Args:
            analyzer: of the index.
            prf: under the index's TAG key.
        """
        self.lexicon = Lexicon(get_analyzer(analyzer))
        self._prf = prf
        self._tokens: dict[str, dict[int, bytes]] = {}
        self._sent: dict[int, SentWords] = {}

    @property
    def full(self) -> bool:
        """Whether to begin anew."""
        tokens = sum(len(known) for known in self._tokens.values())
        return len(self.lexicon) > MAX_WORDS or tokens > MAX_WORDS

    def tokens(self, field: str, terms: list[int]) -> list[bytes]:
        """Return the chain tokens of terms (numbers of the lexicon) in a text field."""
        known = self._tokens.setdefault(field, {})
        missing = [term for term in terms if term not in known]
        if missing:
            prefix, digest, spell = lp(TokenKind.TERM, field), self._prf.digest, self.lexicon.term
            for term in missing:
                known[term] = digest(prefix + lp_text(spell(term)))[:TOKEN_BYTES]
        return [known[term] for term in terms]

    def sent(self, shard: int) -> SentWords:
        """Return which words a shard has."""
        return self._sent.setdefault(shard, SentWords())


@dataclass(frozen=True, slots=True, repr=False)
class NewWords:
    """The words that a batch brings to its shard.

    Attributes:
        numbers: of the lexicon, distinct.
        of: the words of the index when the batch was made.
        shard: where they go.
    """

    numbers: Numbers
    of: IndexWords
    shard: int

    def __len__(self) -> int:
        return self.numbers.size

    def spell(self) -> list[str]:
        """Return the words themselves."""
        return [self.of.lexicon.word(number) for number in self.numbers.tolist()]

    def remember(self) -> None:
        """Record that the shard has them: the batch was acknowledged."""
        self.of.sent(self.shard).remember(self.numbers)
