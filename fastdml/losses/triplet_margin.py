"""Triplet margin loss over all triplets of the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.loss import RowLoss, Rows
from ..engine.mining import STRATEGIES, check_strategies, choose, nearest, pick, poison, tie
from ..engine.registry import register
from .base import SampleLoss, sample_loss
from .terms import masked_sum, rank_pairs, softplus, sort_code

__all__ = ["TripletMarginLoss", "triplet_margin"]


_COUNTED = {"active": 0, "triplets": 1, "anchors": 2}


@register
@dataclasses.dataclass(frozen=True)
class TripletMargin(RowLoss):
    """SPEC 3.8, all (positive, negative) pairs of every anchor."""

    name = "triplet_margin"
    provenance = "released code"
    outputs = 2
    counted = True
    threshold_list = True

    margin: float = 0.05
    smooth: bool = False
    normalizer: str = "active"
    positives: str = "all"
    negatives: str = "all"
    k: int = 1
    sort: bool | None = dataclasses.field(default=None, kw_only=True)
    similarity: str = dataclasses.field(default="distance", kw_only=True)

    def __post_init__(self) -> None:
        sort_code(self.sort)
        check.finite(self.margin, "margin")
        if self.normalizer not in _COUNTED:
            raise ValueError(
                f"normalizer: expected one of {sorted(_COUNTED)}, got {self.normalizer!r}"
            )

        check.count(self.k, "k")
        check_strategies(self.positives, self.negatives, ("positives", "negatives"))

    @property
    def direction(self) -> float:
        return -1.0 if "distance" in self.similarity else 1.0

    def parameters(self) -> tuple[float, ...]:
        counted = float(_COUNTED[self.normalizer])
        chosen = (float(STRATEGIES[self.positives]), float(STRATEGIES[self.negatives]))
        form = (float(self.smooth), sort_code(self.sort), counted)
        return (self.margin, self.direction, *form, *chosen, float(self.k))

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [
            cls(),
            cls(margin=0.2, normalizer="anchors", similarity="cosine"),
            cls(smooth=True, similarity="squared_distance", sort=True),
            cls(similarity="cosine", sort=True),
            cls(0.2, positives="easy", negatives="semihard"),
            cls(0.2, negatives="nearest", k=3),
            cls(normalizer="triplets", similarity="raw_distance"),
        ]

    def spec(self, rows: Rows) -> Tensor:
        def cost(t: Tensor) -> Tensor:
            excess = self.direction * t + self.margin
            return softplus(excess) if self.smooth else excess.relu()

        def active(t: Tensor) -> Tensor:
            return (self.direction * t.detach() + self.margin > 0).to(t.dtype)

        if self.negatives == "nearest":
            negative = nearest(self.direction * rows.s, rows.negative, self.k)
            rows = dataclasses.replace(rows, negative=negative)
        if self.positives != "all" or self.negatives not in ("all", "nearest"):
            return self._of_chosen(rows, cost, active)
        total, positives, negatives = rank_pairs(rows, cost)
        if self.negatives == "nearest":
            total = total + poison(rows.s)
        if self.normalizer == "anchors":
            count = torch.ones_like(total)
        elif self.smooth or self.normalizer == "triplets":
            count = positives * negatives
        else:
            count, _, _ = rank_pairs(rows, active)
        return torch.stack([total, count], dim=1)

    def _of_chosen(
        self, rows: Rows, cost: Callable[[Tensor], Tensor], active: Callable[[Tensor], Tensor]
    ) -> Tensor:
        near = self.direction * rows.s.detach()
        positive, negative = rows.positive, rows.negative

        def only(mask: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
            """The mask of one candidate per row, and its value [R, 1]."""
            column, found = choose(key, mask)
            one = torch.zeros_like(mask).scatter(1, column[:, None], found[:, None])
            return one, pick(rows.s, column)[:, None]

        fixed_p = fixed_n = None
        if self.positives in ("hard", "easy"):
            positive, fixed_p = only(positive, near if self.positives == "easy" else -near)
        if self.negatives not in ("all", "nearest"):
            if self.negatives == "semihard":
                assert fixed_p is not None
                negative = negative & (near < self.direction * fixed_p.detach() - tie(fixed_p))
            negative, fixed_n = only(negative, -near if self.negatives == "easy" else near)
        if self.positives == "semihard":
            assert fixed_n is not None
            positive = positive & (near > self.direction * fixed_n.detach() + tie(fixed_n))
            positive, fixed_p = only(positive, -near)
        if fixed_p is not None:
            t, part = rows.s - fixed_p, negative & positive.any(1, keepdim=True)
        else:
            assert fixed_n is not None
            t, part = fixed_n - rows.s, positive & negative.any(1, keepdim=True)
        total = masked_sum(cost(t), part) + poison(rows.s)
        if self.normalizer == "anchors":
            count = torch.ones_like(total)
        elif self.smooth or self.normalizer == "triplets":
            count = part.sum(1).to(total.dtype)
        else:
            count = masked_sum(active(t), part)
        return torch.stack([total, count], dim=1)


class TripletMarginLoss(SampleLoss):
    """Triplet margin loss over all triplets of the batch, none of which is ever listed.

    *FaceNet: A Unified Embedding for Face Recognition and Clustering*, Schroff et al., CVPR 2015
    (arXiv 1503.03832), equation 3, over all triplets of an anchor a, a positive p and a negative n:
    [d_ap - d_an + margin]_+ on distances, [s_an - s_ap + margin]_+ on similarities.

    Args:
        margin: in units of `similarity`.
        smooth_loss: log(1 + exp(.)) in place of the hinge.
        normalizer: what the mean is over. "active": the triplets above 0 (the default, as in
            pytorch-metric-learning; every triplet with smooth_loss), "triplets": all of them,
            "anchors": the sum of a row's triplets, averaged over the rows.
        positives, negatives: which of an anchor's candidates take part, chosen in the pass over its row:
            "all", "hard" (the hardest: farthest positive, nearest negative), "easy", or "semihard" (the
            hardest that is still on the right side of the other kind's). Of negatives also "nearest":
            the k nearest. A `BatchEasyHardMiner` or `NearestNegativeMiner` handed in as `indices_tuple`
            sets them.
        k: of negatives="nearest". Those that are as far as the k-th, to rounding, all take part.
        similarity: "distance" (Euclidean, of normalised embeddings; the default),
            "squared_distance", "raw_distance", "raw_squared_distance", "cosine" or "dot".
        sort: whether a row of similarities is sorted once, so that only the pairs within the loss's
            window of a positive are evaluated one by one: None where a class is large enough for
            that to pay, True always, False never. On CUDA None is False, but for
            negatives="nearest". The result is the same to rounding: a sigmoid is cut off where it
            is within 1e-13 (float64: 3e-20) of 0 or 1.

    With reduction="sum" nothing is divided; "none" returns the sum of each row's triplets. Other
    arguments: see `SampleLoss`.
    """

    default_similarity = "distance"

    def __init__(
        self,
        margin: float = 0.05,
        smooth_loss: bool = False,
        normalizer: str = "active",
        positives: str = "all",
        negatives: str = "all",
        k: int = 1,
        sort: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.margin = margin
        self.smooth_loss = smooth_loss
        self.normalizer = normalizer
        self.positives = positives
        self.negatives = negatives
        self.k = k
        self.sort = sort
        self.description()  # checks the parameters

    def description(self) -> TripletMargin:
        return TripletMargin(
            self.margin,
            self.smooth_loss,
            self.normalizer,
            self.positives,
            self.negatives,
            self.k,
            similarity=self.similarity,
            sort=self.sort,
        )


def triplet_margin(
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: object = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.05,
    smooth_loss: bool = False,
    normalizer: str = "active",
    positives: str = "all",
    negatives: str = "all",
    k: int = 1,
    sort: bool | None = None,
    similarity: str = "distance",
    **options: Any,
) -> Tensor:
    """Triplet margin loss as a function; see `TripletMarginLoss`. options: see `sample_loss`."""
    description = TripletMargin(
        margin, smooth_loss, normalizer, positives, negatives, k, similarity=similarity, sort=sort
    )
    return sample_loss(
        description, embeddings, labels, indices_tuple, ref_emb, ref_labels, **options
    )
