"""Terms that several losses share."""

from __future__ import annotations

import torch
from torch import Tensor


def log_sum_exp_with_one(z: Tensor, mask: Tensor) -> Tensor:
    """[R] log(1 + sum of exp z over the masked pairs of a row); 0 for an empty row. z, mask [R, N]."""
    z = z.masked_fill(~mask, -torch.inf)
    return torch.cat([z.new_zeros(z.shape[0], 1), z], dim=1).logsumexp(dim=1)
