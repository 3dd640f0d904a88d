"""What listed pairs are, differentiable: for losses that are functions of these, in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .autograd import once, refuse_transforms, watched
from .distances import metric_of
from .in_torch import pairs_of
from .listed import Listed, Pair, listed
from .recompute import save, saved
from .similarity import DISTANCE, METRICS


def pair_values(
    similarity: str, x: Tensor, y: Tensor | None, lists: Sequence[Pair], epsilon: float = 0.0
) -> tuple[Tensor, ...]:
    """[T] similarities or distances of the pairs of each list, differentiable, once.

    x [M, D], y [N, D]: float32 or float64; None: one set. lists: int64 rows [T] of x, and of y.
    """
    if x.shape[0] == 0 or (y is not None and y.shape[0] == 0):  # no pair; a gradient of zeros
        nothing = x.flatten()[:0] if y is None else x.flatten()[:0] + y.flatten()[:0]
        return (nothing,) * len(lists)
    metric = metric_of(similarity)
    if metric.in_torch:
        return tuple(pairs_of(metric, x, x if y is None else y, *pair) for pair in lists)
    flat = tuple(t for pair in lists for t in pair)
    if torch.compiler.is_compiling():  # it refuses a tensor that is two inputs at once
        flat = tuple(t.view_as(t) if any(t is u for u in flat[:k]) else t for k, t in enumerate(flat))
    refuse_transforms()
    return _Values.apply(x, y, flat, similarity, epsilon, None if watched(x) else [])  # type: ignore[no-any-return]


class _Values(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, flat: tuple[Tensor, ...], similarity: str, epsilon: float,
        eager: list[Listed] | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        if eager is None:
            values = torch.ops.fastdml.listed_values(x, y, list(flat), similarity, epsilon)
        else:  # what is ordered now need not be ordered again
            eager.append(listed(similarity, x, y, list(zip(flat[::2], flat[1::2])), epsilon))
            values = eager[0].values()
        # Only a distance's derivative needs it; a product's is a number that need not be kept.
        kept = values if METRICS[similarity].kind == DISTANCE else ()
        save(ctx, x, y, *flat, *kept)
        ctx.rest = similarity, epsilon, eager
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *derivatives: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *rest = saved(ctx)
        flat = rest[: 2 * len(derivatives)]
        values = rest[2 * len(derivatives) :] or derivatives
        similarity, epsilon, eager = ctx.rest
        wanted = tuple(ctx.needs_input_grad[:2])
        if eager is None:
            d_x, d_y = torch.ops.fastdml.listed_gradients(
                list(derivatives), values, x, y, flat, similarity, epsilon
            )
            found: list[Tensor | None] = [d_x, None if y is None else d_y]
        else:
            found = list(eager[0].gradients(derivatives, values, wanted))
            eager[0].problem.unconditioned(*found)
        found = [d if asked else None for d, asked in zip(found, wanted)]
        kept = [d for d in found if d is not None]
        leaves = [t for t, d in zip((x, y), found) if d is not None]
        each = iter(once(kept, leaves))
        return (*(None if d is None else next(each) for d in found), None, None, None, None)


_library = torch.library.Library("fastdml", "FRAGMENT")
_library.define(
    "listed_values(Tensor x, Tensor? y, Tensor[] lists, str similarity, float epsilon) -> Tensor[]"
)
_library.define(
    "listed_gradients(Tensor[] derivatives, Tensor[] values, Tensor x, Tensor? y, Tensor[] lists, "
    "str similarity, float epsilon) -> (Tensor, Tensor)"
)


def _values(
    x: Tensor, y: Tensor | None, flat: list[Tensor], similarity: str, epsilon: float
) -> list[Tensor]:
    return listed(similarity, x, y, list(zip(flat[::2], flat[1::2])), epsilon).values()


def _gradients(
    derivatives: list[Tensor], values: list[Tensor], x: Tensor, y: Tensor | None, flat: list[Tensor],
    similarity: str, epsilon: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    pairs = list(zip(flat[::2], flat[1::2]))
    of = listed(similarity, x, y, pairs, epsilon)
    d_x, d_y = of.gradients(derivatives, values, (True, True))
    of.problem.unconditioned(d_x, d_y)
    assert d_x is not None
    return d_x, x.new_empty(0) if d_y is None else d_y


_library.impl("listed_values", _values, "CompositeExplicitAutograd")
_library.impl("listed_gradients", _gradients, "CompositeExplicitAutograd")
torch.library.register_fake(
    "fastdml::listed_values",
    lambda x, y, flat, *_: [x.new_empty(t.shape[0]) for t in flat[::2]],
    lib=_library,
)
torch.library.register_fake(
    "fastdml::listed_gradients",
    lambda _, __, x, y, *rest: (
        x.new_empty(x.shape),
        x.new_empty(0) if y is None else y.new_empty(y.shape),
    ),
    lib=_library,
)
