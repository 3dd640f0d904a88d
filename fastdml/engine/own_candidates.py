"""Rows with candidates of their own [M, K, D], in one reading of these, by the compiled library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import library
from .autograd import once, watched
from .similarity import EPSILON, PRODUCT, Metric


def values(metric: Metric, a: Tensor, c: Tensor) -> Tensor:
    """[M, K] differentiable: row i of a [M, D] with the K rows of c [M, K, D] that are its own. By the
    library once; what it does not take, by `Metric.listed`."""
    if metric.kind != PRODUCT or metric.clipped or not _takes(a, c):
        return metric.listed(a, c)
    return _Products.apply(a, c, metric)  # type: ignore[no-any-return]


def _takes(a: Tensor, c: Tensor) -> bool:
    plain = not torch.compiler.is_compiling() and not watched(a) and not watched(c)
    alike = a.dtype == c.dtype and a.dtype in (torch.float32, torch.float64)
    cpu = a.device.type == c.device.type == "cpu"
    by_rows = all(x.shape[-1] <= 1 or x.stride(-1) == 1 for x in (a, c))
    return plain and alike and cpu and by_rows and library.load() is not None


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, c: Tensor, metric: Metric) -> Tensor:
        s = a.new_empty(c.shape[:2])
        inverse = torch.empty_like(s) if metric.normalized else None
        row_inverse = a.new_empty(len(a)) if metric.normalized and not metric.raw_anchors else None
        torch.ops.fastdml_native.own_values_(s, inverse, row_inverse, a, c, EPSILON)
        ctx.save_for_backward(a, c, s, inverse, row_inverse)
        return s

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        a, c, *found = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        made = [x.new_empty(x.shape) if w else None for x, w in zip((a, c), wanted)]
        torch.ops.fastdml_native.own_gradients_(*made, upstream.contiguous(), *found, a, c)
        each = iter(once([d for d in made if d is not None], [x for x, w in zip((a, c), wanted) if w]))
        return (*(None if d is None else next(each) for d in made), None)
