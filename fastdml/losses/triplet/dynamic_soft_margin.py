"""Dynamic soft margin loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check, in_torch
from ...engine.call import Call, statistic_type
from ...engine.distances import metric_of
from ...engine.loss import RowLoss, Rows
from ...engine.summed import add_
from ...mining.batch import checked
from ...mining.steps import recomputing
from ...mining.triplets import listed
from ..base import SampleLoss, Term
from ..terms import nothing
from .listed import pair_numbers

__all__ = ["DynamicSoftMarginLoss"]


@dataclasses.dataclass(frozen=True)
class Bins:
    """Equally wide bins from `low` on; a number lies between the centres of two."""

    low: float
    width: float
    number: int

    def place(self, x: Tensor, counted: Tensor | None) -> tuple[Tensor, Tensor]:
        """Where each x lies, in bins, and the bin below: `number` from the last one on, and one more for what
        does not count. counted: which do; None: all. (To pick those costs several times as much.)"""
        at = ((x - self.low) / self.width).clamp(0, self.number)
        below = at.int().clamp(min=0)  # torch makes any integer of a NaN
        return at, below if counted is None else below.masked_fill(~counted, self.number + 1)

    def mass(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """[bins + 1] how much of numbers x lies in each; and how many they are."""
        at, below = self.place(x, counted)
        bins, size = below.flatten(), self.number + 2
        count = torch.bincount(bins, minlength=size)[:-1].to(x.dtype)
        above = add_(x.new_zeros(size), bins, (at - below).flatten())[:-1]
        found = count - above
        found[1:] += above[:-1]
        found[-2] += found[-1]  # beyond the last bin
        found[-1] = count.sum()
        return found

    def look_up(self, values: Tensor, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """Of values [bins] that of the bin below each x; 0 for what does not count."""
        _, below = self.place(x, counted)
        table = torch.cat([values, values[-1:], values.new_zeros(1)])
        return table.index_select(0, below.flatten()).view_as(x)


@dataclasses.dataclass(frozen=True)
class _List:
    """Numbers of triplets [T]."""

    x: Tensor

    def mass(self, bins: Bins) -> Tensor:
        return bins.mass(self.x)

    def weighed(self, bins: Bins, weights: Tensor) -> Tensor:
        return (bins.look_up(weights, self.x.detach()) * self.x).sum()


@dataclasses.dataclass(frozen=True)
class _AllOf:
    """Those of all triplets of a call, in blocks of rows."""

    call: Call

    def _sums(self, function: Any) -> Tensor:
        """The sum of what `function` makes of blocks: [R, P] distances of positives and [R, N] of negatives,
        and bool [R, P, N], which triplets these are."""

        def outputs(rows: Rows) -> Tensor:
            near, _, valid = rows.thresholds()
            found = function(near, rows.s, valid[:, :, None] & rows.negative[:, None, :])
            # A block's sums stand in its first row.
            return torch.cat([found[None], found.new_zeros(rows.s.shape[0] - 1, found.shape[0])])

        return in_torch.row_outputs(self.call, outputs).sum(0)

    def mass(self, bins: Bins) -> Tensor:
        return self._sums(
            lambda near, far, some: bins.mass(near[:, :, None] - far[:, None, :], some)
        )

    def weighed(self, bins: Bins, weights: Tensor) -> Tensor:
        def total(near: Tensor, far: Tensor, some: Tensor) -> Tensor:
            with torch.no_grad():
                w = bins.look_up(weights, near[:, :, None] - far[:, None, :], some)
                of_near, of_far = w.sum(2), w.sum(1)
            return ((near * of_near).sum() - (far * of_far).sum()).reshape(1)

        return self._sums(total)[0]


@dataclasses.dataclass(frozen=True)
class Weighed:
    """The mean of numbers of triplets, each weighed by the share of numbers that are lower."""

    loss: DynamicSoftMarginLoss
    numbers: _List | _AllOf
    embeddings: Tensor

    @property
    def call(self) -> Call | None:
        """That of all triplets, if these are the numbers."""
        return self.numbers.call if isinstance(self.numbers, _AllOf) else None

    def evaluate(self) -> Tensor:
        bins = self.loss.bins
        with torch.no_grad():
            found = self.numbers.mass(bins)
            count = found[-1].round().item()  # NaN where embeddings are
        if count == 0:
            return nothing(self.embeddings, None if self.call is None else self.call.candidates)
        weights = self.loss.updated(found[:-1]).cumsum(0)
        return self.numbers.weighed(bins, weights.to(found.dtype)) / count


@dataclasses.dataclass(frozen=True)
class _AllTriplets(RowLoss):
    """Rows whose triplets are looked at one by one: what sizes a block."""

    name = "all_triplets"
    threshold_list = True


class DynamicSoftMarginLoss(SampleLoss):
    """Dynamic soft margin loss.

    *Learning Local Descriptors With a CDF-Based Dynamic Soft Margin*, Zhang and Rusinkiewicz, ICCV 2019: the
    mean over triplets of w (d_ap - d_an), w being the share of such differences, in a running histogram, that
    are lower. The weights are constants for the gradient.

    Args:
        min_val: where the first bin starts; bins reach to -min_val. num_bins: >= 1.
        momentum: in [0, 1], share of the batch in the histogram.

    With labels, over all triplets (or those of `indices_tuple`). Without labels, row i of `ref_emb` is the
    positive of row i of `embeddings`, and its negative the nearest other one, of either's. State: `hist_`
    [num_bins], which moves in training mode. Differences beyond the bins count in the last ones. Other
    arguments: see `SampleLoss`.
    """

    function = "dynamic_soft_margin"
    mean_over = "triplets"
    default_similarity = "distance"
    similarities = ("distance", "squared_distance")
    reductions = ("mean",)
    one_number = "mean"
    input_defaults = {}
    constants = ("hist_",)

    hist_: Tensor

    def __init__(
        self, min_val: float = -2.0, num_bins: int = 10, momentum: float = 0.01, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        expected = "a finite number other than 0"
        self.min_val = check.number(min_val, "min_val", expected, lambda v: 0 < abs(v) < 1e30)
        self.num_bins = check.count(num_bins, "num_bins")
        self.momentum = check.fraction(momentum, "momentum")
        self.register_buffer("hist_", torch.zeros(self.num_bins, dtype=torch.float64))

    def description(self) -> RowLoss:
        return _AllTriplets(similarity=self.similarity)

    @property
    def bins(self) -> Bins:
        """The bins of the histogram."""
        return Bins(self.min_val, 2 * abs(self.min_val) / self.num_bins, self.num_bins)

    def updated(self, mass: Tensor) -> Tensor:
        """The histogram with a batch in it; kept in training mode."""
        kept = self.hist_.to(mass)
        if self.training and recomputing():
            return kept  # the batch is in it already
        first = kept.sum() == 0
        momentum = torch.where(first, 1.0, mass.new_full((), self.momentum))
        found = (1 - momentum) * kept + momentum * mass
        found = found / found.sum()
        if self.training:
            # One batch with a NaN would leave a histogram of NaN for good.
            before = self.hist_.to(found.device)
            self.hist_ = torch.where(found.isfinite().all(), found.to(before.dtype), before)
        return found

    def calls(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        own: int | Tensor | None = None,
    ) -> list[Any]:
        if labels is None and indices_tuple is None:
            if ref_emb is None or ref_labels is not None:
                raise ValueError("labels: expected labels, or ref_emb row by row without ref_labels")
            check.embeddings(embeddings, "embeddings", self.validate)
            check.embeddings(ref_emb, "ref_emb", self.validate)
            check.same_space(embeddings, ref_emb, "embeddings", "ref_emb")
            if embeddings.shape[0] * ref_emb.shape[0] <= 1:  # no negative
                return [Term(nothing, (embeddings, ref_emb))]
            return [self._of_pairs(embeddings, ref_emb)]
        batch = checked(embeddings, labels, indices_tuple, ref_emb, ref_labels, own, self.validate)
        triplets = listed(batch, join=True)
        if triplets is not None:
            near, far = pair_numbers(batch, self.similarity, triplets)
            return [Weighed(self, _List(near - far), embeddings)]
        call = self.sample_call(self.description(), batch, reduction="mean")
        return [Weighed(self, _AllOf(call), embeddings)]

    def _of_pairs(self, embeddings: Tensor, ref_emb: Tensor) -> Weighed:
        kind = statistic_type(embeddings, ref_emb)
        x, y = embeddings.to(kind), ref_emb.to(kind)
        pairs = min(x.shape[0], y.shape[0])
        metric = metric_of(self.similarity)
        own = metric.paired(x[:pairs], y[:pairs])
        nearest = _nearest_others(metric, x, y)
        numbers = torch.cat([own, own.new_zeros(nearest.shape[0] - pairs)]) - nearest
        return Weighed(self, _List(numbers), embeddings)


def _nearest_others(metric: Any, x: Tensor, y: Tensor) -> Tensor:
    """[the larger of M and N] distance to the nearest of the other set but the own partner, from x [M, D] or
    from y [N, D], whichever is less; 0 for what one set has not. Which it is, is found block by block."""
    columns = torch.arange(y.shape[0], device=x.device)
    step = max(1, (1 << 22) // max(1, y.shape[0]))
    of_rows, best, of_columns = [], x.new_full((y.shape[0],), torch.inf), torch.zeros_like(columns)
    with torch.no_grad():
        for start in range(0, x.shape[0], step):
            d = metric.dense(x[start : start + step], y, 0.0)
            rows = torch.arange(start, start + d.shape[0], device=x.device)
            d = d.masked_fill(rows[:, None] == columns, torch.inf)
            of_rows.append(d.argmin(1))
            least, at = d.min(0)
            of_columns = torch.where(least < best, at + start, of_columns)
            best = torch.minimum(best, least)
    rows = torch.arange(x.shape[0], device=x.device)
    from_x = metric.paired(x, y[torch.cat(of_rows)])
    from_y = metric.paired(x[of_columns], y)
    size = max(x.shape[0], y.shape[0])
    padded = [torch.cat([d, d.new_zeros(size - d.shape[0])]) for d in (from_x, from_y)]
    return torch.minimum(*padded)


