"""Sums by index, and rows by index whose gradients are such sums, in one order on every device.

On a GPU torch's own `index_add` and the gradient of `index_select` add in the order of threads.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import embedding


def add_(total: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """total[index] += values; differentiable in values."""
    if total.device.type == "cpu":
        return total.index_add_(0, index, values)
    return total.index_put_((index,), values, accumulate=True)


def values_of(x: Tensor, index: Tensor) -> Tensor:
    """x[index] of x [B] or [B, D], differentiable."""
    if x.device.type == "cpu":
        return x.index_select(0, index)
    return embedding(index, x) if x.dim() == 2 else embedding(index, x[:, None])[:, 0]
