"""FaceNet's semi-hard negatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.counting import longest_row
from .choice import tie
from .miners import Chosen, Miner, Select
from .triplets import Stream


class SemiHardMiner(Miner):
    """For each positive of an anchor the nearest negative that is farther than it, as triplets `(a, p, n)`.

    *FaceNet: A Unified Embedding for Face Recognition and Clustering*, Schroff et al., CVPR 2015 (arXiv
    1503.03832), section 3.2, by distance (Euclidean, of normalised embeddings). Farther means by more than
    rounding. A positive that is farther than every negative has no triplet.

    Args:
        margin: None; or the negative must also be nearer than the positive's distance + margin, as FaceNet
            has it, so that every triplet has a loss under that margin.

    Called as `miner(embeddings, labels, ref_emb=None, ref_labels=None)`. The positives of a row cut its
    distances into intervals, of which each keeps its nearest negative: O(N log P) time a row of N candidates
    and P positives, blocks of bounded memory, and a list of one triplet a positive.
    """

    anchors = (0,)
    tensors = 3
    at_once = 1 << 20  # a pair takes some indices of 64 bits

    def __init__(self, margin: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = None if margin is None else check.positive(margin, "margin")

    def selection(self, dimension: int, stream: Stream | None) -> Select:
        def select(d: Tensor, positive: Tensor, negative: Tensor, _: Tensor) -> Chosen:
            d = -self.sign * d
            far, p, n, found = nearest_farther(d, positive, negative)
            if self.margin is not None:
                found = found & (d.gather(1, n) < far + self.margin)
            rows, k = found.nonzero(as_tuple=True)
            return rows, p[rows, k], n[rows, k]

        return select


def nearest_farther(
    d: Tensor, positive: Tensor, negative: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of a block of rows, each [R, P]: distances of the positives, ascending, their columns, the columns of
    their nearest farther negatives, and whether there is one. d [R, N], masks bool [R, N]."""
    rows, columns = d.shape
    most = max(1, longest_row(positive))
    most = min(most, columns)
    limit, p = d.masked_fill(~positive, torch.inf).topk(most, dim=1, largest=False)
    # How many of the row's positives a candidate is farther than.
    interval = torch.searchsorted((limit + tie(limit)).contiguous(), d.contiguous())
    nearest = d.new_full((rows, most + 1), torch.inf)
    nearest.scatter_reduce_(1, interval, d.masked_fill(~negative, torch.inf), "amin")
    first = negative & (d == nearest.gather(1, interval))
    index = torch.arange(columns, device=d.device).expand_as(d)
    column = index.new_full((rows, most + 1), columns)
    column.scatter_reduce_(1, interval, index.masked_fill(~first, columns), "amin")
    # A negative beyond several positives is theirs where nothing nearer is.
    least, at = nearest[:, 1:].flip(1).cummin(1)
    n = column[:, 1:].flip(1).gather(1, at).flip(1)
    found = (least.flip(1) < torch.inf) & (limit < torch.inf)
    return limit, p, n.clamp(max=columns - 1), found
