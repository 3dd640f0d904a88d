"""Terms that several losses share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..engine.counting import row_counts
from ..engine.loss import Rows
from ..engine.similarity import wide_type


def nothing(*sets: Tensor | None) -> Tensor:
    """0 in the type of losses, with a gradient of zeros in each set of embeddings that there is."""
    there = [x for x in sets if x is not None]
    kind = wide_type(*there)
    first, *others = [(x * 0).sum().to(kind) for x in there]
    return sum(others, first)


def log_sum_exp_with_one(z: Tensor, mask: Tensor) -> Tensor:
    """[R] log(1 + sum of exp z over the masked pairs of a row); 0 for an empty row. z, mask [R, N]."""
    return softplus(log_sum_exp(z, mask))


def log_sum_exp(z: Tensor, mask: Tensor) -> Tensor:
    """[R] log of the sum of exp z over the masked pairs of a row, z, mask [R, N].

    An empty row has the smallest number there is, and a derivative of 0: no infinity, no NaN.
    """
    return z.masked_fill(~mask, torch.finfo(z.dtype).min).logsumexp(dim=1)


def sort_code(sort: bool | None) -> float:
    """The functors' `sort`: None by cost, False never, True always."""
    if sort is not None and not isinstance(sort, bool):
        raise ValueError(f"sort: expected True, False or None, got {sort!r}")
    return 0.0 if sort is None else 1.0 + sort


def softplus(z: Tensor) -> Tensor:
    """log(1 + exp z), exact at both ends. (torch's own is linear beyond 20, which float64 sees.)"""
    return torch.logaddexp(z, torch.zeros_like(z))


def masked_sum(z: Tensor, mask: Tensor) -> Tensor:
    """[R] sums of z over the masked pairs of a row, z, mask [R, N]."""
    return torch.where(mask, z, torch.zeros_like(z)).sum(dim=1)


def share(total: Tensor, count: Tensor) -> Tensor:
    """total / count, numbers or weights of what is summed; of nothing, the total, which is 0."""
    return total / (count + (count == 0))


def rows_per(count: Tensor) -> Tensor:
    """[1] rows of the batch per thing counted in its rows, count [M]: turns a mean over rows into one
    over things. Rows per 1 where there is none."""
    return count.sum(0, keepdim=True).clamp(min=1).double().reciprocal() * count.shape[0]


def rank_pairs(rows: Rows, cost: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """[R] sum of cost(s_n - s_p) over a row's positives p and negatives n; [R] numbers of both."""
    threshold, _, valid = rows.thresholds()
    height = cost(rows.s[:, None, :] - threshold[:, :, None])
    mask = valid[:, :, None] & rows.negative[:, None, :]
    total = torch.where(mask, height, torch.zeros_like(height)).sum((1, 2))
    kind = rows.s.dtype
    return total, row_counts(rows.positive).to(kind), row_counts(rows.negative).to(kind)


def cross_entropy(z: Tensor, target: Tensor, positive: Tensor) -> Tensor:
    """[R] softmax cross-entropy of one class against the others.

    Args:
        z: [R, C] logits of the classes. target: [R] logit of a row's own class.
        positive: bool [R, C], which class is the row's own.

    Rows without an own class, or without others, have a loss of 0.
    """
    valid = positive.any(1) & ~positive.all(1)
    # A row of only -inf has no derivative; its loss is not used.
    rest = z.masked_fill(positive & valid[:, None], -torch.inf).logsumexp(1)
    loss = softplus(rest - target)
    return torch.where(valid, loss, torch.zeros_like(loss))


def softmax_mean(s: Tensor, size: int, gamma: float) -> Tensor:
    """[R, C] of s [R, C size]: means of `size` consecutive values, weighted by softmax(s / gamma)."""
    grouped = s.unflatten(1, (-1, size))
    return ((grouped / gamma).softmax(2) * grouped).sum(2)
