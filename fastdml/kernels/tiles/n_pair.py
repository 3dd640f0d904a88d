"""N-pair loss (Sohn, NIPS 2016): SPEC 2.9. The similarity of the anchor's one positive is a value of
the row; the negatives against it all at once, or one by one."""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl

from ..reductions import sigmoid2, softplus2
from ..tile import Pass, TileLoss, Usual
from .common import LN2, LOG2E

PARAMETERS = 3
USUAL = Usual({"paired": False, "one_vs_one": False}, two_sets=True)


def parameters(loss: Any) -> tuple[float, ...]:
    return (loss.metric.sign * LOG2E, LN2, loss.metric.sign)


def tile(loss: Any) -> TileLoss:
    if loss.paired:
        raise NotImplementedError("the positive's similarity comes as a value of the row")
    if loss.padded:
        return PADDED_ONE_BY_ONE if loss.one_vs_one else PADDED
    return ONE_BY_ONE if loss.one_vs_one else TILE


@triton.jit
def sums(s, t, positive, row, p):
    # The difference first: similarities are not bounded here, and large exponents round coarsely.
    return (tl.where(positive, float("-inf"), (s - row[0]) * p[0]),)


@triton.jit
def finish(stats, p):
    loss = softplus2(stats[1])
    return loss * p[1], p[2] * (tl.exp2(-loss) - 1.0), stats[0], loss


@triton.jit
def weight(s, t, positive, state, p):
    e = tl.exp2((s - state[0]) * p[0] - state[1])
    return tl.where(positive, 0.0, e)


@triton.jit
def sums_one_by_one(s, t, positive, row, p):
    z = (s - row[0]) * p[0]
    return tl.where(positive, 0.0, softplus2(z)), tl.where(positive, 0.0, sigmoid2(z))


@triton.jit
def finish_one_by_one(stats, p):
    return stats[1] * p[1], -p[2] * stats[2], stats[0]


@triton.jit
def weight_one_by_one(s, t, positive, state, p):
    return tl.where(positive, 0.0, sigmoid2((s - state[0]) * p[0]))


# Columns whose value is 0 are none: as little as positives are negatives.
@triton.jit
def padded_sums(s, t, positive, row, p):
    return sums(s, t, positive | (t[0] == 0.0), row, p)


@triton.jit
def padded_weight(s, t, positive, state, p):
    return weight(s, t, positive | (t[0] == 0.0), state, p)


@triton.jit
def padded_sums_one_by_one(s, t, positive, row, p):
    return sums_one_by_one(s, t, positive | (t[0] == 0.0), row, p)


@triton.jit
def padded_weight_one_by_one(s, t, positive, state, p):
    return weight_one_by_one(s, t, positive | (t[0] == 0.0), state, p)


@triton.jit
def gain(p):
    return p[2]


TILE = TileLoss(
    "n_pair", (Pass(("lse",), sums),), finish, weight, states=2, gain=gain, inputs=1, slopes=1
)
ONE_BY_ONE = dataclasses.replace(
    TILE,
    passes=(Pass(("sum", "sum"), sums_one_by_one),),
    finish=finish_one_by_one,
    weight=weight_one_by_one,
    states=1,
)
PADDED = dataclasses.replace(
    TILE, passes=(Pass(("lse",), padded_sums),), weight=padded_weight, column_values=1
)
PADDED_ONE_BY_ONE = dataclasses.replace(
    ONE_BY_ONE,
    passes=(Pass(("sum", "sum"), padded_sums_one_by_one),),
    weight=padded_weight_one_by_one,
    column_values=1,
)
