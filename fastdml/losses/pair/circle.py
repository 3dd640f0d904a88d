"""Circle loss."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.registry import register
from ...engine.relation import Predicate, masks_of
from ...language import Row, count, detach, log_sum_exp, relu, softplus, where
from ...language.described import Described, Positive
from ...mining.batch import Batch
from ..base import PRODUCTS, SampleLoss
from ..terms import softplus as softplus_of

__all__ = ["CircleLoss"]


@register
@dataclasses.dataclass(frozen=True)
class Circle(Described):
    """SPEC 3.6, every row by itself. The pairs' own weights carry no gradient."""

    name = "circle"
    provenance = "pytorch-metric-learning"
    detaches = True

    m: float = 0.4
    gamma: Positive = 80.0

    def __post_init__(self) -> None:
        check.finite(self.m, "m")
        check.positive(self.gamma, "gamma")

    def logits(self, p: Row) -> tuple[Any, Any]:
        """Logs of the sums over positives and over negatives."""
        fixed = detach(p.s)
        z_p = -self.gamma * relu(1 + self.m - fixed) * (p.s - (1 - self.m))
        z_n = self.gamma * relu(fixed + self.m) * (p.s - self.m)
        return log_sum_exp(z_p, where=p.positive), log_sum_exp(z_n, where=p.negative)

    def row(self, p: Row) -> Any:
        pull, push = self.logits(p)
        kept = (count(where=p.positive) > 0) & (count(where=p.negative) > 0)
        return where(kept, softplus(where(kept, pull + push, 0.0)), 0.0)


@register
@dataclasses.dataclass(frozen=True)
class CircleGlobal(Circle):
    """One pair of sums for the whole matrix; unordered: every pair is in it twice but counts once."""

    name = "circle_global"
    provenance = "unofficial port"
    outputs = 2
    unread = ("unordered",)

    m: float = 0.25
    gamma: Positive = 256.0
    unordered: bool = True

    def row(self, p: Row) -> Any:
        return self.logits(p)

    def combine(self, outputs: Tensor, reduction: str) -> Tensor:
        total = outputs.double().logsumexp(0).sum()
        if self.unordered:
            total = total - 2 * math.log(2)
        return softplus_of(total).to(outputs.dtype)


_FORMS = {"rows": Circle, "global": CircleGlobal}


class CircleLoss(SampleLoss):
    """Circle loss.

    *Circle Loss: A Unified Perspective of Pair Similarity Optimization*, Sun et al., CVPR 2020 (arXiv
    2002.10857), equation 6: log(1 + sum_P exp(z_p) sum_N exp(z_n)) with

        z_p = -gamma [1 + m - s]_+ (s - (1 - m)),  z_n = gamma [s + m]_+ (s - m)

    in which s in the brackets is a constant for the gradient.

    Args:
        m: margin; gamma: scale > 0. None: the values for the form, 0.4 and 80 for rows, 0.25 and 256
            for the global one.
        form: "rows" (the default, as in pytorch-metric-learning): one such loss per anchor; rows that
            lack positives or negatives have 0. "global": one for all pairs of the batch, as the paper
            writes it; without `ref_emb` a pair counts once.
        reduction: "nonzero" (the default) averages the rows with a loss above 0. The global form has
            nothing to reduce.

    Other arguments: see `SampleLoss`.
    """

    function = "circle"
    similarities = PRODUCTS
    open = ("m", "gamma")

    def __init__(
        self,
        m: float | None = None,
        gamma: float | None = None,
        *,
        form: str = "rows",
        reduction: str = "nonzero",
        **kwargs: Any,
    ) -> None:
        super().__init__(reduction=reduction, **kwargs)
        if form == "global" and reduction == "none":
            raise ValueError(
                "reduction: the global form is one number; expected another kind than 'none'"
            )
        self.form = form
        usual = _FORMS[check.one_of(form, "form", tuple(_FORMS))]
        self.m = usual.m if m is None else m
        self.gamma = usual.gamma if gamma is None else gamma
        self.description()  # checks the parameters

    def description(self) -> Circle:
        kind = _FORMS[check.one_of(self.form, "form", tuple(_FORMS))]
        given = {k: v for k, v in (("m", self.m), ("gamma", self.gamma)) if v is not None}
        return kind(**given, similarity=self.similarity)

    def resolved(self, *batch: Any, own: int | Tensor | None = None) -> tuple[Any, Batch]:
        found, checked = super().resolved(*batch, own=own)
        if not isinstance(found, CircleGlobal):
            return found, checked
        if checked.ref_emb is None and not checked.pairs and checked.predicate is None:
            return found, checked
        # Of one set a list or a function may name a pair from either side or from both: it counts once.
        if checked.ref_emb is None and checked.predicate is not None:
            checked = checked.replace(predicate=_from_one_side(checked.predicate))
        elif checked.ref_emb is None:
            a1, p, a2, n = checked.pairs
            sides = (torch.minimum(a1, p), torch.maximum(a1, p), torch.minimum(a2, n), torch.maximum(a2, n))
            checked = checked.replace(pairs=sides)
        return dataclasses.replace(found, unordered=False), checked


def _from_one_side(function: Predicate) -> Predicate:
    """The pairs that a function names from either side, from the side of the smaller index."""

    def pairs(i: Tensor, j: Tensor) -> tuple[Tensor, ...]:
        positive, negative, weight = masks_of(function, i, j)
        turned_positive, turned_negative, turned_weight = masks_of(function, j, i)
        above = i[:, None] < j
        positive = (positive | turned_positive.t()) & above
        negative = (negative | turned_negative.t()) & above
        if weight is None or turned_weight is None:
            return positive, negative
        return positive, negative, torch.maximum(weight, turned_weight.t())

    return pairs
