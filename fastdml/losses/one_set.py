"""The losses that compare the samples of a batch with each other."""

from __future__ import annotations

from ..engine.loss import RowLoss
from . import MODULES
from .base import SampleLoss


def of_defaults() -> list[RowLoss]:
    """Their descriptions, of each with its defaults where it has any."""
    found: list[RowLoss] = []
    for module in MODULES.values():
        if issubclass(module, SampleLoss):
            try:
                found.append(module().description())
            except (TypeError, ValueError):  # an argument has no default
                continue
    return found
