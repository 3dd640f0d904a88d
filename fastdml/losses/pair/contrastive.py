"""Contrastive loss with two margins."""

from __future__ import annotations

import dataclasses
from numbers import Real
from typing import Any

from torch import Tensor

from ...engine import check
from ...engine.lazy import lazy
from ...engine.loss import Piece, RowLoss, Rows
from ...engine.registry import register
from ...language import Row, count, relu, sum
from ...language.described import Described
from ..base import SampleLoss
from ..terms import share

__all__ = ["CalibrationLoss", "ContrastiveLoss"]

AGGREGATIONS = ("active", "pairs", "rows", "batch")


@register
@dataclasses.dataclass(frozen=True)
class Contrastive(Described):
    """Sums of the positive and the negative hinge, and how many terms each is divided by.

    pos_aggregation, neg_aggregation: what a sum is divided by: its number of terms above 0 ("active"),
        of "pairs", or the size of the "batch"; "rows": a mean per row, then over the rows with a pair.
    squared: the hinges' squares. relative: numbers are times row_values[:, 0] first.
    least_positive, most_negative: None; or positives count that are farther than this, and negatives that
        are nearer than this: a miner's rule.
    """

    name = "contrastive"
    provenance = "pytorch-metric-learning"
    outputs = 4
    additive = True
    graded = True
    derived = ("sign", "floor_p", "floor_n")
    unread = ("pos_aggregation", "neg_aggregation", "pos_weight", "neg_weight")
    numbers = ("squared",)

    pos_margin: float = 0.0
    neg_margin: float = 1.0
    pos_aggregation: str = "active"
    neg_aggregation: str = "active"
    squared: bool = False
    pos_weight: float = 1.0
    neg_weight: float = 1.0
    relative: bool = False
    least_positive: float | None = None
    most_negative: float | None = None
    similarity: str = dataclasses.field(default="distance", kw_only=True)

    def __post_init__(self) -> None:
        check.finite(self.pos_margin, "pos_margin")
        check.finite(self.neg_margin, "neg_margin")
        for name in ("least_positive", "most_negative"):
            if getattr(self, name) is not None:
                check.finite(getattr(self, name), name)

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [
            cls(),
            cls(0.3, 1.2, "pairs", "pairs", similarity="raw_squared_distance"),
            cls(0.9, 0.1, similarity="cosine"),
            cls(0.3, 0.9, similarity="ball_distance"),  # 1 is the distance of the origin to the sphere
            cls(0.1, 1.1, least_positive=0.5, most_negative=1.3),
        ]

    @property
    def symmetric(self) -> bool:  # type: ignore[override]
        """Unless a row weighs its terms: by its own number of them, or by its own unit."""
        return not self.relative and "rows" not in (self.pos_aggregation, self.neg_aggregation)

    @lazy
    def floor_p(self) -> float:
        """What a positive's term is above if it is counted."""
        return 0.0 if self.pos_aggregation == "active" else -float("inf")

    @lazy
    def floor_n(self) -> float:
        return 0.0 if self.neg_aggregation == "active" else -float("inf")

    def row(self, p: Row) -> Any:
        s = p.s * p.row_value(0) if self.relative else p.s
        positive, negative = self._kept(p)
        pull, push = self.sign * (self.pos_margin - s), self.sign * (s - self.neg_margin)
        return (
            sum(p.graded(self._hinge(pull)), where=positive),
            sum(self._hinge(push), where=negative),
            sum(p.grade, where=positive & (pull > self.floor_p)),
            count(where=negative & (push > self.floor_n)),
        )

    def _hinge(self, term: Any) -> Any:
        cost = relu(term)
        if isinstance(self.squared, Real):
            return cost * cost if self.squared else cost
        return cost * (1 - self.squared + self.squared * cost)  # a number that stays open

    def _kept(self, p: Any) -> tuple[Any, Any]:
        """The positives and the negatives that count, of a row or of rows."""
        positive, negative = p.positive, p.negative
        if self.least_positive is not None:
            positive = positive & (self.sign * p.s < self.sign * self.least_positive)
        if self.most_negative is not None:
            negative = negative & (self.sign * p.s > self.sign * self.most_negative)
        return positive, negative

    def pieces(self, rows: Rows) -> dict[str, Piece]:
        s = rows.s
        positive, negative = self._kept(rows)
        if self.relative:
            assert rows.row_values is not None
            s = s * rows.row_values[:, :1]
        pull = self._cost(self.sign * (self.pos_margin - s), self.pos_weight)
        push = self._cost(self.sign * (s - self.neg_margin), self.neg_weight)
        return {
            "pos_loss": Piece("pos_pair", pull, positive),
            "neg_loss": Piece("neg_pair", push, negative),
        }

    def _cost(self, term: Tensor, weight: float) -> Tensor:
        """What pairs beyond a margin by these numbers cost."""
        return _times(weight, self._hinge(term))

    def combine(self, outputs: Tensor, reduction: str) -> Tensor:
        pull, push, pulls, pushes = outputs.double().unbind(1)
        if reduction == "sum":
            pulled, pushed = pull.sum(), push.sum()
        else:
            pulled = _aggregate(pull, pulls, self.pos_aggregation)
            pushed = _aggregate(push, pushes, self.neg_aggregation)
        total = _times(self.pos_weight, pulled) + _times(self.neg_weight, pushed)
        return total.to(outputs.dtype)


@register
@dataclasses.dataclass(frozen=True)
class Calibration(Contrastive):
    """SPEC 2.10."""

    name = "calibration"
    provenance = "released code"

    pos_margin: float = 0.9
    neg_margin: float = 0.6
    similarity: str = dataclasses.field(default="cosine", kw_only=True)

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls()]


def _aggregate(sums: Tensor, counts: Tensor, aggregation: str) -> Tensor:
    """One number of the rows' sums and counts [M]. Counts are constants; no term at all gives 0."""
    counts = counts.detach()
    if aggregation == "batch":
        return sums.sum() / sums.shape[0]
    if aggregation == "rows":
        return share(sums, counts).sum() / (counts > 0).sum().clamp(min=1)
    return share(sums.sum(), counts.sum())


def _times(weight: float, x: Tensor) -> Tensor:
    return x if weight == 1 else weight * x


def aggregation_of(reduction: str) -> str:
    """How each of the two sums is divided under a reduction."""
    if reduction == "none":
        raise ValueError(
            "reduction: a contrastive loss has no row losses; expected 'nonzero', 'mean' or 'sum'"
        )
    return "active" if reduction == "nonzero" else "pairs"


class TwoSums(SampleLoss):
    """A loss of two margins: what positives and what negatives are beyond theirs, each summed and divided."""

    mean_over = "pairs of each kind"
    reductions = ("nonzero", "mean", "sum")  # of two sums of the batch, which are no rows
    part_names = ("pos_loss", "neg_loss")

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

    def described(self, describes: type[Contrastive], **fields: Any) -> Contrastive:
        """The description of these margins and this reduction."""
        aggregation = aggregation_of(self.reduction)
        return describes(self.pos_margin, self.neg_margin, aggregation, aggregation, **fields)


class ContrastiveLoss(TwoSums):
    """Contrastive loss with two margins.

    *Dimensionality Reduction by Learning an Invariant Mapping*, Hadsell et al., CVPR 2006, in the
    form without squares: [d - pos_margin]_+ over positives plus [neg_margin - d]_+ over negatives.

    Args:
        pos_margin, neg_margin: in units of `similarity`.
        similarity: "distance" (Euclidean, of normalised embeddings; the default),
            "squared_distance", "raw_distance" and "raw_squared_distance" (not normalised),
            "ball_distance" (of x / max(|x|, 1), as *Deep Metric Learning with Chance Constraints*,
            Gurbuz et al., 2022, arXiv 2209.09060, has it), or "cosine" and "dot", on which the loss is
            [pos_margin - s]_+ + [s - neg_margin]_+.
        reduction: "nonzero" (the default) divides each sum by its number of terms above 0, "mean" by
            its number of pairs; "sum" does not divide.

    Other arguments: see `SampleLoss`.
    """

    function = "contrastive"
    open = ("pos_margin", "neg_margin")
    default_similarity = "distance"

    def description(self) -> Contrastive:
        return self.described(Contrastive, similarity=self.similarity)


class CalibrationLoss(ContrastiveLoss):
    """The calibration term of ROADMAP: a contrastive loss on cosine similarities.

    *Robust and Decomposable Average Precision for Image Retrieval*, Ramzi et al., NeurIPS 2021 (arXiv
    2110.01445), equation 8. Arguments as `ContrastiveLoss`.
    """

    function = "calibration"
    default_similarity = "cosine"

    def __init__(self, pos_margin: float = 0.9, neg_margin: float = 0.6, **kwargs: Any) -> None:
        super().__init__(pos_margin, neg_margin, **kwargs)

    def description(self) -> Contrastive:
        return self.described(Calibration, similarity=self.similarity)
