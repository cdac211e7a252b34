"""Complete prefixes from the word lists that the segments carry.

Lists are sealed to the index's query key (`workers.text.vocabulary`). An opened list is kept by
the hash of its sealed form: compaction moves lists from segment to segment unchanged.
"""

from __future__ import annotations

import asyncio
import hashlib
from bisect import bisect_left
from collections.abc import Callable

from schemas.errors import ErrorCode
from workers.chain.segment_file import gather_all
from workers.errors import Damaged, Reject
from workers.search.run import Run
from workers.text.varint import MalformedPayloadError
from workers.text.vocabulary import MAX_COMPLETIONS, read_vocabulary


async def complete_prefixes(run: Run, wanted: list[str]) -> dict[str, list[str]]:
    """Return the words of the index that begin with each of the prefixes.

    At most `MAX_COMPLETIONS` each, the first ones in alphabetical order; a note says if there were
    more.

    Raises:
        Reject: UNSUPPORTED, this index has no word lists to complete from.
    """
    if not wanted:
        return {}
    lists = await _lists(run)
    out: dict[str, list[str]] = {}
    for prefix in wanted:
        found = sorted({word for words in lists for word in _beginning(words, prefix)})
        if len(found) > MAX_COMPLETIONS:
            run.notes.append(f"a prefix was completed to its first {MAX_COMPLETIONS} words only")
        out[prefix] = found[:MAX_COMPLETIONS]
    return out


async def _lists(run: Run) -> list[list[str]]:
    opener = run.context.open_vocabulary
    if opener is None:
        raise Reject(ErrorCode.UNSUPPORTED, "prefixes are not offered here", field="query.text")
    places = run.places()
    blobs = await gather_all(
        [run.snapshot.shards[number].vocabulary(segment) for number, segment in places]
    )
    cache, uid = run.context.cache, run.snapshot.index_uid
    lists: list[list[str]] = []
    missing: list[tuple[bytes, bytes]] = []
    for blob in {blob for one in blobs for blob in one}:
        digest = hashlib.sha256(blob).digest()
        known: list[str] | None = cache.get((uid, "words", digest))
        if known is None:
            missing.append((digest, blob))
        else:
            lists.append(known)
    if missing:
        opened = await asyncio.to_thread(_open_all, opener, [blob for _, blob in missing])
        for (digest, _), words in zip(missing, opened, strict=True):
            cache.put((uid, "words", digest), words, sum(map(len, words)) + 64 * len(words))
            lists.append(words)
    return lists


def _open_all(opener: Callable[[bytes], bytes], blobs: list[bytes]) -> list[list[str]]:
    try:
        return [read_vocabulary(opener(blob)) for blob in blobs]
    except MalformedPayloadError as error:
        raise Damaged(ErrorCode.DAMAGED, "a word list of this index does not decode") from error


def _beginning(words: list[str], prefix: str) -> list[str]:
    """Return the words that begin with `prefix`; at most one more than are used."""
    at = bisect_left(words, prefix)
    end = at
    while end < len(words) and end - at <= MAX_COMPLETIONS and words[end].startswith(prefix):
        end += 1
    return words[at:end]
