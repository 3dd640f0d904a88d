"""The three matrix products, with float32 results of half-precision operands on CUDA."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

# The most a product may hold beside its result where torch cannot add to it directly.
_STAGE = 16 << 20


def widens(device: torch.device) -> bool:
    """Whether torch multiplies half precision to float32 there: on AMD's GPUs it refuses to."""
    return device.type == "cuda" and torch.version.hip is None


def multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """out = a b, accumulated in the type of `out`; of one type, of several blocks too."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out) if a.dim() == 2 else torch.bmm(a, b, out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


def accumulate_(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """total += a b, accumulated in the type of `total`; of one type, of several blocks too."""
    if a.dtype == total.dtype:
        return total.addmm_(a, b) if a.dim() == 2 else total.baddbmm_(a, b)
    if _adds_in_place(a.dtype, total.dtype, a.device):
        return torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    step = max(1, _STAGE // (total.element_size() * max(1, total.shape[1])))
    for start in range(0, total.shape[0], step):
        rows = slice(start, start + step)
        total[rows] += torch.mm(a[rows], b, out_dtype=total.dtype)
    return total


@functools.cache
def _adds_in_place(operand: torch.dtype, result: torch.dtype, device: torch.device) -> bool:
    """Whether this torch adds a half-precision product to a float32 matrix in place; some refuse."""
    a = torch.zeros(16, 16, dtype=operand, device=device)
    total = torch.zeros(16, 16, dtype=result, device=device)
    try:
        torch.addmm(total, a, a, out_dtype=result, out=total)
    except RuntimeError:
        return False
    return True
