"""The differentiable exchanges of a batch that is shared out.

Every rank computes the same loss of the whole batch, and sends back through it the part of the derivative
that its own rows make. So what a rank reads of the others comes with the sum of all ranks' derivatives on
the way back, and what all ranks compute alike counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.autograd import once
from .ranks import Ranks


def gathered(x: Tensor, ranks: Ranks, counts: Sequence[int]) -> Tensor:
    """The rows of all ranks; backward: each rank's rows of the sum of all ranks' derivatives."""
    found: Tensor = _Gathered.apply(x, ranks, tuple(counts))
    return found


def spread(x: Tensor, ranks: Ranks) -> Tensor:
    """x, equal on all ranks, of which each makes something else; backward: the sum of all derivatives."""
    found: Tensor = _Spread.apply(x, ranks)
    return found


def summed(x: Tensor, ranks: Ranks) -> Tensor:
    """The sum over ranks, of which all make the same; backward: that derivative."""
    found: Tensor = _Summed.apply(x, ranks)
    return found


def joined(x: Tensor, ranks: Ranks, counts: Sequence[int]) -> Tensor:
    """The rows of all ranks, of which all make the same; backward: a rank's rows of that derivative."""
    found: Tensor = _Joined.apply(x, ranks, tuple(counts))
    return found


def mine(x: Tensor, ranks: Ranks, counts: Sequence[int]) -> Tensor:
    """This rank's of the rows [sum of counts, ...], which all ranks have; backward: every rank's rows of the
    derivative, which all ranks need."""
    found: Tensor = _Mine.apply(x, ranks, tuple(counts))
    return found


def scaled(x: Tensor, factor: float) -> Tensor:
    """x; backward: the derivative times factor."""
    if factor == 1 or not (x.is_floating_point() and x.requires_grad):
        return x
    found: Tensor = _Scaled.apply(x, factor)
    return found


def _received(found: Tensor, upstream: Tensor, ranks: Ranks) -> Tensor:
    """What the ranks made of a derivative. Autograd does not see through an exchange, so a further derivative
    is refused."""
    return found if ranks.size == 1 else once([found], [upstream])[0]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, counts: tuple[int, ...]) -> Tensor:
        ctx.ranks, ctx.counts = ranks, counts
        return ranks.gather(x, counts)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _received(ctx.ranks.scatter(upstream, ctx.counts), upstream, ctx.ranks), None, None


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _received(ctx.ranks.total(upstream), upstream, ctx.ranks), None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        return ranks.total(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream, None


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, counts: tuple[int, ...]) -> Tensor:
        ctx.rows = slice(sum(counts[: ranks.rank]), sum(counts[: ranks.rank + 1]))
        return ranks.gather(x, counts)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream[ctx.rows], None, None


class _Mine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, counts: tuple[int, ...]) -> Tensor:
        ctx.ranks, ctx.counts = ranks, counts
        return x[sum(counts[: ranks.rank]) : sum(counts[: ranks.rank + 1])].clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _received(ctx.ranks.gather(upstream, ctx.counts), upstream, ctx.ranks), None, None


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return upstream * ctx.factor, None
