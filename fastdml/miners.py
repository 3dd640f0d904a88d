"""The miners, by the name under which users of other libraries look for them."""

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
    "MultiSimilarityMiner",
    "NearestNegativeMiner",
]
