"""Methods that are more than a loss: small classes for any training loop, none of them a trainer.

docs/methods.md has a page on each.
"""

from __future__ import annotations

from .alternating_projections import AlternatingProjections, RepresentativeSampler
from .chance_constraints import ChanceConstraints, greedy_k_centers
from .classes import draw_each_class
from .densely_anchored import DASLoss, DenselyAnchoredSampling, NormConstraint
from .intra_class import IAALoss, IntraClassAugmentation
from .non_isotropic import NonIsotropicVMFLoss
from .proximal import ProximalTerm

__all__ = [
    "AlternatingProjections",
    "ChanceConstraints",
    "DASLoss",
    "DenselyAnchoredSampling",
    "IAALoss",
    "IntraClassAugmentation",
    "NonIsotropicVMFLoss",
    "NormConstraint",
    "ProximalTerm",
    "RepresentativeSampler",
    "draw_each_class",
    "greedy_k_centers",
]
