"""The contrastive row: a pair against what it is told from, with every option of InfoNCE, as one function of
the row language."""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any, Literal

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language.described import Described
from ...language.row import Row
from ...language.words import (
    count,
    detach,
    equal,
    exp,
    log,
    log_sum_exp,
    lowest,
    maximum,
    softplus,
    sum,
    where,
)
from ..presweeps import LogSumExp

__all__: list[str] = []

# 64 bits of an id in numbers that float32 holds exactly.
_IDS = ("id 0", "id 1", "id 2")
_BITS = 22
# The level of no pair, such that levels of many rows have a sum.
NOTHING = -1e30
# The least share of a sum that has a logarithm.
_TINY = 1e-37


def pieces(ids: Tensor) -> Tensor:
    """[3, N] float32 of int64 ids [N], equal where the ids are: what `identified` reads of rows and of
    columns."""
    low = (1 << _BITS) - 1
    parts = [ids >> 2 * _BITS, (ids >> _BITS) & low, ids & low]
    return torch.stack(parts).to(torch.float32)


@register
@dataclasses.dataclass(frozen=True)
class Contrast(Described):
    """Cross-entropy of a pair against the row's other candidates, and against what lies outside the matrix.

    With z = t s (t the learnable scalar), N the row's negatives that count, and H the log of the sum of
    exponentials of what is outside:

        level = log(exp(z_own) + sum_N exp(z_j) + exp(H))       loss = level - z_own

    part: "loss", or "level": log(sum_N exp(z_j)) alone, `NOTHING` over none, for the row of another matrix.
    below, guided: negatives count up to a limit of the row only: of s, or of the teacher's.
    identified: negatives of the row's own id do not count.
    weighted: the negatives' exponentials have weights, whose logarithms are given by column.
    outside: H is given, and the number of what it sums and the sum of their z.
    decoupled: the pair itself is not in its denominator.
    hardness: None, or beta: negatives weigh exp(beta z) over the mean of that.
    prior: None, or tau: the share of the negatives that are positives after all, taken out of their sum.
    smoothing: None, or the share of the target that is spread evenly over all candidates.
    columns_weight: None, or that of the columns' plain cross-entropies, as in `InfoNCE`, rows' being 1 - it.

    Rows without a positive, or without anything to tell it from, have a loss of 0.
    """

    name = "contrast"
    provenance = "sentence-transformers"
    learnable = (10.0,)
    derived = ("sign",)

    part: Literal["loss", "level"] = "loss"
    below: bool = False
    guided: bool = False
    identified: bool = False
    weighted: bool = False
    outside: bool = False
    decoupled: bool = False
    hardness: float | None = None
    prior: float | None = None
    smoothing: float | None = None
    columns_weight: float | None = None

    def __post_init__(self) -> None:
        check.one_of(self.part, "part", ("loss", "level"))

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [
            cls(below=True, identified=True, outside=True, smoothing=0.1),
            cls(guided=True, weighted=True, outside=True, hardness=0.5, prior=0.1),
            cls(outside=True, columns_weight=0.5),
            cls("level", below=True, decoupled=True),
            cls(outside=True, columns_weight=0.5, similarity="distance"),
        ]

    @property
    def teacher_similarity(self) -> str | None:  # type: ignore[override]
        return "cosine" if self.guided else None

    # Where a number of the row or of a column stands among those that are given.

    @property
    def of_rows(self) -> tuple[str, ...]:
        names = ["limit"] * self.below + ["guide limit"] * self.guided
        names += list(_IDS) if self.identified else []
        if self.outside:
            names += ["level", "level of hardness"] if self.hardness is not None else ["level"]
            names += ["count", "sum"]
        return tuple(names)

    @property
    def of_columns(self) -> tuple[str, ...]:
        names = list(_IDS) if self.identified else []
        return (*names, *["log weight"] * self.weighted)

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        found = super().example_values(rows, columns)
        if self.of_rows:
            made = {
                "limit": torch.linspace(0.1, 0.9, rows),
                "guide limit": torch.linspace(0.8, -0.2, rows),
                "level": torch.linspace(-3.0, 9.0, rows),
                "level of hardness": torch.linspace(-1.0, 5.0, rows),
                "count": torch.arange(rows) % 4,
                "sum": torch.linspace(-4.0, 4.0, rows) * (torch.arange(rows) % 4 > 0),
            }
            made |= dict.fromkeys(_IDS, torch.arange(rows) % 3)
            found["row_values"] = torch.stack([made[n].float() for n in self.of_rows], dim=1)
        if self.of_columns:
            of_columns = [torch.arange(columns) % 3] * (len(self.of_columns) - self.weighted)
            if self.weighted:
                of_columns.append(torch.linspace(-1.0, 1.0, columns))
            found["col_values"] = torch.stack([v.float() for v in of_columns])
        return found

    @property
    def plain_columns(self) -> bool:
        """Whether what is beside a plain softmax is the rows' alone, so that columns may have one besides."""
        corrected = (self.hardness, self.prior, self.smoothing) != (None, None, None)
        return not (corrected or self.below or self.guided or self.identified or self.decoupled)

    def presweep(self) -> RowLoss | None:
        if self.columns_weight is None:
            return None
        return LogSumExp(self.metric.sign, learnable_scale=True, similarity=self.similarity)

    def row(self, p: Row) -> Any:
        scale = p.scalar(0)
        z = self.sign * scale * p.s
        kept = self._kept(p)
        if self.part == "level":
            return maximum(log_sum_exp(self._weighed(p, z), where=kept), NOTHING)
        positives = count(where=p.positive)
        own = sum(z, where=p.positive) / maximum(positives, 1.0)
        others = count(where=kept)
        if self.outside:
            others = others + self._of_row(p, "count")
        level = self._level(p, z, kept, own, others, scale)
        loss = level - own
        if self.smoothing is not None:
            all_z = own + sum(z, where=kept)
            if self.outside:
                all_z = all_z + self._of_row(p, "sum")
            loss = loss + self.smoothing * (own - all_z / (others + 1.0))
        loss = where((positives > 0) & (others > 0), loss, 0.0)
        if self.columns_weight is None:
            return loss
        columns = of_columns(p, z, len(self.of_columns))
        return (1.0 - self.columns_weight) * loss + self.columns_weight * columns

    def _of_row(self, p: Row, name: str) -> Any:
        return p.row_value(self.of_rows.index(name))

    def _of_column(self, p: Row, name: str) -> Any:
        return p.column(self.of_columns.index(name))

    def _weighed(self, p: Row, z: Any) -> Any:
        """z and the logarithm of the negative's weight."""
        return z + self._of_column(p, "log weight") if self.weighted else z

    def _kept(self, p: Row) -> Any:
        """The negatives that count."""
        kept = p.negative
        if self.below:
            kept = kept & (self.sign * p.s <= self._of_row(p, "limit"))
        if self.guided:
            kept = kept & (p.teacher <= self._of_row(p, "guide limit"))
        if self.identified:
            for_each = [equal(self._of_column(p, n), self._of_row(p, n)) for n in _IDS]
            kept = kept & ~functools.reduce(operator.and_, for_each)
        return kept

    def _level(self, p: Row, z: Any, kept: Any, own: Any, others: Any, scale: Any) -> Any:
        """The log of the denominator."""
        if self.hardness is None and self.prior is None and not self.decoupled:
            # A softmax over all; the pair's own column has no weight.
            inside = where(p.positive, z, self._weighed(p, z)) if self.weighted else z
            level = log_sum_exp(inside, where=p.positive | kept)
            return _joined(level, self._of_row(p, "level")) if self.outside else level
        if self.hardness is None:
            level = self._with_outside(p, log_sum_exp(self._weighed(p, z), where=kept), "level")
        else:
            # Importance weights exp(beta z) over their mean.
            hard = log_sum_exp(self._weighed(p, (1.0 + self.hardness) * z), where=kept)
            mean = log_sum_exp(self._weighed(p, self.hardness * z), where=kept)
            hard = self._with_outside(p, hard, "level")
            mean = self._with_outside(p, mean, "level of hardness")
            level = hard - mean + log(maximum(others, 1.0))
        if self.prior is not None:
            level = self._debiased(level, own, others, scale)
        return level if self.decoupled else _joined(own, level)

    def _with_outside(self, p: Row, level: Any, name: str) -> Any:
        if not self.outside:
            return level
        beyond = self._of_row(p, name)
        # The level of no pair is no number to add to.
        return where(level > 0.5 * lowest(level), _joined(level, beyond), beyond)

    def _debiased(self, level: Any, own: Any, others: Any, scale: Any) -> Any:
        """The log of (sum - tau N exp(z_own)) / (1 - tau), or of N exp(-t) where that is more."""
        assert self.prior is not None
        top = detach(maximum(level, own))
        share = (exp(level - top) - self.prior * others * exp(own - top)) / (1.0 - self.prior)
        least = log(maximum(others, 1.0)) - scale
        found = top + log(maximum(share, _TINY))
        return where(share > _TINY, maximum(found, least), least)


def of_columns(p: Row, z: Any, first: int = 0) -> Any:
    """What a row adds to the columns' cross-entropies, as `InfoNCE` explains: no derivative goes through the
    columns' levels, in which all is stationary. first: which value of a column its level is; its number of
    positives is the next."""
    level, number = detach(p.column(first)), detach(p.column(first + 1))
    own = sum(level, where=p.positive) - sum(z, where=p.positive)
    # In a column without positives nobody asked for its level.
    gap = where(number > 0, z - level, 0.0)
    mass = sum(number * exp(gap), where=p.pair & (number > 0))
    return own + mass - count(where=p.positive)


def _joined(a: Any, b: Any) -> Any:
    """log(exp(a) + exp(b)), of a number a and of b, which may be the most negative one."""
    return a + softplus(b - a)
