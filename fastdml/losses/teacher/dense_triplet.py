"""Dense triplets: all pairs that labels put in order around an anchor."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from .labelled_distances import LabelledLoss

__all__ = ["DenseTripletLoss"]


@register
@dataclasses.dataclass(frozen=True)
class DenseTriplet(RowLoss):
    """SPEC 1.3. Rows hold squared distances; label distances as in `LogRatio`.

    The mean over pairs (j, k) with a smaller label distance of j. A row without any has a loss of 0.
    """

    name = "dense_triplet"
    provenance = "released code"
    spec_bytes = 200

    margin: float = 0.03
    given: bool = False
    similarity: str = dataclasses.field(default="squared_distance", kw_only=True)

    def __post_init__(self) -> None:
        check.finite(self.margin, "margin")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(0.5, True)]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        return {"col_values": torch.linspace(4, 0.1, columns)[None]} if self.given else {}

    @property
    def teacher_similarity(self) -> str | None:  # type: ignore[override]
        return None if self.given else "label_distance"

    def distance_epsilon(self, dimension: int) -> float:
        return 1e-4 / dimension

    def spec(self, rows: Rows) -> Tensor:
        y = rows.teacher
        if self.given:
            assert rows.col_values is not None
            y = rows.col_values[0].expand_as(rows.s)
        assert y is not None
        s = rows.s
        if rows.pair is not None:  # all columns but the row's own
            s, y = (x[rows.pair].view(len(x), -1) for x in (s, y))
        return _OrderedHinges.apply(s, y, self.margin)


class _OrderedHinges(torch.autograd.Function):
    """[R] means of [s_j - s_k + margin]_+ over the pairs of columns with y_j < y_k; s, y [R, N].

    Columns are numbered by y, equal ones alike. Of two numbers the highest bit that differs tells which
    is larger; so all pairs of one bit are those of a lower half and an upper half with the same bits
    above it, and sorted halves are compared by a binary search: O(N log^2 N), and no matrix of pairs.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, y: Tensor, margin: float) -> Tensor:
        x = s.double()
        if x.shape[1] < 2:
            ctx.save_for_backward(torch.zeros_like(s))
            return s.new_zeros(len(s))
        x = x - x.min(1, keepdim=True).values
        wide = float(x.max()) + abs(margin) + 1  # beyond every difference that counts
        number = _ranks(y)
        total, count = x.new_zeros(len(x)), x.new_zeros(len(x))
        slope = torch.zeros_like(x)
        for bit in range(int(number.max()).bit_length()):
            upper = (number >> bit) & 1 == 1
            # Of the columns with the same bits above.
            base = (number >> bit + 1).double() * (4 * wide)
            near, far = (
                (base + x).masked_fill(other, torch.inf).sort(1) for other in (upper, ~upper)
            )
            height = x.gather(1, near.indices).masked_fill_(near.values == torch.inf, 0.0).cumsum(1)
            height = torch.nn.functional.pad(height, (1, 0))
            # Of an upper column k: the lower ones with x_j > x_k - margin.
            first = torch.searchsorted(near.values, base + x - margin, right=True)
            last = torch.searchsorted(near.values, base + 2 * wide)
            found = (last - first).masked_fill_(~upper, 0)
            excess = height.gather(1, last) - height.gather(1, first) - found * (x - margin)
            total += excess.masked_fill_(~upper, 0.0).sum(1)
            all_lower = last - torch.searchsorted(near.values, base - wide)
            count += all_lower.masked_fill_(~upper, 0).sum(1)
            slope -= found
            # Of a lower column j: the upper ones with x_k < x_j + margin.
            first = torch.searchsorted(far.values, base - wide)
            last = torch.searchsorted(far.values, base + x + margin)
            slope += (last - first).masked_fill_(upper, 0)
        share = count.clamp(min=1).reciprocal()
        ctx.save_for_backward((slope * share[:, None]).to(s.dtype))
        return (total * share).to(s.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return upstream[:, None] * slope, None, None


def _ranks(y: Tensor) -> Tensor:
    """[R, N] places of the columns in the order of y; equal ones share theirs."""
    found, order = y.sort(1)
    fresh = torch.zeros_like(order)
    fresh[:, 1:] = found[:, 1:] != found[:, :-1]
    return torch.empty_like(order).scatter_(1, order, fresh.cumsum(1))


class DenseTripletLoss(LabelledLoss):
    """Dense triplet loss.

    The baseline of *Deep Metric Learning Beyond Binary Supervision*, Kim et al., CVPR 2019 (arXiv
    1904.09626): of an anchor a, the mean over pairs (j, k) of other samples with Y_aj < Y_ak of
    [d_aj - d_ak + margin]_+, d squared distances of normalised embeddings, Y distances of labels. Equal
    label distances are in no order.

    An anchor has O(B^2) such pairs, but the loss and its derivative need only how many are active that a
    sample leads (as j) and ends (as k). The compiled functor counts them on the CPU by two sorts and a
    grid over both orders, in O(B log B + B^1.5), the latter in vectors of B^0.5 comparisons; on CUDA by
    comparing all pairs. The chunked executor sorts once per bit of B: O(B log^2 B).

    Args:
        margin: in units of squared distance.
        normalize: whether embeddings are normalised.
        reduction: "mean" over anchors, "sum" or "none".
        backend, validate: see `SampleLoss`.
    """

    function = "dense_triplet"
    default_similarity = "squared_distance"

    def __init__(self, margin: float = 0.03, normalize: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = check.finite(margin, "margin")
        self.normalize = normalize
        self.settle_similarity()

    def described(self, given: bool) -> DenseTriplet:
        kind = "squared_distance" if self.normalize else "raw_squared_distance"
        return DenseTriplet(self.margin, given, similarity=kind)
