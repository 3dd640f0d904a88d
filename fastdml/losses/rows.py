"""Terms that several losses share, in the words of the row language."""

from __future__ import annotations

from typing import Any

from ..language import words as of
from ..language.row import Row


def cross_entropy_of(p: Row, z: Any, target: Any) -> Any:
    """`terms.cross_entropy` of a row whose own class is its one positive."""
    valid = (of.count(where=p.positive) > 0) & (of.count(where=p.negative) > 0)
    gap = of.where(valid, of.log_sum_exp(z, where=p.negative), 0.0) - target
    return of.where(valid, of.softplus(gap), 0.0)
