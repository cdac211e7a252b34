"""The index worker: from index-updates to sealed segments and heads; the only writer of a shard.

worker.py     the process                       handler.py    the shards of a partition
shard.py      a shard, and the order in which:
waiting.py    its records wait                  opening.py    its head is read
receive.py    updates are opened and checked    applying.py   they are applied
telling.py    everybody hears of it             merging.py    what is stored is written anew
sweeping.py   garbage goes                      background.py merges and sweeps run
"""
