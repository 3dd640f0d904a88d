"""The losses as plain functions: `functional.multi_similarity(embeddings, labels, ...)`.

Every loss file exports its function; this module gathers them.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .losses import FUNCTIONS

globals().update(FUNCTIONS)
__all__ = sorted(FUNCTIONS)


def __getattr__(name: str) -> Callable[..., Tensor]:
    raise AttributeError(f"fastdml.functional has no loss {name!r}; it has {', '.join(__all__)}")
