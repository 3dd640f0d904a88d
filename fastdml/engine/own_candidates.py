"""Rows with candidates of their own [M, K, D], in one reading of these, by the compiled library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import library
from .autograd import once, refuse_transforms, watched
from .recompute import save, saved
from .similarity import EPSILON, PRODUCT, Metric


def values(metric: Metric, a: Tensor, c: Tensor) -> Tensor:
    """[M, K] differentiable: row i of a [M, D] with the K rows of c [M, K, D] that are its own. By the
    library once; what it does not take, by `Metric.listed`."""
    if metric.kind != PRODUCT or metric.clipped or metric.in_torch or not _takes(a, c):
        return metric.listed(a, c)
    scaled = metric.normalized, metric.normalized and not metric.raw_anchors
    refuse_transforms()
    return _Products.apply(a, c, *scaled)  # type: ignore[no-any-return]


def _takes(a: Tensor, c: Tensor) -> bool:
    alike = a.dtype == c.dtype and a.dtype in (torch.float32, torch.float64)
    cpu = a.device.type == c.device.type == "cpu"
    by_rows = all(x.shape[-1] <= 1 or x.stride(-1) == 1 for x in (a, c))
    return alike and cpu and by_rows and _loaded()


def _loaded() -> bool:
    return library.load() is not None


# What torch.compiler.assume_constant_result does, which would import the compiler with this library.
_loaded._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, c: Tensor, candidates: bool, rows: bool) -> Tensor:
        found = torch.ops.fastdml.own_products if watched(a) or watched(c) else _products
        made = found(a, c, candidates, rows)
        save(ctx, a, c, *made)
        ctx.scaled = candidates, rows
        s: Tensor = made[0]
        return s

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        a, c, *made = saved(ctx)
        wanted = list(ctx.needs_input_grad[:2])
        found: Any = torch.ops.fastdml.own_gradients if watched(a) or watched(c) else _gradients
        both = found(upstream.contiguous(), a, c, *made, *ctx.scaled, wanted)
        gradients = [d for d, w in zip(both, wanted) if w]
        each = iter(once(gradients, [x for x, w in zip((a, c), wanted) if w]))
        return (*(next(each) if w else None for w in wanted), None, None)


_library = torch.library.Library("fastdml", "FRAGMENT")
_library.define("own_products(Tensor a, Tensor c, bool candidates, bool rows) -> (Tensor, Tensor, Tensor)")
_library.define(
    "own_gradients(Tensor g, Tensor a, Tensor c, Tensor s, Tensor inverse, Tensor row_inverse, "
    "bool candidates, bool rows, bool[] wanted) -> (Tensor, Tensor)"
)


def _room_for_products(a: Tensor, c: Tensor, candidates: bool, rows: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the products [M, K], over the lengths of candidates and of rows where these are wanted, and
    for the inverses of those lengths, [M, K] and [M]; none of it for a length that is not wanted."""
    return (
        a.new_empty(c.shape[:2]),
        a.new_empty(c.shape[:2] if candidates else 0),
        a.new_empty(len(a) if rows else 0),
    )


def _products(a: Tensor, c: Tensor, candidates: bool, rows: bool) -> tuple[Tensor, Tensor, Tensor]:
    s, *inverses = made = _room_for_products(a, c, candidates, rows)
    torch.ops.fastdml_native.own_values_(s, *_only(inverses, (candidates, rows)), a, c, EPSILON)
    return made


def _only(tensors: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """As the library takes them: None for what is not wanted."""
    return [x if w else None for x, w in zip(tensors, wanted)]


def _room_for_gradients(a: Tensor, c: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor]:
    """Memory for the gradients of a and of c, none of it for one that is not wanted."""
    return a.new_empty(a.shape if wanted[0] else 0), c.new_empty(c.shape if wanted[1] else 0)


def _gradients(
    g: Tensor,
    a: Tensor,
    c: Tensor,
    s: Tensor,
    inverse: Tensor,
    row_inverse: Tensor,
    candidates: bool,
    rows: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    made = _room_for_gradients(a, c, wanted)
    lengths = _only((inverse, row_inverse), (candidates, rows))
    torch.ops.fastdml_native.own_gradients_(*_only(made, wanted), g, s, *lengths, a, c)
    return made


_library.impl("own_products", _products, "CompositeExplicitAutograd")
_library.impl("own_gradients", _gradients, "CompositeExplicitAutograd")
torch.library.register_fake("fastdml::own_products", _room_for_products, lib=_library)
torch.library.register_fake(
    "fastdml::own_gradients", lambda g, a, c, *others: _room_for_gradients(a, c, others[-1]), lib=_library
)
