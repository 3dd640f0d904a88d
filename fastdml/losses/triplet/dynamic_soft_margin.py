"""Dynamic soft margin loss."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from ...engine import check, in_torch
from ...engine.call import Call, statistic_type
from ...engine.distances import metric_of
from ...engine.loss import RowLoss, Rows
from ...mining.batch import checked
from ...mining.steps import recomputing
from ...mining.triplets import listed
from ..base import SampleLoss
from ..terms import nothing
from .listed import pair_numbers

__all__ = ["DynamicSoftMarginLoss"]


@dataclasses.dataclass(frozen=True)
class Bins:
    """Equally wide bins from `low` on; a number lies between the centres of two."""

    low: float
    width: float
    number: int

    def place(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bin below each x, and its share of the next one. Beyond the ends, the last ones."""
        at = ((x - self.low) / self.width).clamp(min=0)
        below = at.floor()
        # The share of a NaN is one, and its bin any: torch makes any integer of it.
        return below.clamp(max=self.number - 1).long().clamp(min=0), at - below

    def mass(self, x: Tensor, counted: Tensor | None) -> Tensor:
        """[bins] how much of numbers x lies in each; counted: which of them count, None for all."""
        below, share = self.place(x)
        found = x.new_zeros(self.number)
        found = found.index_add(0, below.flatten(), _kept(1 - share, counted).flatten())
        above = (below + 1).clamp(max=self.number - 1)
        return found.index_add(0, above.flatten(), _kept(share, counted).flatten())


def _kept(x: Tensor, counted: Tensor | None) -> Tensor:
    """x, 0 where it does not count. (To pick those that do costs several times as much.)"""
    return x if counted is None else x.masked_fill(~counted, 0.0)


@dataclasses.dataclass(frozen=True)
class Weighed:
    """The mean of numbers of triplets, each weighed by the share of numbers that are lower.

    numbers: called twice, with a function of numbers and of which of them count that returns [k]: what they
    add up to, [k], and how many there are. call: that of all triplets, or None.
    """

    loss: DynamicSoftMarginLoss
    numbers: Any
    embeddings: Tensor
    call: Call | None = None

    def evaluate(self) -> Tensor:
        bins = self.loss.bins
        with torch.no_grad():
            mass, count = self.numbers(bins.mass)
        if count == 0:
            return nothing(self.embeddings, None if self.call is None else self.call.candidates)
        share = self.loss.updated(mass).cumsum(0)

        def weighed(x: Tensor, counted: Tensor | None) -> Tensor:
            below, _ = bins.place(x.detach())
            return _kept(share.to(x.dtype)[below] * x, counted).sum().reshape(1)

        found: Tensor = self.numbers(weighed)[0][0] / count
        return found


def _of_list(x: Tensor, function: Any) -> tuple[Tensor, int]:
    return function(x, None), x.shape[0]


def _of_rows(call: Call, function: Any) -> tuple[Tensor, float]:
    """Of all triplets, in blocks of rows."""

    def outputs(rows: Rows) -> Tensor:
        near, _, valid = rows.thresholds()
        counted = valid[:, :, None] & rows.negative[:, None, :]
        found = function(near[:, :, None] - rows.s[:, None, :], counted)
        found = torch.cat([found, counted.sum().to(found.dtype)[None]])
        # A block's sums stand in its first row.
        rest = found.new_zeros(rows.s.shape[0] - 1, found.shape[0])
        return torch.cat([found[None], rest])

    total = in_torch.row_outputs(call, outputs).sum(0)
    return total[:-1], total[-1].round().item()  # NaN where embeddings are


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
            return [self._of_pairs(embeddings, ref_emb)]
        batch = checked(embeddings, labels, indices_tuple, ref_emb, ref_labels, own, self.validate)
        triplets = listed(batch, join=True)
        if triplets is not None:
            near, far = pair_numbers(batch, self.similarity, triplets)
            return [Weighed(self, functools.partial(_of_list, near - far), embeddings)]
        call = self.sample_call(self.description(), batch, reduction="mean")
        return [Weighed(self, functools.partial(_of_rows, call), embeddings, call)]

    def _of_pairs(self, embeddings: Tensor, ref_emb: Tensor) -> Weighed:
        check.embeddings(embeddings, "embeddings", self.validate)
        check.embeddings(ref_emb, "ref_emb", self.validate)
        check.same_space(embeddings, ref_emb, "embeddings", "ref_emb")
        kind = statistic_type(embeddings, ref_emb)
        x, y = embeddings.to(kind), ref_emb.to(kind)
        pairs = min(x.shape[0], y.shape[0])
        metric = metric_of(self.similarity)
        own = metric.paired(x[:pairs], y[:pairs])
        nearest = _nearest_others(metric, x, y)
        numbers = torch.cat([own, own.new_zeros(nearest.shape[0] - pairs)]) - nearest
        return Weighed(self, functools.partial(_of_list, numbers), embeddings)


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


