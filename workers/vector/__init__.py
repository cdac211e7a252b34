"""Nearest neighbours over sealed vectors: int8 codes, an inverted file of centroids, reranking.

The chain stores the codes of one (segment, cluster) as one node. Nothing here does I/O; the
sealing is the chain's, the tokens come from `workers.crypto.derive`.
"""
