"""Angular loss."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import statistic_type
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...engine.similarity import unit
from ...engine.summed import values_of
from ...language import log_sum_exp
from ...language.described import Described
from ...language.row import Row
from ...mining.batch import Batch
from ...mining.pairs import positive_pairs
from ..base import SampleLoss, Term
from ..reduced import Elements
from ..terms import nothing

__all__ = ["AngularLoss"]


@register
@dataclasses.dataclass(frozen=True)
class Angular(Described):
    """A row is the sum of a positive pair, against what is negative to it. row_value 0: what its own product
    takes off the exponents. `scale` is 4 tan^2 alpha."""

    name = "angular"
    provenance = "pytorch-metric-learning, its negatives normalised"

    scale: float = 4 * math.tan(math.radians(40)) ** 2
    similarity: str = dataclasses.field(default="dot", kw_only=True)

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(similarity="cosine"), cls(0.5, similarity="cosine")]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        return {"row_values": torch.linspace(-1.5, 3.0, rows)[:, None]}

    def row(self, p: Row) -> Any:
        return log_sum_exp(self.scale * p.s - p.row_value(0), where=p.negative, one=True)


class AngularLoss(SampleLoss):
    """Angular loss.

    *Deep Metric Learning with Angular Loss*, Wang et al., ICCV 2017 (arXiv 1708.01682), equation 8, of
    normalised embeddings: the mean over positive pairs (a, p) of

        log(1 + sum_N exp(4 tan^2(alpha) (a + p).n - 2 (1 + tan^2(alpha)) a.p))

    over the candidates n of another label than a. In two sets, p and n are candidates.

    Args:
        alpha: the angle, in degrees, in (0, 90).

    A list of `indices_tuple` names the positive pairs; negatives come from labels. No positive pair, or no
    negative: 0. O(pairs) rows of sums a + p are made. Other arguments: see `SampleLoss`.
    """

    function = "angular"
    mean_over = "positive pairs"
    default_similarity = "distance"
    similarities = ("distance",)
    reductions = ("mean", "sum")  # of pairs
    reducers = {"MeanReducer": "mean"}

    def __init__(self, alpha: float = 40, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha = alpha
        self.description()  # checks the parameters

    def description(self) -> Angular:
        check.number(self.alpha, "alpha", "an angle in (0, 90) degrees", lambda v: 0 < v < 90)
        return Angular(4 * math.tan(math.radians(self.alpha)) ** 2)

    def calls(self, *batch: Any, own: int | Tensor | None = None) -> list[Any]:
        description, found = self.resolved(*batch, own=own)
        if found.predicate is None:
            found.need_labels()
            if found.column_labels is None:
                raise ValueError("ref_labels: expected one label per row of ref_emb, got None")
        ordered = self.gives_elements
        with torch.no_grad():
            a, p = positive_pairs(found, once=not ordered)
        # A graph does not know how many pairs there are; a list without negatives has no loss.
        known = not torch.compiler.is_compiling()
        if (known and a.shape[0] == 0) or (found.pairs and found.pairs[2].shape[0] == 0):
            return [Term(nothing, (found.embeddings, found.ref_emb))]
        # Rows of one set count once for both orders.
        halved = not (ordered or found.listed or found.predicate or found.ref_emb is not None)
        weight = 2.0 if self.reduction == "sum" and halved else 1.0
        return [self.pair_call(description, found, a, p, weight)]

    def pair_call(
        self, description: Angular, batch: Batch, a: Tensor, p: Tensor, weight: float
    ) -> Elements:
        """The call of the positive pairs (a, p)."""
        kind = statistic_type(batch.embeddings, batch.ref_emb)
        x = unit(batch.embeddings.to(kind))
        y = x if batch.ref_emb is None else unit(batch.ref_emb.to(kind))
        one, other = values_of(x, a), values_of(y, p)
        tangent = description.scale / 4
        own = 2 * (1 + tangent) * (one * other).sum(1, keepdim=True)
        call = self.call(
            description,
            one + other,
            candidates=y,
            row_values=own,
            weight=weight,
            **_negatives(batch, a),
        )
        return Elements(call, (a, p), "pos_pair")


def _negatives(batch: Batch, a: Tensor) -> dict[str, Any]:
    """What says which candidates are negative to the anchors a [P] of rows."""
    if batch.predicate is None:
        return {"anchor_labels": batch.need_labels()[a], "candidate_labels": batch.column_labels}
    predicate, own = batch.predicate, batch.own_columns()

    def of_pairs(rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
        positive, negative, *weight = predicate(a[rows], columns)
        return positive, negative & (own[a[rows]][:, None] != columns), *weight

    return {"predicate": of_pairs}
