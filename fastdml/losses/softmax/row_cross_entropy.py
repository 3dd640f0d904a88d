"""The description behind the losses that compare a row's softmax with its positives."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from torch import Tensor

from ...engine import check
from ...language import Row, amax, apart, count, detach, log, log_sum_exp, maximum, sum, where
from ...language.described import Described, Positive
from ..terms import rows_per


@dataclasses.dataclass(frozen=True)
class RowCrossEntropy(Described):
    """push * log sum exp(s / temperature) - pull * (sum over positives of s / temperature) / divisor.

    per: the divisor is the row's number of "positives", its number of "candidates", the "pairs" of the
        batch that are positive per row (a mean over pairs), or 1 (per "row").
    needs_positive: rows without positives have a loss of 0.
    negatives_only: positives are left out of the sum of exponentials.
    log_mean: of the mean of exponentials instead of their sum.
    """

    derived = ("sign",)

    temperature: Positive = 0.1
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
    def joint(self) -> bool:  # type: ignore[override]
        return not self.negatives_only

    def count_scalars(self, positives: Tensor, negatives: Tensor) -> Tensor | None:
        return rows_per(positives) if self.per == "pairs" else None

    def row(self, p: Row) -> Any:
        s, scale = self.sign * p.s, 1 / self.temperature
        members = p.negative if self.negatives_only else p.pair
        count_ = count(where=members)
        positives = sum(p.grade, where=p.positive)
        # With the largest exponent left out of both terms: a small loss of large logits keeps its digits.
        top = 0.0 if self.negatives_only else detach(amax(s, where=members))
        z = scale * apart(s - top)
        level = log_sum_exp(z, where=members)
        if self.log_mean:
            level = level - log(maximum(count_, 1))
        target = sum(p.graded(z), where=p.positive)
        share: Any = 1.0
        if self.per == "positives":
            share = 1 / where(positives > 0, positives, 1.0)
        elif self.per == "candidates":
            share = 1 / maximum(count(where=p.pair), 1)
        elif self.per == "pairs":
            share = p.scalar(0)
        # What the target's weights add up to: exactly 1 where it is a mean.
        whole = where(positives > 0, 1.0, 0.0) if self.per == "positives" else share * positives
        loss = self.push * level + (self.push - self.pull * whole) * scale * top
        loss = where(count_ > 0, loss, 0.0) - where(count(where=p.pair) > 0, self.pull * share * target, 0.0)
        return where(positives > 0, loss, 0.0) if self.needs_positive else loss
