"""Area under the ROC curve, by pairwise surrogates."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ..base import PRODUCTS, SampleLoss
from ..terms import rank_pairs, softplus, sort_code

__all__ = ["AUCLoss"]


_KINDS = {"huber": 0, "logistic": 1, "sigmoid": 2}


@register
@dataclasses.dataclass(frozen=True)
class AUC(RowLoss):
    """SPEC 2.17, baselines. A query is its own positive."""

    name = "auc"
    provenance = "released code"
    self_pair = "keep"
    outputs = 2
    counted = True
    threshold_list = True

    kind: str = "huber"
    temperature: float = 0.1
    sort: bool | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        sort_code(self.sort)
        check.one_of(self.kind, "kind", sorted(_KINDS))
        check.positive(self.temperature, "temperature")

    def parameters(self) -> tuple[float, ...]:
        return (float(_KINDS[self.kind]), self.temperature, sort_code(self.sort))

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [
            cls(),
            cls("huber", sort=True),
            cls("logistic", 0.03, sort=True),
            cls("sigmoid", 0.2),
        ]

    def spec(self, rows: Rows) -> Tensor:
        def cost(t: Tensor) -> Tensor:
            t = t / self.temperature
            if self.kind == "huber":
                u = (t + 1).relu()
                return torch.where(t > 0, 2 * u - 1, u * u)
            if self.kind == "logistic":
                return softplus(t) / math.log(2)
            return torch.sigmoid(t)

        total, positives, negatives = rank_pairs(rows, cost)
        pairs = positives * negatives
        return torch.stack([total / pairs.clamp(min=1), (pairs > 0).to(total.dtype)], dim=1)


class AUCLoss(SampleLoss):
    """Area-under-the-curve losses: every positive of a query against every negative.

    The baselines of *Exploring the Algorithm-Dependent Generalization of AUPRC Optimization with List
    Stability*, Wen et al., NeurIPS 2022 (arXiv 2209.13262). A query's loss is the mean over its
    positives p and negatives n of l(x), x = (s_p - s_n) / temperature, with

        huber:    0 for x >= 1, (x - 1)^2 for 0 <= x < 1, 1 - 2 x for x < 0
        logistic: log2(1 + exp(-x))
        sigmoid:  sigmoid(-x)

    and the loss is the mean over the queries that have a positive and a negative: with equal classes
    the released mean over all triples. A query counts among its own positives, as in the released
    code.

    Args:
        kind: "huber", "logistic" or "sigmoid".
        temperature: > 0. The released logistic and sigmoid forms have 1.
        sort: whether a row of similarities is sorted once, so that only the pairs within the loss's
            window of a positive are evaluated one by one: None where a class is large enough for
            that to pay, on CUDA for more than 256 candidates of one class; True always, False never.
            With None, rows of half and float32 may also be compared on a mesh on the CPU, where that
            costs less still (not for the Huber surrogate). The result is the same to rounding: a
            sigmoid is cut off where it is within 1e-13 (float64: 3e-20) of 0 or 1.

    Other arguments: see `SampleLoss`.
    """

    function = "auc"
    similarities = PRODUCTS
    mean_over = "queries with a positive and a negative"
    describes = AUC

    def __init__(
        self, kind: str = "huber", temperature: float = 0.1, sort: bool | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.kind = kind
        self.temperature = temperature
        self.sort = sort
        self.description()  # checks the parameters
