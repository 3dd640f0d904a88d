"""What a caller of a sampler can get wrong, said in the caller's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..engine import check

Labels = torch.Tensor | np.ndarray | Sequence[Any]


def seed(value: Any) -> int:
    return check.whole(value, "seed", 0, check.LARGEST_SEED)


def labels(value: Labels, dimensions: int = 1, of: str = "sequence") -> np.ndarray:
    """The labels as a numpy array of so many dimensions, not empty."""
    if isinstance(value, torch.Tensor):
        value = check.array(value)
    try:
        found = np.asarray(value)
    except ValueError as error:  # rows of unequal length
        raise ValueError(f"labels: expected a {dimensions}-D {of}, got {error}") from None
    if check.mixed(value, found):
        raise ValueError("labels: expected numbers or strings, got a mixture")
    if found.ndim != dimensions or found.size == 0:
        raise ValueError(
            f"labels: expected a non-empty {dimensions}-D {of}, got shape {found.shape}"
        )
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise ValueError("labels: expected classes, got NaN or infinity among them")
    if found.dtype == object:
        for column in found.reshape(len(found), -1).T:
            _check_ordered(column)
    return found


def _check_ordered(values: np.ndarray) -> None:
    """ValueError for objects among which numpy finds no classes: None, NaN, numbers beside strings."""
    try:
        missing = any(v is None or v != v for v in values)
        if not missing:
            np.unique(values)
            return
    except (TypeError, ValueError):  # what has no order; pandas' NA is neither equal nor different
        pass
    raise ValueError(
        "labels: expected numbers or strings, got a mixture, or missing ones among them"
    )
