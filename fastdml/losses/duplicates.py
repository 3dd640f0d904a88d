"""Positives that are duplicates of their anchor, which some released code drops."""

from __future__ import annotations

from typing import ClassVar

from ..engine import check
from .base import SampleLoss


class DroppingDuplicates(SampleLoss):
    """A loss whose variant "released" drops positives of similarity `duplicate` and above."""

    duplicate: ClassVar[float] = 1 - 1e-5
    variant: str

    @property
    def max_positive(self) -> float:
        """The similarity below which positives count; infinity for the paper, which drops none."""
        check.variant(self.variant)
        return self.duplicate if self.variant == "released" else float("inf")
