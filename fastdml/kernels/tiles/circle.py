"""Circle loss (Sun et al., CVPR 2020), per row: SPEC 3.6. The pair's own weights carry no gradient."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..reductions import softplus2
from ..tile import Pass, TileLoss
from .common import LN2, LOG2E

PARAMETERS = 4


def parameters(loss: Any) -> tuple[float, ...]:
    return (loss.m, loss.gamma * LOG2E, LN2, loss.gamma)


def tile(loss: Any) -> TileLoss:
    return TILE


@triton.jit
def _far(s, positive, p):
    """How far a pair is from its optimum: 1 + m for positives, -m for negatives."""
    return tl.maximum(tl.where(positive, 1.0 - s, s) + p[0], 0.0)


@triton.jit
def exponent(s, positive, p):
    return p[1] * _far(s, positive, p) * tl.where(positive, 1.0 - p[0] - s, s - p[0])


@triton.jit
def sums(s, t, positive, row, p):
    return (exponent(s, positive, p),)


@triton.jit
def finish(stats, p):
    # A row without positives or negatives has z = -inf: a loss of 0, and weights of 2**-inf.
    z = stats[0] + stats[1]
    closed = softplus2(-z)
    empty = z == float("-inf")
    pull = tl.where(empty, 0.0, stats[0])
    push = tl.where(empty, 0.0, stats[1])
    return softplus2(z) * p[2], pull, push, tl.where(empty, float("inf"), closed)


@triton.jit
def weight(s, t, positive, state, p):
    # Two steps: exponents reach 160, where a single sum would round coarsely.
    e = tl.exp2(exponent(s, positive, p) - tl.where(positive, state[0], state[1]) - state[2])
    return _far(s, positive, p) * tl.where(positive, -e, e)


@triton.jit
def gain(p):
    return p[3]


TILE = TileLoss("circle", (Pass(("lse_split",), sums),), finish, weight, states=3, gain=gain)
