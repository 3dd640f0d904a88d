"""Rows as directions and lengths."""

from __future__ import annotations

import torch
from torch import Tensor


def direction_and_length(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [B, D] of any length brought to length 1, and their lengths [B]. Of a row of zeros both are 0, and
    so are their gradients."""
    largest = x.detach().abs().amax(1, keepdim=True)
    # A power of two takes out what squares would overflow or vanish by, exactly.
    scale = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)
    near = x / scale
    length = near.norm(dim=1, keepdim=True)
    there = length > 0
    direction = torch.where(there, near / length.where(there, 1.0), 0.0)
    return direction, (scale * length)[:, 0]
