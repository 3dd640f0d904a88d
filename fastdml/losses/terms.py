"""Terms that several losses share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..engine.loss import Rows


def log_sum_exp_with_one(z: Tensor, mask: Tensor) -> Tensor:
    """[R] log(1 + sum of exp z over the masked pairs of a row); 0 for an empty row. z, mask [R, N]."""
    z = z.masked_fill(~mask, -torch.inf)
    return torch.cat([z.new_zeros(z.shape[0], 1), z], dim=1).logsumexp(dim=1)


def sort_code(sort: bool | None) -> float:
    """The functors' `sort`: None by cost, False never, True always."""
    if sort is not None and not isinstance(sort, bool):
        raise ValueError(f"sort: expected True, False or None, got {sort!r}")
    return 0.0 if sort is None else 1.0 + sort


def softplus(z: Tensor) -> Tensor:
    """log(1 + exp z), exact at both ends in any precision."""
    return torch.logaddexp(z, torch.zeros_like(z))


def rank_pairs(rows: Rows, cost: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """[R] sum of cost(s_n - s_p) over a row's positives p and negatives n; [R] numbers of both."""
    threshold, _, valid = rows.thresholds()
    height = cost(rows.s[:, None, :] - threshold[:, :, None])
    mask = valid[:, :, None] & rows.negative[:, None, :]
    total = torch.where(mask, height, torch.zeros_like(height)).sum((1, 2))
    kind = rows.s.dtype
    return total, rows.positive.sum(1).to(kind), rows.negative.sum(1).to(kind)
