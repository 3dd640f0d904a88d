"""Batches that are shared out among processes: the exact loss and gradient of all rows together."""

from .ranks import RankError
from .shards import ShardedProxies, shard
from .wrap import Distributed, wrap

__all__ = ["Distributed", "RankError", "ShardedProxies", "shard", "wrap"]
