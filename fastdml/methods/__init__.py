"""Methods that are more than a loss: small classes for any training loop, none of them a trainer.

docs/methods.md has a page on each.
"""

from __future__ import annotations

from .densely_anchored import DASLoss, DenselyAnchoredSampling, NormConstraint
from .intra_class import IAALoss, IntraClassAugmentation

__all__ = [
    "DASLoss",
    "DenselyAnchoredSampling",
    "IAALoss",
    "IntraClassAugmentation",
    "NormConstraint",
]
