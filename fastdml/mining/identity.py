"""Whether two tensors are the same samples, as far as that is known without waiting for a device."""

from __future__ import annotations

import torch
from torch import Tensor


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one piece of memory: one detached from the other, or a view of all of it."""
    if a is b:
        return True
    if torch.compiler.is_compiling() or type(a) is not type(b) or a.device.type == "meta":
        return False
    if a.layout != torch.strided or b.layout != torch.strided or a.dtype != b.dtype:
        return False
    if a.shape != b.shape or a.data_ptr() != b.data_ptr():
        return False
    # The stride of a dimension of one means nothing.
    return all(x == y for x, y, n in zip(a.stride(), b.stride(), a.shape) if n != 1)


def equal_labels(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two labels are known to be equal; None: those of the other."""
    if a is None or b is None or same_memory(a, b):
        return True
    if not _integers(a) or not _integers(b) or a.shape != b.shape:
        return False
    readable = a.device.type == b.device.type == "cpu" and not torch.compiler.is_compiling()
    return readable and torch.equal(a.long(), b.long())


def _integers(labels: object) -> bool:
    """Whether these are labels at all: what else a caller hands in equals none, and is told so later."""
    if not isinstance(labels, Tensor):
        return False
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
