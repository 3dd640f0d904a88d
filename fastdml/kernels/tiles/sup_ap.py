"""SupAP (Ramzi et al., NeurIPS 2021): SPEC 2.10. A query is its own positive.

Positives rank among themselves by a true step, negatives by a sigmoid that turns into a line.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from ..list_loss import ListLoss
from ..reductions import sigmoid2
from .smooth_ranks import gain, shared


def parameters(loss: Any) -> tuple[float, ...]:
    """p[2:]: slope of the line over the sharpness, slope, start of the line, its height there, jump."""
    by = loss.rho * loss.temperature
    return (*shared(loss.temperature), by, loss.rho, loss.delta, loss.offset, loss.start)


def tile(loss: Any) -> ListLoss:
    return TILE


@triton.jit
def compare(d, p):
    sigma = sigmoid2(d * p[0])
    steep = d > p[4]
    gentle = sigma + tl.where(d > 9.5367431640625e-7, p[6], 0.0)
    height = tl.where(steep, (d - p[4]) * p[3] + p[5], gentle)
    return height, tl.where(steep, p[2], sigma - sigma * sigma)


@triton.jit
def slope(d, p):
    sigma = sigmoid2(d * p[0])
    return tl.where(d > p[4], p[2], sigma - sigma * sigma)


@triton.jit
def finish(sums, t, valid, count, negatives, columns, p):
    before = valid[:, None, :] & (t[:, None, :] - t[:, :, None] >= -9.5367431640625e-7)
    own = tl.maximum(tl.sum(before.to(tl.float32), 2), 1.0)
    rank = own + sums[0]
    share = 1.0 / tl.maximum(count, 1.0)[:, None]
    precision = tl.where(valid, own / rank, 0.0)
    push = precision * share / rank
    loss = tl.where(count > 0.0, 1.0 - tl.sum(precision * share, 1), 0.0)
    return (loss,), push, -push * sums[1]


TILE = ListLoss("sup_ap", compare, finish, slope, gain)
