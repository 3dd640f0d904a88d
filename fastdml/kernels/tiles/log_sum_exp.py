"""The statistics of columns that a loss of rows reads: losses/presweeps.py.

A row's log of the sum of exponentials, its number of positives, and the mean of s under the softmax,
by which the derivatives of learnable scales are known.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss
from .common import LN2, LOG2E


def parameters(loss: Any) -> tuple[float, ...]:
    """The last parameter is the call's own, the scale that `learnable_scale` speaks of."""
    scale = loss.scale * LOG2E
    by = (0.0, scale) if loss.learnable_scale else (scale, 0.0)
    return (*by, loss.offset * LOG2E, LN2)


def tile(loss: Any) -> TileLoss:
    if loss.negatives_only or not loss.learnable_scale:
        raise NotImplementedError("other than all pairs at a learnable scale")
    return TILE


@triton.jit
def sums(s, t, positive, row, p):
    return s * (p[0] + p[1] * p[4]) + p[2], s, positive.to(tl.float32)


@triton.jit
def finish(stats, p):
    # An empty row has a number that is finite all the same.
    empty = stats[0] == float("-inf")
    return tl.where(empty, -3.4028234663852886e38, stats[0] * p[3]), stats[2], stats[1]


@triton.jit
def weight(s, t, positive, state, p):
    return s * 0.0


TILE = TileLoss(
    "log_sum_exp", (Pass(("lse_mean", "sum"), sums),), finish, weight, 0, outputs=3, heavy=257
)
