"""Binomial deviance: SPEC 2.11. Means of softplus over positives and over negatives."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..reductions import sigmoid2, softplus2
from ..tile import Pass, TileLoss
from .common import LN2, LOG2E

PARAMETERS = 4


def parameters(loss: Any) -> tuple[float, ...]:
    return (loss.alpha * LOG2E, loss.beta * LOG2E, loss.base, LN2)


def tile(loss: Any) -> TileLoss:
    if getattr(loss, "max_positive", float("inf")) < float("inf"):
        raise NotImplementedError("a ceiling for positives")
    return TILE


@triton.jit
def exponent(s, positive, p):
    return tl.where(positive, -p[0], p[1]) * (s - p[2])


@triton.jit
def sums(s, t, positive, row, p):
    term = softplus2(exponent(s, positive, p))
    one = positive.to(tl.float32)
    return tl.where(positive, term, 0.0), tl.where(positive, 0.0, term), one, 1.0 - one


@triton.jit
def finish(stats, p):
    pull = 1.0 / tl.maximum(stats[2], 1.0)
    push = 1.0 / tl.maximum(stats[3], 1.0)
    loss = (stats[0] * pull + stats[1] * push) * p[3]
    return loss, -pull * p[0] * p[3], push * p[1] * p[3]


@triton.jit
def weight(s, t, positive, state, p):
    return sigmoid2(exponent(s, positive, p)) * tl.where(positive, state[0], state[1])


TILE = TileLoss(
    "binomial_deviance", (Pass(("sum",) * 4, sums),), finish, weight, states=2, heavy=1
)
