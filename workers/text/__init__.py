"""Ranked search without plaintext at rest: analysis, postings payloads, BM25, query syntax.

Nothing here does I/O or knows a key. The chain stores what `postings` encodes; `search` decodes it
again and scores it with `bm25`.
"""
