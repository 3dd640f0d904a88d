"""Softmax cross-entropy of the mean likelihood of several draws: what nivMF's rows are."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, count, log_sum_exp, softplus, sum, where
from ...language.described import Described


@register
@dataclasses.dataclass(frozen=True)
class ExpectedSoftmax(Described):
    """SPEC 2.19. Every `draws` rows in turn are draws of one sample, columns are classes, each with a bias;
    the loss is the mean over samples of log sum_(t, c) exp z_tc - log sum_t exp z_(t, target).

    A row hands on the cross-entropy of its own softmax, which keeps its digits, and its target's logit.
    """

    name = "expected_softmax"
    columns = "proxies"
    column_bias = True
    outputs = 2
    grouped = True
    unread = ("draws",)

    draws: int = 1
    similarity: str = dataclasses.field(default="dot", kw_only=True)

    def __post_init__(self) -> None:
        check.count(self.draws, "draws")

    @property
    def rows_together(self) -> int:
        return self.draws

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls()]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        return {"col_values": torch.linspace(-1, 1, columns)[None]}

    def row(self, p: Row) -> Any:
        z = p.s + p.column(0)
        target = sum(z, where=p.positive)
        valid = (count(where=p.positive) > 0) & (count(where=p.negative) > 0)
        gap = where(valid, log_sum_exp(z, where=p.negative) - target, 0.0)
        return where(valid, softplus(gap), 0.0), target

    def combine(self, outputs: Tensor, reduction: str) -> Tensor:
        single, target = outputs.view(-1, self.draws, 2).unbind(2)
        return ((single + target).logsumexp(1) - target.logsumexp(1)).mean()
