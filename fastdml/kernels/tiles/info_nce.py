"""InfoNCE of positive pairs over rows and, as CLIP has it, over columns: SPEC 3.7.

Values of a column: the log of its sum of exponentials, its number of positives and its mean similarity
(log_sum_exp.py); losses/info_nce.py has the mathematics. Of the value of a row the part is left out
that is 0 over all rows. The last parameter is the call's learnable scale.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss
from .common import LN2, LOG2E


def parameters(loss: Any) -> tuple[float, ...]:
    sign = loss.metric.sign
    return (sign * LOG2E, LN2, sign, loss.rows_weight, loss.columns_weight)


def tile(loss: Any) -> TileLoss:
    return ROWS if loss.columns_weight == 0 else BOTH


@triton.jit
def sums_of_rows(s, t, positive, row, p):
    return s * (p[0] * p[5]), s, tl.where(positive, s, 0.0), tl.where(positive, 1.0, 0.0)


@triton.jit
def sums(s, t, positive, row, p):
    level = tl.where(positive, t[0], 0.0)
    mean = tl.where(positive, t[2], 0.0)
    z, v, near, one = sums_of_rows(s, t, positive, row, p)
    return z, v, near, one, level, mean


@triton.jit
def _of_rows(stats, p):
    near, count = stats[2], stats[3]
    some = count > 0.0
    times = p[3] * count
    level = tl.where(some, stats[0], 0.0)
    loss = times * level * p[1] - p[3] * p[2] * p[5] * near
    slope = p[2] * (times * tl.where(some, stats[1], 0.0) - p[3] * near)
    drawn = times > 0.0
    normaliser = tl.where(drawn, level - tl.log2(tl.where(drawn, times, 1.0)), float("inf"))
    return loss, slope, normaliser


@triton.jit
def finish_of_rows(stats, p):
    return _of_rows(stats, p)


@triton.jit
def finish(stats, p):
    loss, slope, normaliser = _of_rows(stats, p)
    near = stats[2]
    return (
        loss + p[4] * (stats[4] - p[2] * p[5] * near),
        slope + p[4] * p[2] * (stats[5] - near),
        normaliser,
    )


@triton.jit
def weight_of_rows(s, t, positive, state, p):
    return p[2] * (tl.exp2(s * (p[0] * p[5]) - state[0]) - tl.where(positive, p[3], 0.0))


@triton.jit
def weight(s, t, positive, state, p):
    z = s * (p[0] * p[5])
    count = p[4] * t[1]
    some = count > 0.0
    normaliser = tl.where(
        some, t[0] * 1.4426950408889634 - tl.log2(tl.where(some, count, 1.0)), float("inf")
    )
    mass = tl.exp2(z - state[0]) + tl.exp2(z - normaliser)
    return p[2] * (mass - tl.where(positive, p[3] + p[4], 0.0))


@triton.jit
def gain(p):
    return p[5]


_KINDS = ("lse_mean", "sum", "sum")
ROWS = TileLoss(
    "info_nce",
    (Pass(_KINDS, sums_of_rows),),
    finish_of_rows,
    weight_of_rows,
    states=1,
    gain=gain,
    heavy=1,
    scalars=1,
)
BOTH = dataclasses.replace(
    ROWS,
    passes=(Pass((*_KINDS, "sum", "sum"), sums),),
    finish=finish,
    weight=weight,
    column_values=3,
)
