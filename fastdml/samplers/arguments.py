"""What a caller of a sampler can get wrong, said in the caller's words."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Labels = torch.Tensor | np.ndarray | Sequence[Any]

_LARGEST_SEED = 2**64 - 1
_MOST = 2**31 - 1  # of anything counted: what is drawn for an epoch is held in memory


def integer(name: str, value: Any, low: int, high: int = _MOST) -> int:
    """The integer, a numpy one or a tensor of one included; neither a bool nor a float."""
    expected = f"of at least {low}" if high == _MOST else f"from {low} to {high}"
    try:
        if not isinstance(value, bool | np.bool_):
            number = operator.index(value)
            if low <= number <= high:
                return number
    except (TypeError, ValueError):  # a string, None, a tensor of two
        pass
    raise ValueError(f"{name}: expected an integer {expected}, got {value!r}")


def seed(value: Any) -> int:
    return integer("seed", value, 0, _LARGEST_SEED)


def labels(value: Labels, dimensions: int = 1, of: str = "sequence") -> np.ndarray:
    """The labels as a numpy array of so many dimensions, not empty."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    try:
        found = np.asarray(value)
    except ValueError as error:  # rows of unequal length
        raise ValueError(f"labels: expected a {dimensions}-D {of}, got {error}") from None
    if found.ndim != dimensions or found.size == 0:
        raise ValueError(
            f"labels: expected a non-empty {dimensions}-D {of}, got shape {found.shape}"
        )
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise ValueError("labels: expected classes, got NaN or infinity among them")
    return found
