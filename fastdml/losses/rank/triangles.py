"""Soft histograms of a row: memberships that fall off linearly from a centre to its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor

Members = list[tuple[Tensor, Tensor]]

# What a specification with histograms of two masks needs for a pair: measured.
BYTES = 128


def memberships(s: Tensor, bins: int, first: int) -> Members:
    """Places and memberships, both [R, N], of similarities s [R, N] in [-1, 1], at the centre nearest to each
    and at the ones before and after it: they have no share in others.

    There are bins + 1 centres from `first`, 1 or -1, to the other end. A place is one more than the centre's
    index: what is before the first and after the last has one too.
    """
    width = 2 / bins
    nearest = ((s.detach() - first) / (-first * width)).round().clamp(0, bins).nan_to_num()
    found = []
    for k in (nearest - 1, nearest, nearest + 1):
        centre = first - first * width * k
        found.append((k.long() + 1, (1 - (s - centre).abs() / width).relu()))
    return found


def histogram(members: Members, mask: Tensor, bins: int) -> Tensor:
    """[R, bins + 1] sums of the memberships of the pairs in `mask` [R, N], in one order on every device."""
    total = members[0][1].new_zeros(mask.shape[0], bins + 3)
    row = torch.arange(mask.shape[0], device=mask.device)[:, None]
    for place, member in members:
        if total.is_cpu:
            total = total.scatter_add(1, place, member * mask)
        else:
            total = total.index_put((row, place), member * mask, accumulate=True)
    return total[:, 1:-1]
