"""Terms that several losses share, in the words of the row language."""

from __future__ import annotations

from typing import Any

from ..language import words as of
from ..language.row import Row


def cross_entropy_of(
    p: Row, z: Any, target: Any, smoothing: float = 0.0, among: bool = True
) -> Any:
    """`terms.cross_entropy` of a row whose own class is its one positive."""
    valid = (of.count(where=p.positive) > 0) & (of.count(where=p.negative) > 0)
    gap = of.where(valid, of.log_sum_exp(z, where=p.negative), 0.0) - target
    loss = of.softplus(gap) if among else gap
    if smoothing > 0:
        others = of.sum(z, where=p.negative) / of.maximum(of.count(where=p.pair) - 1, 1.0)
        loss = loss + smoothing * (target - others)
    return of.where(valid, loss, 0.0)
