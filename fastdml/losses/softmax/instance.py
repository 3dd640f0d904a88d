"""Instance loss: a softmax over the samples of a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...engine import check
from ...engine.registry import register
from ..base import SampleLoss
from .row_cross_entropy import RowCrossEntropy

__all__ = ["InstanceLoss"]


@register
@dataclasses.dataclass(frozen=True)
class Instance(RowCrossEntropy):
    """The target is spread over the columns of the row's label, itself among them."""

    name = "instance"
    provenance = "pytorch-metric-learning, its target corrected"
    self_pair = "keep"

    temperature: float = 1 / 64


class InstanceLoss(SampleLoss):
    """Instance loss.

    *Dual-Path Convolutional Image-Text Embeddings with Instance Loss*, Zheng et al., TOMM 2020 (arXiv
    1711.05535), over the batch instead of a classifier, as in pytorch-metric-learning: the
    cross-entropy of softmax_j(gamma s_ij), the sample itself included, with the sample's own label. A
    label names all columns that carry it: the target is spread evenly over them. With every label
    different, the only target is the sample itself.

    Args:
        gamma: > 0, scale of the cosine similarities.

    Other arguments: see `SampleLoss`.
    """

    function = "instance"

    def __init__(self, gamma: float = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gamma = gamma
        self.description()  # checks the parameters

    def description(self) -> Instance:
        temperature = 1 / check.positive(self.gamma, "gamma")
        return Instance(temperature, similarity=self.similarity)
