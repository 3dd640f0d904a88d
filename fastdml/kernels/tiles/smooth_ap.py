"""Smooth-AP (Brown et al., ECCV 2020): SPEC 3.1. A query is its own positive."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..list_loss import ListLoss
from .smooth_ranks import compare, gain, own_ranks, pulled, shared, slope


def parameters(loss: Any) -> tuple[float, ...]:
    return shared(loss.temperature)


def tile(loss: Any) -> ListLoss:
    return TILE


@triton.jit
def finish(sums, t, valid, count, negatives, columns, p):
    places, steep = own_ranks(t, valid, p)
    own = 1.0 + places
    rank = own + sums[0]
    share = 1.0 / tl.maximum(count, 1.0)[:, None]
    precision = tl.where(valid, own / rank, 0.0)
    # By a place among all, and by one among positives, which counts in both ranks.
    push = precision * share / rank
    pull = tl.where(valid, push - share / rank, 0.0)
    loss = tl.where(count > 0.0, 1.0 - tl.sum(precision * share, 1), 0.0)
    return (loss,), push, pulled(steep, pull) - push * sums[1]


TILE = ListLoss("smooth_ap", compare, finish, slope, gain)
