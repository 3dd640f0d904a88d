"""Bring your own loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..engine.loss import RowLoss, Rows
from ..engine.registry import handle
from .base import SampleLoss

__all__ = ["row_loss"]

RowFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class UserLoss(RowLoss):
    """A user's function as a description; equal only to itself (functions need not be hashable)."""

    fn: RowFunction
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def name(self) -> str:  # type: ignore[override]
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    def spec(self, rows: Rows) -> Tensor:
        self._expect_no_parameters(rows)
        losses = self.fn(rows.s, rows.positive, rows.negative)
        expected = (rows.s.shape[0],)
        if not isinstance(losses, Tensor) or tuple(losses.shape) != expected:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"fn: expected one loss per row, shape {expected}, from {self.name!r}, got {got}"
            )
        return losses.to(rows.s.dtype)

    def _expect_no_parameters(self, rows: Rows) -> None:
        """Only embeddings get a gradient: a parameter that the function reads would miss its own."""
        first = slice(0, 1)
        found = self.fn(rows.s.detach()[first], rows.positive[first], rows.negative[first])
        if isinstance(found, Tensor) and found.requires_grad:
            raise ValueError(
                f"fn: {self.name!r} reads a tensor that requires a gradient, but only embeddings get "
                "one; expected a function of s, positive and negative (detach that tensor)"
            )


class UserRowLoss(SampleLoss):
    """Module made by `row_loss`."""

    def __init__(self, fn: RowFunction, similarity: str = "cosine", **kwargs: Any) -> None:
        if not callable(fn):
            raise ValueError(f"fn: expected a function of (s, positive, negative), got {fn!r}")
        super().__init__(similarity=similarity, **kwargs)
        self._description = UserLoss(fn, similarity=similarity)
        handle(self._description)  # known before a graph is compiled

    def description(self) -> UserLoss:
        return self._description


def row_loss(fn: RowFunction, similarity: str = "cosine", **kwargs: Any) -> UserRowLoss:
    """Turns a function of one block of rows into a loss in linear memory, on any device.

    Args:
        fn: `fn(s, positive, negative)` -> [R], differentiable torch. s [R, N] are the similarities of
            R anchors and all N candidates; positive and negative are bool [R, N] masks. A sample's
            pair with itself is in neither mask: use the masks. The function is called once per block
            and must treat rows independently; rows may have no positives or no negatives. Only the
            embeddings get a gradient: a parameter that it reads must be detached (ValueError).
        similarity: "cosine" or "dot".
        **kwargs: reduction, backend, validate: see `SampleLoss`.

    Returns:
        A module `loss(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)` with
        exact gradients, never holding more than a block of the matrix.

    Example:
        >>> def lifted(s, positive, negative):
        ...     return (s.masked_fill(~negative, -9).logsumexp(1)
        ...             - s.masked_fill(~positive, -9).logsumexp(1)).relu()
        >>> loss = fastdml.row_loss(lifted)
        >>> loss(embeddings, labels).backward()
    """
    return UserRowLoss(fn, similarity, **kwargs)
