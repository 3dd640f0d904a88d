"""The rows of a batch, whatever containers they come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor


def count(batch: Any) -> int:
    """Rows of a nested batch: what all of its tensors, arrays and lists of items have.

    Raises:
        ValueError: they differ, or there is none.
    """
    sizes = {len(leaf): where for where, leaf in _leaves(batch, "batch")}
    if not sizes:
        raise ValueError(
            f"batch: expected tensors whose first dimension is the batch, got {type(batch).__name__}"
        )
    if len(sizes) > 1:
        (one, first), (other, second), *_ = sizes.items()
        raise ValueError(
            f"batch: expected the same number of rows everywhere, got {one} in {first} and {other} "
            f"in {second}"
        )
    return next(iter(sizes))


def part(batch: Any, start: int, stop: int) -> Any:
    """Rows ``start`` to ``stop`` in the same containers; what has no rows is passed on as it is."""
    if has_rows(batch):
        return batch[start:stop]
    return _each(batch, lambda value: part(value, start, stop))


def with_tensors(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Other tensors in the same containers."""
    if isinstance(batch, Tensor):  # one number too, which is no rows
        return change(batch)
    return batch if has_rows(batch) else _each(batch, lambda value: with_tensors(value, change))


def _each(batch: Any, change: Callable[[Any], Any]) -> Any:
    """The same container of changed items; what is none as it is."""
    if isinstance(batch, Mapping):
        return {key: change(value) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(change(value) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(change(value) for value in batch)
    return batch


def tensors(batch: Any) -> Iterator[Tensor]:
    """All tensors of a nested batch."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors(value)
    elif isinstance(batch, tuple | list):
        for value in batch:
            yield from tensors(value)


def has_rows(value: Any) -> bool:
    """Whether it is rows itself, rather than a container of such."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim > 0
    # A list of texts is rows, and so is a tuple, as which a DataLoader has the texts of pairs; a list of
    # tensors is what it makes of a tuple.
    some = isinstance(value, list) or (type(value) is tuple and len(value) > 0)
    return some and all(isinstance(item, str | bytes) for item in value)


def _leaves(batch: Any, where: str) -> Iterator[tuple[str, Any]]:
    if has_rows(batch):
        yield where, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _leaves(value, f"{where}[{key!r}]")
    elif isinstance(batch, tuple | list):
        for i, value in enumerate(batch):
            yield from _leaves(value, f"{where}[{i}]")
