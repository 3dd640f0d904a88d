"""Mean similarities of all positive and all negative pairs, without looking at a pair."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engine.call import statistic_type
from ..engine.similarity import unit, without_autocast
from ..engine.summed import add_
from ..mining.batch import Batch
from ..mining.pairs import distinct_pairs


def mean_similarities(batch: Batch, normalized: bool) -> tuple[Tensor, Tensor]:
    """Differentiable means of x.y (of normalised embeddings) over positive and over negative pairs.

    Sums over classes replace sums over pairs: sum_ij x_i.y_j = (sum_i x_i).(sum_j y_j). O((B + N) D)
    time and memory. Over no pair the mean is 0.
    """
    with without_autocast(batch.embeddings.device):
        return _means(batch, normalized)


def _means(batch: Batch, normalized: bool) -> tuple[Tensor, Tensor]:
    kind = statistic_type(batch.embeddings)
    x = _prepared(batch.embeddings, normalized, kind)
    y = x if batch.ref_emb is None else _prepared(batch.ref_emb, normalized, kind)
    if batch.pairs:
        a1, p, a2, n = distinct_pairs(batch)
        return _of_pairs(x, y, a1, p), _of_pairs(x, y, a2, n)
    if batch.predicate is not None:
        return _of_function(x, y, batch)
    rows, cols = batch.need_labels(), batch.column_labels
    assert cols is not None
    classes = class_numbers(rows if batch.ref_emb is None else torch.cat([rows, cols]))
    rows, cols = classes[: x.shape[0]], classes[len(classes) - y.shape[0] :]
    of_rows = add_(x.new_zeros(len(classes), x.shape[1]), rows, x)
    of_cols = of_rows
    if batch.ref_emb is not None:
        of_cols = add_(of_rows.new_zeros(of_rows.shape), cols, y)
    same = (of_rows * of_cols).sum()
    every = x.sum(0) @ y.sum(0)
    ones = x.new_ones(1).double()
    per_row = add_(ones.new_zeros(len(classes)), rows, ones.expand(rows.shape[0]))
    per_col = add_(ones.new_zeros(len(classes)), cols, ones.expand(cols.shape[0]))
    positives = (per_row * per_col).sum()
    negatives = x.shape[0] * y.shape[0] - positives
    pull, push = same, every - same
    # A sample's pair with itself is no pair.
    if batch.ref_emb is None:
        pull = pull - x.square().sum()
        positives = positives - x.shape[0]
    elif batch.own is not None and y.shape[0]:
        own = batch.own_columns()
        at = own.clamp(min=0)
        product = (x * y[at]).sum(1)
        alike = (own >= 0) & (rows == cols[at])
        unlike = (own >= 0) & (rows != cols[at])
        pull = pull - torch.where(alike, product, 0.0).sum()
        push = push - torch.where(unlike, product, 0.0).sum()
        positives = positives - alike.sum()
        negatives = negatives - unlike.sum()
    return pull / positives.clamp(min=1).to(kind), push / negatives.clamp(min=1).to(kind)


def _of_function(x: Tensor, y: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """The means over the pairs that a function of indices names, block by block."""
    relation = batch.by_function()
    found = []
    for kind in (0, 1):
        toward_x, toward_y = torch.zeros_like(x), torch.zeros_like(y)
        count = torch.zeros((), dtype=torch.float64, device=x.device)
        with torch.no_grad():
            for start, stop, positive, negative in relation.blocks():
                if relation.weights(start, stop) is not None:
                    raise ValueError(
                        "indices_tuple: a mean over all pairs knows no weights of positives; expected a "
                        "function that returns masks alone"
                    )
                mask = (positive, negative)[kind].to(x.dtype)
                toward_x[start:stop] = mask @ y
                toward_y += mask.t() @ x[start:stop]
                count += mask.sum(dtype=torch.float64)
            total = (x * toward_x).sum()
        # The sum, with its derivatives by both sides and no mask kept for them.
        total = (x * toward_x).sum() + (y * toward_y).sum() - total
        found.append(total / count.clamp(min=1).to(x.dtype))
    return found[0], found[1]


def class_numbers(labels: Tensor) -> Tensor:
    """[n] numbers of the labels' classes in [0, n). (unique would wait for the device.)"""
    found, order = labels.sort()
    later = (found[1:] != found[:-1]).cumsum(0)
    numbers = torch.cat([later.new_zeros(1), later])[: labels.shape[0]]
    return torch.empty_like(numbers).scatter(0, order, numbers)


def _prepared(x: Tensor, normalized: bool, kind: torch.dtype) -> Tensor:
    x = x.to(kind)
    return unit(x) if normalized else x


def _of_pairs(x: Tensor, y: Tensor, anchors: Tensor, others: Tensor) -> Tensor:
    """The mean over listed pairs: a sparse product instead of a copy per pair."""
    index = torch.stack([anchors, others])
    ones = torch.ones(anchors.shape[0], dtype=x.dtype, device=x.device)
    shape = (x.shape[0], y.shape[0])
    listed = torch.sparse_coo_tensor(index, ones, shape, device=x.device, check_invariants=False)
    return (x * torch.sparse.mm(listed, y)).sum() / max(1, ones.shape[0])
