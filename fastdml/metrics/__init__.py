"""Exact retrieval metrics from one sweep, in memory linear in the number of items."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .evaluation import evaluate
from .result import Evaluation
from .retrieval import (
    alignment,
    ami,
    map_at_r,
    mean_average_precision,
    mean_reciprocal_rank,
    ndcg_at_k,
    nearest_neighbours,
    nmi,
    pair_auc,
    precision_at_k,
    r_precision,
    recall_at_k,
    retrieval_metrics,
    tar_at_far,
    uniformity,
)

if TYPE_CHECKING:
    from .accuracy_calculator import AccuracyCalculator
    from .stateful import RetrievalMetrics

_LATER = {"AccuracyCalculator": "accuracy_calculator", "RetrievalMetrics": "stateful"}

__all__ = [
    "AccuracyCalculator",
    "Evaluation",
    "RetrievalMetrics",
    "alignment",
    "ami",
    "evaluate",
    "map_at_r",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "ndcg_at_k",
    "nearest_neighbours",
    "nmi",
    "pair_auc",
    "precision_at_k",
    "r_precision",
    "recall_at_k",
    "retrieval_metrics",
    "tar_at_far",
    "uniformity",
]


def __getattr__(name: str) -> Any:
    """What builds on torchmetrics, where that is installed, is imported when it is asked for."""
    if name in _LATER:
        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
