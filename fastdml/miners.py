"""The miners, by the name under which users of other libraries look for them."""

from .mining.lazy import LazyPairs
from .mining.miners import (
    BatchEasyHardMiner,
    BatchHardMiner,
    DistanceWeightedMiner,
    MultiSimilarityMiner,
    NearestNegativeMiner,
)
from .mining.semi_hard import SemiHardMiner

__all__ = [
    "BatchEasyHardMiner",
    "BatchHardMiner",
    "DistanceWeightedMiner",
    "LazyPairs",
    "MultiSimilarityMiner",
    "NearestNegativeMiner",
    "SemiHardMiner",
]
