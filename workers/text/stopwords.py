"""Hold the English stop words of the analyzer `english`.

The list is the `en` list of bm25s (https://github.com/xhluca/bm25s, MIT License, Copyright (c)
2024 Xing Han Lu), which is Lucene's default English stop set (Apache License 2.0). It is copied as
data, so that the tokens of an index never change with a dependency.
"""

from __future__ import annotations

from typing import Final

_WORDS: Final = """
a an and are as at be but by for if in into is it no not of on or such that the their then there
these they this to was will with
"""

ENGLISH: Final[frozenset[str]] = frozenset(_WORDS.split())
