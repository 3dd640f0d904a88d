"""Mean similarities of all positive and all negative pairs, without looking at a pair."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.op import statistic_type
from ..engine.similarity import unit
from .base import Call


def mean_similarities(call: Call, normalized: bool) -> tuple[Tensor, Tensor]:
    """Differentiable means of x.y (of normalised embeddings) over positive and over negative pairs.

    Sums over classes replace sums over pairs: sum_ij x_i.y_j = (sum_i x_i).(sum_j y_j). O((B + N) D)
    time and memory. Over no pair the mean is 0.
    """
    with torch.autocast(call.embeddings.device.type, enabled=False):
        return _means(call, normalized)


def _means(call: Call, normalized: bool) -> tuple[Tensor, Tensor]:
    kind = statistic_type(call.embeddings)
    x = _prepared(call.embeddings, normalized, kind)
    y = x if call.ref_emb is None else _prepared(call.ref_emb, normalized, kind)
    if call.pairs:
        a1, p, a2, n = call.pairs
        return _of_pairs(x, y, a1, p), _of_pairs(x, y, a2, n)
    assert call.labels is not None
    columns = call.labels if call.ref_labels is None else call.ref_labels
    both = call.labels if call.ref_emb is None else torch.cat([call.labels, columns])
    classes = class_numbers(both)
    rows, cols = classes[: x.shape[0]], classes[-y.shape[0] :]
    of_rows = x.new_zeros(both.shape[0], x.shape[1]).index_add(0, rows, x)
    of_cols = of_rows
    if call.ref_emb is not None:
        of_cols = torch.zeros_like(of_rows).index_add(0, cols, y)
    same = (of_rows * of_cols).sum()
    every = x.sum(0) @ y.sum(0)
    ones = x.new_ones(1).double()
    per_row = ones.new_zeros(both.shape[0]).index_add(0, rows, ones.expand(rows.shape[0]))
    per_col = ones.new_zeros(both.shape[0]).index_add(0, cols, ones.expand(cols.shape[0]))
    positives = (per_row * per_col).sum()
    negatives = x.shape[0] * y.shape[0] - positives
    pull = same
    if call.ref_emb is None:  # a sample's pair with itself is no pair
        pull = same - x.square().sum()
        positives = positives - x.shape[0]
    return pull / positives.clamp(min=1).to(kind), (every - same) / negatives.clamp(min=1).to(kind)


def class_numbers(labels: Tensor) -> Tensor:
    """[n] numbers of the labels' classes in [0, n). (unique would wait for the device.)"""
    found, order = labels.sort()
    later = (found[1:] != found[:-1]).cumsum(0)
    numbers = torch.cat([later.new_zeros(1), later])
    return torch.empty_like(numbers).scatter(0, order, numbers)


def _prepared(x: Tensor, normalized: bool, kind: torch.dtype) -> Tensor:
    x = x.to(kind)
    return unit(x) if normalized else x


def _of_pairs(x: Tensor, y: Tensor, anchors: Tensor, others: Tensor) -> Tensor:
    """The mean over listed pairs, each counted once: a sparse product instead of a copy per pair."""
    index = torch.stack([anchors, others])
    ones = torch.ones(anchors.shape[0], dtype=x.dtype, device=x.device)
    listed = torch.sparse_coo_tensor(index, ones, (x.shape[0], y.shape[0])).coalesce()
    once = torch.sparse_coo_tensor(
        listed.indices(), torch.ones_like(listed.values()), listed.shape, is_coalesced=True
    )
    return (x * torch.sparse.mm(once, y)).sum() / max(1, once.values().shape[0])
