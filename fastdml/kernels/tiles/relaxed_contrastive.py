"""Relaxed contrastive loss (Kim et al., CVPR 2021): SPEC 1.2.

s: distances of the raw embeddings, the pair with oneself included. t: squared distances of the
normalised source embeddings.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss, Usual
from .common import LOG2E

PARAMETERS = 3
USUAL = Usual(metric="raw_distance")
# The mean is over all samples, the row's own among them: the last parameter is 1 if it is left out.
COUNTS_OWN = True


def parameters(loss: Any) -> tuple[float, ...]:
    return (loss.delta, -LOG2E / loss.sigma)


def tile(loss: Any) -> TileLoss:
    return TILE


@triton.jit
def total(s, t, positive, row, p):
    return s, tl.full(s.shape, 1.0, tl.float32)


@triton.jit
def _mean(sum_d, count, p):
    return tl.where(sum_d > 0.0, sum_d / (count + p[2]), 1.0)


@triton.jit
def _slope(r, alike, p):
    return 2.0 * (alike * r - (1.0 - alike) * tl.maximum(p[0] - r, 0.0))


@triton.jit
def sums(s, t, positive, row, p):
    r = s / _mean(row[0], row[1], p)
    alike = tl.exp2(t * p[1])
    apart = tl.maximum(p[0] - r, 0.0)
    term = alike * r * r + (1.0 - alike) * apart * apart
    return tl.where(r > 0.0, term, 0.0), tl.where(r > 0.0, _slope(r, alike, p) * r, 0.0)


@triton.jit
def finish(stats, p):
    mean = _mean(stats[0], stats[1], p)
    return stats[2], 1.0 / mean, stats[3] / (stats[1] + p[2])


@triton.jit
def weight(s, t, positive, state, p):
    # The mean moves too: every distance also lowers all ratios of its row.
    w = (_slope(s * state[0], tl.exp2(t * p[1]), p) - state[1]) * state[0]
    return tl.where(s > 0.0, w, 0.0)


TILE = TileLoss(
    "relaxed_contrastive",
    (Pass(("sum", "sum"), total), Pass(("sum", "sum"), sums)),
    finish,
    weight,
    states=2,
    teacher=True,
)
