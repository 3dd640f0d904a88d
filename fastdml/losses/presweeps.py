"""Statistics of columns that losses read of the other sample of a pair (`RowLoss.presweep`)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..engine.counting import row_counts
from ..engine.loss import RowLoss, Rows
from ..language import words as of
from ..language.row import Row
from .terms import log_sum_exp


@dataclasses.dataclass(frozen=True)
class LogSumExp(RowLoss):
    """Log of the sum of exp(scale s + offset) over a row's pairs, or over its negatives only; and the
    number of its positives.

    learnable_scale: the scale is times the call's first scalar.
    """

    name = "log_sum_exp"
    outputs = 2

    scale: float = 1.0
    offset: float = 0.0
    negatives_only: bool = False
    learnable_scale: bool = False

    def row(self, p: Row) -> Any:
        scale = self.scale * p.scalar(0) if self.learnable_scale else self.scale
        members = p.negative if self.negatives_only else p.pair
        level = of.log_sum_exp(scale * p.s + self.offset, where=members)
        return level, of.count(where=p.positive)

    def spec(self, rows: Rows) -> Tensor:
        scale: Tensor | float = self.scale
        if self.learnable_scale:
            assert rows.scalars is not None
            scale = self.scale * rows.scalars[0]
        members = rows.negative if self.negatives_only else rows.positive | rows.negative
        level = log_sum_exp(scale * rows.s + self.offset, members)
        return torch.stack([level, row_counts(rows.positive).to(level.dtype)], dim=1)
