"""The secure index of a shard: segments, heads, the reader and the only writer.

    codec.py      what compaction asks of payloads     rows.py       the document table
    ops.py        what a writer is asked and answers   kinds.py      nodes, blocks, rows
    segment.py    format and building of a segment     head.py       the shard's one mutable object
    reader.py     following a head                     snapshot.py   reading one version
    writer.py     applying batches exactly once        successor.py  what a batch makes of a shard
    compact.py    merging                              sweep.py      garbage

It knows chain tokens and payload bytes, never words: tokens come from above, payloads are read by
codecs.
"""
