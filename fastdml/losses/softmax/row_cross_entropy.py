"""The description behind the losses that compare a row's softmax with its positives."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...language import words as of
from ...language.row import Row
from ..terms import log_sum_exp, rows_per, share

PER = ("positives", "candidates", "pairs", "row")


@dataclasses.dataclass(frozen=True)
class RowCrossEntropy(RowLoss):
    """push * log sum exp(s / temperature) - pull * (sum over positives of s / temperature) / divisor.

    per: the divisor is the row's number of "positives", its number of "candidates", the "pairs" of the
        batch that are positive per row (a mean over pairs), or 1 (per "row").
    needs_positive: rows without positives have a loss of 0.
    negatives_only: positives are left out of the sum of exponentials.
    log_mean: of the mean of exponentials instead of their sum.

    A subclass has the name of one of the functors that csrc/rows/row_cross_entropy.h lists.
    """

    temperature: float = 0.1
    pull: float = 1.0
    push: float = 1.0
    per: Literal["positives", "candidates", "pairs", "row"] = "positives"
    needs_positive: bool = True
    negatives_only: bool = False
    log_mean: bool = False

    def __post_init__(self) -> None:
        check.positive(self.temperature, "temperature")

    @property
    def graded(self) -> bool:  # type: ignore[override]
        return self.per != "pairs"  # whose number is counted before there are weights

    @property
    def unlisted(self) -> bool:  # type: ignore[override]
        return self.per == "candidates"

    @property
    def scale(self) -> float:
        return self.metric.sign / self.temperature

    def parameters(self) -> tuple[float, ...]:
        flags = (self.needs_positive, self.negatives_only, self.log_mean)
        return (self.scale, self.pull, self.push, PER.index(self.per), *map(float, flags))

    def count_scalars(self, positives: Tensor, negatives: Tensor) -> Tensor | None:
        return rows_per(positives) if self.per == "pairs" else None

    def row(self, p: Row) -> Any:
        z = self.scale * p.s
        members = p.negative if self.negatives_only else p.pair
        count = of.count(where=members)
        level = of.log_sum_exp(z, where=members)
        if self.log_mean:
            level = level - of.log(of.maximum(count, 1.0))
        entropy = of.where(count > 0, level, 0.0)
        positives = of.count(where=p.positive)
        target = of.sum(z, where=p.positive)
        if self.per == "positives":
            target = target / of.maximum(positives, 1.0)
        elif self.per == "candidates":
            target = target / of.maximum(of.count(where=p.pair), 1.0)
        elif self.per == "pairs":
            target = target * p.scalar(0)
        loss = self.push * entropy - self.pull * target
        return of.where(positives > 0, loss, 0.0) if self.needs_positive else loss

    def spec(self, rows: Rows) -> Tensor:
        z = self.scale * rows.s
        members = rows.negative if self.negatives_only else rows.positive | rows.negative
        level = log_sum_exp(z, members)
        count = members.sum(1)
        if self.log_mean:
            level = level - count.clamp(min=1).to(z.dtype).log()
        entropy = torch.where(count > 0, level, torch.zeros_like(level))
        grades = rows.grades
        target = (z * grades).sum(1)
        positives = rows.positive.sum(1)
        if self.per == "positives":
            target = share(target, grades.sum(1))
        elif self.per == "candidates":
            target = target / max(1, rows.s.shape[1] - (rows.pair is not None))
        elif self.per == "pairs":
            assert rows.scalars is not None
            target = target * rows.scalars[0]
        loss = self.push * entropy - self.pull * target
        if self.needs_positive:
            loss = torch.where(positives > 0, loss, torch.zeros_like(loss))
        return loss
