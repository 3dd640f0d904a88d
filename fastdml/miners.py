"""The miners, by the name under which users of other libraries look for them."""

from .mining.lazy import LazyPairs
from .mining.margins import AngularMiner, PairMarginMiner, TripletMarginMiner
from .mining.miners import (
    BatchEasyHardMiner,
    BatchHardMiner,
    DistanceWeightedMiner,
    MultiSimilarityMiner,
    NearestNegativeMiner,
)
from .mining.semi_hard import SemiHardMiner
from .mining.shares import (
    BaseMiner,
    EmbeddingsAlreadyPackagedAsTriplets,
    HDCMiner,
    UniformHistogramMiner,
)

__all__ = [
    "AngularMiner",
    "BaseMiner",
    "BatchEasyHardMiner",
    "BatchHardMiner",
    "DistanceWeightedMiner",
    "EmbeddingsAlreadyPackagedAsTriplets",
    "HDCMiner",
    "LazyPairs",
    "MultiSimilarityMiner",
    "NearestNegativeMiner",
    "PairMarginMiner",
    "SemiHardMiner",
    "TripletMarginMiner",
    "UniformHistogramMiner",
]
