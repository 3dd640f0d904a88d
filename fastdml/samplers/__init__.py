"""Samplers that make a batch worth comparing, and that a killed run can take up again.

All of them are repeatable from a seed, deal their batches out to ranks, cover classes and items evenly
within an epoch, and save where they stand (``state_dict``); see :class:`.EpochSampler`.
"""

from .epochs import EpochSampler
from .fixed_triplets import FixedSetOfTriplets
from .hierarchical import HierarchicalSampler
from .m_per_class import MPerClassSampler
from .tuples_to_weights import TuplesToWeightsSampler

__all__ = [
    "EpochSampler",
    "FixedSetOfTriplets",
    "HierarchicalSampler",
    "MPerClassSampler",
    "TuplesToWeightsSampler",
]
