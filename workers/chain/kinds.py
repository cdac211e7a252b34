"""The kinds of nodes, blocks and rows. The numbers are stored: never reuse one."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, unique
from typing import Literal

from workers.crypto.secret import SecretBytes

Padding = Literal["off", "standard", "strict"]

SegmentKeys = Callable[[int], SecretBytes]
"""Returns the `segment` subkey of a key generation; raises `Retry(KEY_UNAVAILABLE)` without a
lease."""


@unique
class NodeKind(IntEnum):
    """What a chain holds; a node's label and key depend on it."""

    KEYWORD = 1
    TERM = 2
    META = 3
    GROUP = 4
    CODES = 5


@unique
class BlockKind(IntEnum):
    """What a sealed block of a segment holds; its key depends on it (see `segment.py`)."""

    BUCKET = 1
    DICTIONARY = 2
    IDS = 3
    META = 4
    OBJECT = 5
    LENGTHS = 6
    VECTORS = 7
    IDTABLE = 8
    VOCABULARY = 9
    PACKS = 10
    ROWS = 11
    ORIGIN = 12
    GROUPS = 13
    VECTOR_ROWS = 14
    DIRECTORY = 15
    DELETES = 16
    KINDS = 17
    OBJECT_IDS = 18
    ACCESS = 19


@unique
class RowKind(IntEnum):
    """What an applied operation left behind.

    DOC is an upsert, TOMBSTONE a delete, PAIRS an add_keywords. REMOVALS is a remove_keywords: a
    PAIRS row with only '-' postings, told apart so that compaction can drop it without knowing
    payloads.
    """

    DOC = 1
    TOMBSTONE = 2
    PAIRS = 3
    REMOVALS = 4
