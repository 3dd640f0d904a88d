"""The losses that compare the samples of a batch with each other."""

from __future__ import annotations

from ..engine.loss import RowLoss
from ..mining.miners import MultiSimilarityMiner
from . import MODULES
from .base import SampleLoss


def of_defaults() -> list[RowLoss]:
    """Their descriptions, of each with its defaults where it has any, and as multi-similarity's miner makes
    them."""
    found: list[RowLoss] = []
    for module in MODULES.values():
        if issubclass(module, SampleLoss):
            try:
                plain = module().description()
            except (TypeError, ValueError):  # an argument has no default
                continue
            mined = plain.with_rule(MultiSimilarityMiner().rule())
            found += [plain] if mined is None else [plain, mined]
    return found
