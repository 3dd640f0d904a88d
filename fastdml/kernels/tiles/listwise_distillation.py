"""List-wise self-distillation (Zeng et al., 2022): SPEC 2.12. The second matrix is the teacher's.

The row includes the pair with oneself, in both.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..tile import Pass, TileLoss
from .common import LN2, LOG2E

PARAMETERS = 3


def parameters(loss: Any) -> tuple[float, ...]:
    return (LOG2E / loss.temperature, LN2, 1.0 / loss.temperature)


def tile(loss: Any) -> TileLoss:
    return TILE


@triton.jit
def sums(s, t, positive, row, p):
    return s * p[0], t * p[0], (t - s) * p[0]


@triton.jit
def finish(stats, p):
    return (stats[2] - stats[1] + stats[0]) * p[1], stats[0], stats[1]


@triton.jit
def weight(s, t, positive, state, p):
    return tl.exp2(s * p[0] - state[0]) - tl.exp2(t * p[0] - state[1])


@triton.jit
def gain(p):
    return p[2]


TILE = TileLoss(
    "listwise_distillation",
    (Pass(("lse", "lse_mean"), sums),),
    finish,
    weight,
    2,
    gain,
    teacher=True,
)
