"""Log-ratio loss (Kim et al., CVPR 2019): SPEC 1.3, with every row an anchor.

s: distances of the embeddings, t: distances of the labels. Two passes: around the mean, because the
sum of squares of logarithms cancels.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss, Usual
from .common import LN2

PARAMETERS = 2
USUAL = Usual(metric="raw_distance")


def parameters(loss: Any) -> tuple[float, ...]:
    return (LN2, loss.epsilon)


def tile(loss: Any) -> TileLoss:
    if getattr(loss, "given", False):
        raise NotImplementedError("one anchor with given distances")
    return TILE


@triton.jit
def _log_ratio(s, t, p):
    return (tl.log2(s + p[1]) - tl.log2(t + p[1])) * p[0]


@triton.jit
def total(s, t, positive, row, p):
    return _log_ratio(s, t, p), tl.full(s.shape, 1.0, tl.float32)


@triton.jit
def squares(s, t, positive, row, p):
    away = _log_ratio(s, t, p) - row[0] / tl.maximum(row[1], 1.0)
    return (away * away,)


@triton.jit
def finish(stats, p):
    freedom = tl.maximum(stats[1] - 1.0, 1.0)
    return 2.0 * stats[2] / freedom, stats[0] / tl.maximum(stats[1], 1.0), 4.0 / freedom


@triton.jit
def weight(s, t, positive, state, p):
    return state[1] * (_log_ratio(s, t, p) - state[0]) / (s + p[1])


TILE = TileLoss(
    "log_ratio",
    (Pass(("sum", "sum"), total), Pass(("sum",), squares)),
    finish,
    weight,
    states=2,
    teacher=True,
)
