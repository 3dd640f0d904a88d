"""Recall@k surrogate (Patel et al., CVPR 2022): SPEC 3.2. Sigmoid ranks, then a sigmoid count of those
within k.

p[2:]: sharpness of the count in base 2 and as it is, how many k are in use, and the k.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl

from ..list_loss import ListLoss
from ..reductions import sigmoid2
from .common import LOG2E
from .smooth_ranks import compare, gain, own_ranks, pulled, shared, slope

_K = 12  # the most that the loss takes


def parameters(loss: Any) -> tuple[float, ...]:
    near = 1.0 / loss.recall_temperature
    k = (*map(float, loss.k), *[1.0] * (_K - len(loss.k)))
    return (*shared(loss.rank_temperature), near * LOG2E, near, float(len(loss.k)), *k)


def tile(loss: Any) -> ListLoss:
    return ALONE if loss.exclude_self else TILE


@triton.jit
def finish(sums, t, valid, count, negatives, columns, p):
    places, steep = own_ranks(t, valid, p)
    rank = 1.0 + places + sums[0]
    push = tl.zeros(t.shape, tl.float32)
    recall = tl.zeros_like(count)
    for i in tl.static_range(12):
        within = tl.minimum(p[5 + i], columns)
        full = tl.minimum(within, tl.maximum(count, 1.0))
        u = tl.where(valid, sigmoid2((within - rank) * p[2]), 0.0)
        found = tl.sum(u, 1)
        # At equality the derivative of the minimum is one half.
        open_ = tl.where(found < within, 1.0, tl.where(found > within, 0.0, 0.5))
        used = p[4] > i
        recall += tl.where(used, tl.minimum(found, within) / full, 0.0)
        factor = tl.where(used, open_ * p[3] / (full * p[4]), 0.0)
        push += factor[:, None] * (u - u * u)
    present = tl.where(count > 0.0, 1.0, 0.0)
    loss = (1.0 - recall / p[4]) * present
    return (loss, present), push, pulled(steep, push) - push * sums[1]


TILE = ListLoss("recall_at_k", compare, finish, slope, gain, outputs=2, own=True)
ALONE = dataclasses.replace(TILE, own=False)
