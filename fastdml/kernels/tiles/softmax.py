"""What softmax losses over proxies share: rows are samples, columns classes.

p: scale in base 2, ln 2, scale, smoothing of the targets, constant of a row; then a loss's own.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .common import LN2, LOG2E

KINDS = ("lse", "sum", "sum", "sum", "sum")
OWN = 5  # index of the first parameter of a loss's own


def shared(scale: float, smoothing: float = 0.0, constant: float = 0.0) -> tuple[float, ...]:
    return (scale * LOG2E, LN2, scale, smoothing, constant)


@triton.jit
def sums_of(z, exponent, positive):
    one = tl.full(z.shape, 1.0, tl.float32)
    return exponent, z, tl.where(positive, z, 0.0), one, tl.where(positive, 1.0, 0.0)


@triton.jit
def finish(stats, p):
    # Targets: 1 - smoothing for the class, an equal share of the rest for each other one. A row whose
    # class has no column, or is the only one, has no loss: its normaliser is infinite.
    counts = (stats[4] > 0.0) & (stats[3] > stats[4])
    other = tl.where(counts, p[3] / tl.maximum(stats[3] - stats[4], 1.0), 0.0)
    own = tl.where(counts, 1.0 - p[3], 0.0)
    loss = stats[0] * p[1] - p[2] * ((own - other) * stats[2] + other * stats[1])
    normaliser = tl.where(counts, stats[0], float("inf"))
    return tl.where(counts, loss, 0.0) + p[4], normaliser, other, own


@triton.jit
def weight_of(exponent, positive, state):
    return tl.exp2(exponent - state[0]) - tl.where(positive, state[2], state[1])


@triton.jit
def gain(p):
    return p[2]
