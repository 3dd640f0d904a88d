"""Methods that are more than a loss: small classes for any training loop, none of them a trainer.

docs/methods.md has a page on each.
"""

from __future__ import annotations

from .alternating_projections import AlternatingProjections, RepresentativeSampler
from .annotation import MaxPoolEmbedding, RecordedPlateaus, fast_moving_proxies, label_the_rest
from .balance import Coordinate, balance_search
from .chance_constraints import ChanceConstraints, greedy_k_centers
from .classes import draw_each_class
from .continuous import NearestLabelSampler, label_retrieval, unit_sphere
from .densely_anchored import DASLoss, DenselyAnchoredSampling, NormConstraint
from .ensemble import CompressionHead, LossEnsemble, proportion_loss
from .intra_class import IAALoss, IntraClassAugmentation
from .multi_head import GlobalLocalHeads, HybridLoss, SecondOrderAttention
from .non_isotropic import NonIsotropicVMFLoss
from .novel_classes import NovelClasses, sinkhorn_divergence
from .proximal import ProximalTerm
from .self_distillation import SelfDistillation
from .transfer import EmbeddingTransfer, views

__all__ = [
    "AlternatingProjections",
    "ChanceConstraints",
    "CompressionHead",
    "Coordinate",
    "DASLoss",
    "DenselyAnchoredSampling",
    "EmbeddingTransfer",
    "GlobalLocalHeads",
    "HybridLoss",
    "IAALoss",
    "IntraClassAugmentation",
    "LossEnsemble",
    "MaxPoolEmbedding",
    "NearestLabelSampler",
    "NonIsotropicVMFLoss",
    "NormConstraint",
    "NovelClasses",
    "ProximalTerm",
    "RecordedPlateaus",
    "RepresentativeSampler",
    "SecondOrderAttention",
    "SelfDistillation",
    "balance_search",
    "draw_each_class",
    "fast_moving_proxies",
    "greedy_k_centers",
    "label_retrieval",
    "label_the_rest",
    "proportion_loss",
    "sinkhorn_divergence",
    "unit_sphere",
    "views",
]
