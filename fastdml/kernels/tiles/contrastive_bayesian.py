"""Contrastive Bayesian metric learning (Kan et al., TPAMI 2022): SPEC 2.5, the logarithmic form.

Pass 1: moments and extremes of both kinds. Pass 2: the two sums over the mined pairs.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..reductions import softplus2
from ..tile import Pass, TileLoss
from .common import LN2, LOG2E

PARAMETERS = 9


def parameters(loss: Any) -> tuple[float, ...]:
    p, n = LOG2E / loss.pos_b, LOG2E / loss.neg_b
    return (-p, p * loss.pos_a, n, -n * loss.neg_a, loss.mining_margin, loss.max_positive, LN2,
            loss.variance_weight, loss.mean_mix)  # fmt: skip


def tile(loss: Any) -> TileLoss:
    if getattr(loss, "form", "log") != "log":
        raise NotImplementedError(f"form {loss.form!r}")
    return TILE


@triton.jit
def exponent(s, positive, p):
    return tl.where(positive, s * p[0] + p[1], s * p[2] + p[3])


@triton.jit
def moments(s, t, positive, row, p):
    kept = positive & (s < p[5])
    negative = tl.where(positive, 0.0, s)
    return (
        tl.where(kept, 1.0, 0.0),
        tl.where(positive, 0.0, 1.0),
        tl.where(kept, s, 0.0),
        negative,
        negative * s,
        tl.where(kept, s, float("inf")),
        tl.where(positive, float("-inf"), s),
    )


@triton.jit
def _mined(s, positive, below, above):
    return tl.where(positive, s < below, s > above)


@triton.jit
def mined_sums(s, t, positive, row, p):
    kept = _mined(s, positive, tl.minimum(row[6] + p[4], p[5]), row[5] - p[4])
    return (tl.where(kept, exponent(s, positive, p), float("-inf")),)


@triton.jit
def finish(stats, p):
    positives, negatives, sum_p, sum_n, square_n = stats[0], stats[1], stats[2], stats[3], stats[4]
    kept = (stats[7] > float("-inf")) & (stats[8] > float("-inf"))
    mean_n = sum_n / tl.maximum(negatives, 1.0)
    mix = p[8]
    m = mix * sum_p / tl.maximum(positives, 1.0) + (1.0 - mix) * mean_n
    # Around the mean first: the plain sum of squares would cancel.
    away = mean_n - m
    variance = square_n - sum_n * mean_n + negatives * away * away
    pull = softplus2(stats[7])
    push = softplus2(stats[8])
    loss = (pull + push) * p[6] + p[7] * variance
    delta = negatives * away
    slope = tl.where(kept, 2.0 * p[7], 0.0)
    constant = -slope * (m + (1.0 - mix) * delta / tl.maximum(negatives, 1.0))
    shift = -slope * mix * delta / tl.maximum(positives, 1.0)
    below = tl.where(kept, tl.minimum(stats[6] + p[4], p[5]), float("-inf"))
    above = tl.where(kept, stats[5] - p[4], float("inf"))
    return tl.where(kept, loss, 0.0), pull, push, below, above, slope, constant, shift


@triton.jit
def weight(s, t, positive, state, p):
    e = tl.exp2(exponent(s, positive, p) - tl.where(positive, state[0], state[1]))
    e = tl.where(_mined(s, positive, state[2], state[3]), e, 0.0)
    spread = tl.where(positive, tl.where(s < p[5], state[6], 0.0), state[4] * s + state[5])
    return e * tl.where(positive, p[0], p[2]) * p[6] + spread


TILE = TileLoss(
    "contrastive_bayesian",
    (
        Pass(("sum",) * 5 + ("min", "max"), moments),
        Pass(("lse_split",), mined_sums),
    ),
    finish,
    weight,
    states=7,
    heavy=1,
)
