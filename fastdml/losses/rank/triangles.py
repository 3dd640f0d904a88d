"""Soft histograms of a row: memberships that fall off linearly from a centre to its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

Members = list[tuple[Tensor, Tensor]]

# What a specification with histograms of two masks needs for a pair: measured.
BYTES = 128


def memberships(s: Tensor, bins: int, first: int) -> Members:
    """Places and memberships, both [R, N], of similarities s [R, N] in [-1, 1], at the two centres around
    each: they have no share in others.

    There are bins + 1 centres from `first`, 1 or -1, to the other end. A similarity that is a centre counts
    as above it, so that both of its shares have the derivative of one side, as csrc/cpu/bins.h has them.
    """
    far = (s - first) * (-first * bins / 2)
    at = far.detach()
    before = (at.floor() if first < 0 else at.ceil() - 1).clamp(0, bins - 1).nan_to_num()
    share = far - before
    index = before.long()
    return [(index, 1 - share), (index + 1, share)]


def histogram(members: Members, mask: Tensor, bins: int) -> Tensor:
    """[R, bins + 1] sums of the memberships of the pairs in `mask` [R, N], in one order on every device."""
    total = members[0][1].new_zeros(mask.shape[0], bins + 1)
    row = torch.arange(mask.shape[0], device=mask.device)[:, None]
    for place, member in members:
        if total.is_cpu:
            total = total.scatter_add(1, place, member * mask)
        else:
            total = total.index_put((row, place), member * mask, accumulate=True)
    return total
