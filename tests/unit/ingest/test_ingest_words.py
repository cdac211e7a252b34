from __future__ import annotations

from workers.crypto.derive import Prf, TokenKind, chain_token
from workers.ingest.prepare import IndexKeys
from workers.ingest.words import MAX_WORDS, IndexWords, NewWords

TAG = b"t" * 32


def test_tokens_are_those_of_the_terms() -> None:
    words = IndexWords("english", Prf(TAG))
    numbers = words.lexicon.terms_of(words.lexicon.read("running dogs")).tolist()
    expected = [chain_token(TAG, TokenKind.TERM, "body", term) for term in ("run", "dog")]
    assert words.tokens("body", numbers) == expected
    assert words.tokens("body", numbers[::-1]) == expected[::-1]
    assert words.tokens("subject", numbers) != expected


def test_words_are_new_until_their_batch_was_acknowledged() -> None:
    words = IndexWords("english", Prf(TAG))
    numbers = words.lexicon.read("dogs bark")
    assert words.sent(0).unsent(numbers).tolist() == [0, 1]
    batch = NewWords(numbers, words, 0)
    assert (len(batch), batch.spell()) == (2, ["dogs", "bark"])
    assert words.sent(0).unsent(numbers).tolist() == [0, 1]
    batch.remember()
    assert words.sent(0).unsent(words.lexicon.read("dogs bite")).tolist() == [1]
    assert words.sent(1).unsent(numbers).tolist() == [0, 1]


def test_words_begin_anew_when_there_are_too_many() -> None:
    keys = IndexKeys(TAG)
    words = keys.words("english")
    words.lexicon.read(" ".join(f"w{n}" for n in range(MAX_WORDS)))
    assert keys.words("english") is words
    words.lexicon.read("more than these")
    anew = keys.words("english")
    assert anew is not words
    assert keys.words("german") is not anew
    keys.clear()
    assert keys.words("german").lexicon.read("ein").size == 1
