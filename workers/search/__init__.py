"""Answer queries over the sealed segments of an index at one version.

`execute.search` is the entrance; `snapshot` says what it needs from the chain.
"""
