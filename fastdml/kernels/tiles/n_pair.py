"""N-pair loss (Sohn, NIPS 2016), one positive a row: SPEC 2.9, multi-class form."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..reductions import softplus2
from ..tile import Pass, TileLoss
from .common import LN2, LOG2E

PARAMETERS = 2


def parameters(loss: Any) -> tuple[float, ...]:
    return (LOG2E, LN2)


def tile(loss: Any) -> TileLoss:
    return TILE


@triton.jit
def sums(s, t, positive, row, p):
    return tl.where(positive, float("-inf"), s * p[0]), tl.where(positive, s, float("-inf"))


@triton.jit
def finish(stats, p):
    # Without a positive, or without negatives, there is nothing to compare.
    has = (stats[1] > float("-inf")) & (stats[0] > float("-inf"))
    own = tl.where(has, stats[1], 0.0)
    loss = softplus2(stats[0] - own * p[0])
    closed = tl.where(has, loss, float("inf"))
    return tl.where(has, loss * p[1], 0.0), own, closed, tl.where(has, 1.0 - tl.exp2(-loss), 0.0)


@triton.jit
def weight(s, t, positive, state, p):
    # The difference first: similarities are not bounded here, and large exponents round coarsely.
    e = tl.exp2((s - state[0]) * p[0] - state[1])
    return tl.where(positive, -state[2], e)


TILE = TileLoss("n_pair", (Pass(("lse", "max"), sums),), finish, weight, states=3)
