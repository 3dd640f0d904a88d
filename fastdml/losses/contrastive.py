"""Contrastive loss with two margins."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.loss import RowLoss, Rows
from ..engine.registry import register
from .base import SampleLoss, sample_loss

__all__ = ["ContrastiveLoss", "contrastive"]


@register
@dataclasses.dataclass(frozen=True)
class Contrastive(RowLoss):
    """Sums of the positive and the negative hinge, and how many terms each sum is divided by."""

    name = "contrastive"
    provenance = "pytorch-metric-learning"
    outputs = 4

    pos_margin: float = 0.0
    neg_margin: float = 1.0
    active_only: bool = True
    similarity: str = dataclasses.field(default="distance", kw_only=True)

    def __post_init__(self) -> None:
        check.finite(self.pos_margin, "pos_margin")
        check.finite(self.neg_margin, "neg_margin")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [
            cls(),
            cls(0.3, 1.2, False, similarity="raw_squared_distance"),
            cls(0.9, 0.1, similarity="cosine"),
        ]

    @property
    def sign(self) -> float:
        return 1.0 if "distance" in self.similarity else -1.0

    def parameters(self) -> tuple[float, ...]:
        return (self.pos_margin, self.neg_margin, self.sign, float(self.active_only))

    def spec(self, rows: Rows) -> Tensor:
        pull = self.sign * (rows.s - self.pos_margin)
        push = self.sign * (self.neg_margin - rows.s)
        sums, counts = [], []
        for term, mask in ((pull, rows.positive), (push, rows.negative)):
            sums.append((term.relu() * mask).sum(1))
            counted = mask & (term > 0) if self.active_only else mask
            counts.append(counted.sum(1).to(rows.s.dtype))
        return torch.stack(sums + counts, dim=1)

    def combine(self, outputs: Tensor, reduction: str) -> Tensor:
        pull, push, *counts = outputs.sum(0, dtype=torch.float64)
        if reduction == "sum":
            return (pull + push).to(outputs.dtype)
        # The number of terms is a constant for the gradient; no term at all gives 0.
        pulls, pushes = (n.detach().clamp(min=1) for n in counts)
        return (pull / pulls + push / pushes).to(outputs.dtype)


def _describe(pos_margin: float, neg_margin: float, reduction: str, similarity: str) -> Contrastive:
    if reduction == "none":
        raise ValueError("reduction: a contrastive loss has no row losses; expected another kind")
    return Contrastive(pos_margin, neg_margin, reduction == "nonzero", similarity=similarity)


class ContrastiveLoss(SampleLoss):
    """Contrastive loss with two margins.

    *Dimensionality Reduction by Learning an Invariant Mapping*, Hadsell et al., CVPR 2006, in the
    form without squares: [d - pos_margin]_+ over positives plus [neg_margin - d]_+ over negatives.

    Args:
        pos_margin, neg_margin: in units of `similarity`.
        similarity: "distance" (Euclidean, of normalised embeddings; the default),
            "squared_distance", "raw_distance" and "raw_squared_distance" (not normalised), or
            "cosine" and "dot", on which the loss is [pos_margin - s]_+ + [s - neg_margin]_+.
        reduction: "nonzero" (the default) divides each sum by its number of terms above 0, "mean" by
            its number of pairs; "sum" does not divide.

    Other arguments: see `SampleLoss`.
    """

    default_similarity = "distance"

    def __init__(
        self,
        pos_margin: float = 0,
        neg_margin: float = 1,
        *,
        reduction: str = "nonzero",
        **kwargs: Any,
    ) -> None:
        super().__init__(reduction=reduction, **kwargs)
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin
        self.description()  # checks the parameters

    def description(self) -> Contrastive:
        return _describe(self.pos_margin, self.neg_margin, self.reduction, self.similarity)


def contrastive(
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: object = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    pos_margin: float = 0,
    neg_margin: float = 1,
    similarity: str = "distance",
    reduction: str = "nonzero",
    **options: Any,
) -> Tensor:
    """Contrastive loss as a function; see `ContrastiveLoss`. options: see `sample_loss`."""
    description = _describe(pos_margin, neg_margin, reduction, similarity)
    return sample_loss(
        description,
        embeddings,
        labels,
        indices_tuple,
        ref_emb,
        ref_labels,
        reduction=reduction,
        **options,
    )
