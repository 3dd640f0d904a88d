"""The miners, by the name under which users of other libraries look for them."""

from .mining.lazy import LazyPairs
from .mining.miners import (
    BatchEasyHardMiner,
    BatchHardMiner,
    DistanceWeightedMiner,
    MultiSimilarityMiner,
    NearestNegativeMiner,
)

__all__ = [
    "BatchEasyHardMiner",
    "BatchHardMiner",
    "DistanceWeightedMiner",
    "LazyPairs",
    "MultiSimilarityMiner",
    "NearestNegativeMiner",
]
