"""The index worker: from index-updates to sealed segments and heads; the only writer of a shard."""
