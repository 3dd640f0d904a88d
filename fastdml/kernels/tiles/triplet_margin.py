"""Triplet margin loss over all (positive, negative) pairs of a row: SPEC 3.8, threshold form.

p: direction (1: larger numbers are closer, -1: farther), margin, log2(e), ln 2, and what the mean is
over: 0 the active triplets, 1 the triplets, 2 the anchors.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl

from ..list_loss import ListLoss
from ..reductions import sigmoid2, softplus2
from .common import LN2, LOG2E

_COUNTED = {"active": 0.0, "triplets": 1.0, "anchors": 2.0}


def parameters(loss: Any) -> tuple[float, ...]:
    return (loss.direction, loss.margin, LOG2E, LN2, _COUNTED[loss.normalizer])


def tile(loss: Any) -> ListLoss:
    if loss.chooses or (loss.positives, loss.negatives) != ("all", "all"):
        raise NotImplementedError("mined triplets")
    return SMOOTH if loss.smooth else HINGE


@triton.jit
def hinge(d, p):
    excess = p[0] * d + p[1]
    return tl.maximum(excess, 0.0), tl.where(excess > 0.0, p[0], 0.0)


@triton.jit
def hinge_slope(d, p):
    return tl.where(p[0] * d + p[1] > 0.0, p[0], 0.0)


@triton.jit
def soft(d, p):
    z = (p[0] * d + p[1]) * p[2]
    return softplus2(z) * p[3], sigmoid2(z) * p[0]


@triton.jit
def soft_slope(d, p):
    return sigmoid2((p[0] * d + p[1]) * p[2]) * p[0]


@triton.jit
def _totals(sums, valid, active, count, negatives, p):
    triplets = count * negatives
    number = tl.where(p[4] == 0.0, active, tl.where(p[4] == 1.0, triplets, 1.0))
    push = tl.where(valid, 1.0, 0.0)
    return (tl.sum(sums[0], 1), number), push, -sums[1]


@triton.jit
def finish_hinge(sums, t, valid, count, negatives, columns, p):
    return _totals(sums, valid, tl.sum(sums[1], 1) * p[0], count, negatives, p)


@triton.jit
def finish_soft(sums, t, valid, count, negatives, columns, p):
    return _totals(sums, valid, count * negatives, count, negatives, p)


HINGE = ListLoss("triplet_margin", hinge, finish_hinge, hinge_slope, outputs=2, sparse=True)
SMOOTH = dataclasses.replace(
    HINGE, compare=soft, finish=finish_soft, slope=soft_slope, sparse=False
)
