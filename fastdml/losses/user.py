"""Bring your own loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..engine import check
from ..engine.loss import RowLoss, Rows
from ..engine.registry import remember
from ..kernels.tile import TileLoss
from .base import SampleLoss

__all__ = ["row_loss"]

RowFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A user's tile functor, as the executor asks for it."""

    functor: TileLoss
    values: tuple[float, ...]

    def tile(self, loss: RowLoss) -> TileLoss:
        return self.functor

    def parameters(self, loss: RowLoss) -> tuple[float, ...]:
        return self.values


def _check_tile(tile: TileLoss | None, parameters: Sequence[float]) -> tuple[float, ...]:
    if tile is None:
        if len(parameters):
            raise ValueError("tile_parameters: expected none without a tile")
        return ()
    if not isinstance(tile, TileLoss):
        raise ValueError(f"tile: expected a fastdml.kernels.tile.TileLoss, got {tile!r}")
    further = (tile.inputs, tile.column_values, tile.scalars, tile.outputs - 1)
    if any(further) or tile.teacher or tile.groups:
        raise ValueError(
            "tile: expected a function of the row alone: one output; no inputs, column values, learnable "
            "scalars, teacher or groups"
        )
    return tuple(check.finite(value, "tile_parameters") for value in parameters)


@dataclasses.dataclass(frozen=True, eq=False)
class UserLoss(RowLoss):
    """A user's function as a description; equal only to itself (functions need not be hashable)."""

    fn: RowFunction
    tile: TileLoss | None = None
    tile_parameters: tuple[float, ...] = ()
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def name(self) -> str:  # type: ignore[override]
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    @property
    def tiles(self) -> Tiles | None:  # type: ignore[override]
        return None if self.tile is None else Tiles(self.tile, self.tile_parameters)

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

    def __init__(
        self,
        fn: RowFunction,
        similarity: str = "cosine",
        *,
        tile: TileLoss | None = None,
        tile_parameters: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        if not callable(fn):
            raise ValueError(f"fn: expected a function of (s, positive, negative), got {fn!r}")
        super().__init__(similarity=similarity, **kwargs)
        parameters = _check_tile(tile, tile_parameters)
        self._description = UserLoss(fn, tile, parameters, similarity=similarity)
        remember(self._description)  # before a graph is compiled

    def description(self) -> UserLoss:
        return self._description


def row_loss(
    fn: RowFunction,
    similarity: str = "cosine",
    *,
    tile: TileLoss | None = None,
    tile_parameters: Sequence[float] = (),
    **kwargs: Any,
) -> UserRowLoss:
    """Turns a function of one block of rows into a loss in linear memory, on any device.

    Args:
        fn: `fn(s, positive, negative)` -> [R], differentiable torch. s [R, N] are the similarities of
            R anchors and all N candidates; positive and negative are bool [R, N] masks. A sample's
            pair with itself is in neither mask: use the masks. The function is called once per block
            and must treat rows independently; rows may have no positives or no negatives. Only the
            embeddings get a gradient: a parameter that it reads must be detached (ValueError).
        similarity: "cosine" or "dot".
        tile: the same loss as Triton functions of a pair, which then run on CUDA (or wherever
            backend="triton" may): docs/triton-functors.md. Everywhere else, and for index tuples and
            float64, fn runs.
        tile_parameters: numbers that those functions read as p.
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
    return UserRowLoss(fn, similarity, tile=tile, tile_parameters=tile_parameters, **kwargs)
