"""Multi-similarity with its miner (Wang et al., CVPR 2019): SPEC 2.11.

Pass 1 finds the hardest pairs of each kind, pass 2 the two sums over the mined pairs. Without mining
pass 2 is all there is.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..reductions import softplus2
from ..tile import Pass, TileLoss, Usual
from .common import LN2, LOG2E

PARAMETERS = 8
USUAL = Usual({"epsilon": 0.1})


def parameters(loss: Any) -> tuple[float, ...]:
    a, b = loss.alpha * LOG2E, loss.beta * LOG2E
    epsilon = 0.0 if loss.epsilon is None else loss.epsilon
    return (-a, a * loss.base, b, -b * loss.base, epsilon, loss.max_positive, LN2 / loss.alpha,
            LN2 / loss.beta)  # fmt: skip


def tile(loss: Any) -> TileLoss:
    return ALL if loss.epsilon is None else MINED


@triton.jit
def exponent(s, positive, p):
    return tl.where(positive, s * p[0] + p[1], s * p[2] + p[3])


@triton.jit
def hardest(s, t, positive, row, p):
    kept = positive & (s < p[5])
    return tl.where(kept, s, float("inf")), tl.where(positive, float("-inf"), s)


@triton.jit
def _kept(s, positive, below, above):
    return tl.where(positive, s < below, s > above)


@triton.jit
def mined_sums(s, t, positive, row, p):
    kept = _kept(s, positive, tl.minimum(row[1] + p[4], p[5]), row[0] - p[4])
    return (tl.where(kept, exponent(s, positive, p), float("-inf")),)


@triton.jit
def mined_finish(stats, p):
    pull = softplus2(stats[2])
    push = softplus2(stats[3])
    below = tl.minimum(stats[1] + p[4], p[5])
    return pull * p[6] + push * p[7], pull, push, below, stats[0] - p[4]


@triton.jit
def mined_weight(s, t, positive, state, p):
    e = tl.exp2(exponent(s, positive, p) - tl.where(positive, state[0], state[1]))
    kept = _kept(s, positive, state[2], state[3])
    return tl.where(kept, tl.where(positive, -e, e), 0.0)


@triton.jit
def sums(s, t, positive, row, p):
    # The ceiling concerns positives only; negatives have none.
    kept = s < tl.where(positive, p[5], float("inf"))
    return (tl.where(kept, exponent(s, positive, p), float("-inf")),)


@triton.jit
def finish(stats, p):
    pull = softplus2(stats[0])
    push = softplus2(stats[1])
    return pull * p[6] + push * p[7], pull, push


@triton.jit
def weight(s, t, positive, state, p):
    e = tl.exp2(exponent(s, positive, p) - tl.where(positive, state[0], state[1]))
    return tl.where(positive, tl.where(s < p[5], -e, 0.0), e)


MINED = TileLoss(
    "multi_similarity",
    (Pass(("min", "max"), hardest), Pass(("lse_split",), mined_sums)),
    mined_finish,
    mined_weight,
    states=4,
    sparse=True,
)
ALL = TileLoss("multi_similarity", (Pass(("lse_split",), sums),), finish, weight, states=2)
