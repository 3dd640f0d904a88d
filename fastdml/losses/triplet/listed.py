"""Losses of triplets one by one, for what rows cannot make: listed and drawn triplets, and swaps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ...engine import check
from ...engine.autograd import graph_is_kept, once, watched
from ...engine.call import Whole, statistic_type
from ...engine.listed import plan
from ...engine.loss import RowLoss
from ...engine.pair_values import pair_values
from ...mining.batch import Batch
from ...mining.steps import Steps
from ...mining.triplets import Stream, Triplets, drawn, listed
from ..base import SampleLoss

Listed = tuple[Tensor, Tensor, Tensor]  # [T] losses (or their sum), what each counts in the mean, and anchors
# [T] losses and counts of triplets, from what their pairs are [T] and from further numbers
Cost = Callable[..., tuple[Tensor, Tensor]]
# Triplets whose costs are found at once where they are added up: a sixteenth of all, within these. (A cost
# holds half a dozen temporaries.)
_LEAST, _MOST = 1 << 12, 1 << 16


@dataclasses.dataclass(frozen=True)
class OneByOne:
    """A part of a loss that is evaluated triplet by triplet: `function` of all that comes before it.

    Its last argument says whether losses and counts are only added up (`costs`).
    """

    description: Any
    batch: Batch
    triplets: Triplets | None
    function: Callable[[Any, Batch, Triplets | None, bool], Listed]
    reduction: str
    backend: str
    by_rows: bool = False
    weight: float = 1.0
    whole: Whole | None = None

    def share(self, start: int, stop: int, whole: Whole) -> OneByOne:
        """Anchors [start, stop) of all rows: what they add to the loss of all, or their own losses."""
        batch, triplets = self.batch, self.triplets
        rows = slice(start, stop)
        columns, labels = batch.columns, batch.column_labels
        own = batch.own_columns()[rows]
        if triplets is not None:
            kept = ((triplets.a >= start) & (triplets.a < stop)).nonzero()[:, 0]
            valid = None if triplets.valid is None else triplets.valid[kept]
            triplets = Triplets(triplets.a[kept] - start, triplets.p[kept], triplets.n[kept], valid)
        batch = batch.replace(
            embeddings=batch.embeddings[rows], ref_emb=columns, own=own, ref_labels=labels,
            labels=None if batch.labels is None else batch.labels[rows],
            row_weight=None if batch.row_weight is None else batch.row_weight[rows],
        )  # fmt: skip
        function = self.function
        if isinstance(function, PerRow):
            function = function.share(rows)
        return dataclasses.replace(self, batch=batch, triplets=triplets, function=function, whole=whole)

    @property
    def summed(self) -> bool:
        """Whether the losses are only added up."""
        return self.reduction in ("mean", "sum") and self.batch.row_weight is None

    def evaluate(self) -> Tensor:
        """The reduced loss. ValueError where another backend is forced."""
        reason = self.refuses(self.backend)
        if reason is not None:
            raise ValueError(
                f"backend: {self.backend!r} cannot run {self.description.name!r}: {reason}"
            )
        loss, count, anchors = self.function(self.description, self.batch, self.triplets, self.summed)
        rows = self.batch.embeddings.shape[0]
        if self.batch.row_weight is not None:
            loss = loss * self.batch.row_weight[anchors].to(loss.dtype)
        all_rows = rows if self.whole is None else self.whole.rows
        by = max(1, all_rows) if self.by_rows else count
        return reduced(loss, by, anchors, rows, self.reduction, self.whole)

    def elements(self, name: str) -> dict[str, Any]:
        """The triplets' losses as a list, for a reducer object."""
        if self.triplets is None:
            raise ValueError(
                "reducer: all swapped triplets are summed by anchor; expected AvgNonZeroReducer, MeanReducer "
                "or SumReducer, or a miner's list"
            )
        loss, count, _ = self.function(self.description, self.batch, self.triplets, False)
        t = self.triplets
        index = (t.a, t.p, t.n)
        if t.valid is not None:
            loss, index = loss[t.valid], (t.a[t.valid], t.p[t.valid], t.n[t.valid])
        info = {"losses": loss, "indices": index, "reduction_type": "triplet", "divisor": count.sum()}
        return {name: info}

    def refuses(self, backend: str) -> str | None:
        """Why a backend cannot run this, or None."""
        if backend in ("auto", "chunked", "dense"):
            return None
        return "triplets one by one run outside of it; expected backend 'auto', 'chunked' or 'dense'"

    @property
    def plan(self) -> str:
        """What runs, in words."""
        if self.triplets is None:
            return "positive pairs with their negatives, in blocks of bounded memory, in torch"
        x, y = wide(self.batch)
        pairs = 2 * self.triplets.a.shape[0]
        return f"triplets one by one, {plan(x.device.type, x.shape[0], y.shape[0], pairs, x.element_size())}"


@dataclasses.dataclass(frozen=True)
class PerRow:
    """A function of the triplets that also takes a number of every row, or one of all."""

    function: Callable[[Tensor, Any, Batch, Any, bool], Listed]
    values: Tensor  # [B] or [1]

    def __call__(
        self, description: Any, batch: Batch, triplets: Triplets | None, summed: bool
    ) -> Listed:
        return self.function(self.values, description, batch, triplets, summed)

    def share(self, rows: slice) -> PerRow:
        """Of some of the rows."""
        one = self.values.shape[0] == 1
        return self if one else PerRow(self.function, self.values[rows])


def wide(batch: Batch) -> tuple[Tensor, Tensor]:
    """Anchors and candidates in the type of the loss."""
    kind = statistic_type(batch.embeddings, batch.ref_emb)
    x = batch.embeddings.to(kind)
    return x, x if batch.ref_emb is None else batch.ref_emb.to(kind)


def pair_numbers(
    batch: Batch, similarity: str, triplets: Triplets, epsilon: float = 0.0, swap: bool = False
) -> tuple[Tensor, ...]:
    """[T] similarities or distances of the triplets' anchors and positives, and of their anchors and
    negatives; swap: and of their positives and negatives."""
    x, y = wide(batch)
    one_set = batch.ref_emb is None
    lists = [(triplets.a, triplets.p), (triplets.a, triplets.n)]
    between = [(triplets.p, triplets.n)] if swap else []
    if one_set:
        return pair_values(similarity, x, None, lists + between, epsilon)
    found = pair_values(similarity, x, y, lists, epsilon)
    return (*found, *(pair_values(similarity, y, None, between, epsilon) if swap else ()))


def costs(
    cost: Cost, triplets: Triplets, numbers: Sequence[Tensor], others: Sequence[Tensor], summed: bool
) -> tuple[Tensor, Tensor]:
    """[T] losses and counts cost(triplets, *numbers, *others); summed: their sums, from blocks of triplets,
    with their derivatives, so that nothing but these is kept of a list."""
    if summed and not watched(numbers[0]):
        loss, count = _Sums.apply(cost, triplets, len(numbers), *numbers, *others)
    else:
        loss, count = cost(triplets, *numbers, *others)
        loss, count = triplets.masked(loss), triplets.masked(count)
    return loss, count


def _as_it_is(x: Tensor) -> Tensor:
    return x


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, cost: Cost, triplets: Triplets, lists: int, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[3:]
        found = [
            None if not w else torch.empty_like(x) if k < lists else torch.zeros_like(x)
            for k, (x, w) in enumerate(zip(inputs, wanted))
        ]
        total = inputs[0].new_zeros(2, dtype=torch.float64)
        count = triplets.a.shape[0]
        size = min(_MOST, max(_LEAST, count // 16))
        for start in range(0, count, size):
            where = slice(start, start + size)
            leaves = [(x[where] if k < lists else x).detach() for k, x in enumerate(inputs)]
            kept = [x.requires_grad_() for x, w in zip(leaves, wanted) if w]
            part = triplets.part(where)
            # What is saved for this small graph is no affair of hooks around the whole: checkpointing would
            # compute the loss again in the middle of its forward pass.
            with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
                loss, counts = cost(part, *leaves)
                loss = part.masked(loss).sum(dtype=torch.float64)
            total[0] += loss.detach()
            total[1] += part.masked(counts).sum(dtype=torch.float64)
            each = iter(torch.autograd.grad(loss, kept, allow_unused=True) if kept else ())
            for k, d in enumerate(found):
                if d is None:
                    continue
                g = next(each)
                if k < lists:
                    d[where] = 0 if g is None else g
                elif g is not None:
                    d += g
        ctx.found = found
        ctx.save_for_backward(*(x for x, w in zip(inputs, wanted) if w))
        value, counted = total.to(inputs[0].dtype)
        ctx.mark_non_differentiable(counted)
        return value, counted

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        kept = graph_is_kept()
        found = [d * upstream if kept else d.mul_(upstream) for d in ctx.found if d is not None]
        each = iter(once(found, ctx.saved_tensors))
        return None, None, None, *(None if d is None else next(each) for d in ctx.found)


def reduced(
    loss: Tensor,
    count: Tensor | float,
    anchors: Tensor,
    rows: int,
    reduction: str,
    whole: Whole | None = None,
) -> Tensor:
    """Losses [T] of triplets or pairs of `anchors` [T] as a row loss is reduced.

    count: [T] things that they sum, or one number: what the mean divides by. whole: these are some of the
    rows: their part of the value of all, whose counts are those of all.
    """

    def of_all(number: Tensor) -> Tensor:
        return number if whole is None else whole.total(number)

    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        total = of_all(count.sum()).clamp(min=1) if isinstance(count, Tensor) else count
        return loss.sum() / total
    order = anchors.argsort(stable=True)
    lengths = torch.bincount(anchors, minlength=rows)
    by_row = torch.segment_reduce(loss[order], "sum", lengths=lengths, unsafe=True, initial=0.0)
    if reduction == "none":
        return by_row
    return by_row.sum() / of_all((by_row > 0).sum()).clamp(min=1)


class TripletLoss(SampleLoss):
    """A loss over triplets, some of whose forms draw them: then every call in training mode takes the
    next numbers, by `step`, which is in the state. A state without it (that of
    pytorch-metric-learning) loads too."""

    # A functional form is not counted: it draws the same numbers again.
    input_defaults = {"step": 0}

    step: Tensor

    def __init__(self, triplets_per_anchor: str | int, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.triplets_per_anchor = triplets_per_anchor
        self.seed = check.seed(seed, "seed")
        zero = torch.zeros((), dtype=torch.int64)
        self.register_buffer("step", zero, persistent=self.draws)
        self._steps = Steps()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if self.draws:
            state_dict.setdefault(prefix + "step", self.step)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @property
    def draws(self) -> bool:
        return self.triplets_per_anchor != "all"

    def stream(self, batch: Batch, step: int | Tensor | None) -> Stream:
        """Seed and step of a call; in training mode the next call has another step. step: given one."""
        if step is not None:
            return self.seed, step
        if not self.draws:
            return self.seed, 0
        if not self.training:
            return self.seed, self.step % check.STREAMS
        return self.seed, self._steps.take(self.step)

    def listed(
        self, description: RowLoss, batch: Batch, step: int | Tensor | None, join: bool = False
    ) -> Triplets | None:
        """The triplets of a call that rows cannot make; None where they can."""
        if step is not None:
            check.seed(step, "step")
        if batch.listed:
            return listed(batch, join)
        number = self.triplets_per_anchor
        if isinstance(number, str) or batch.predicate is not None or batch.stream is not None:
            return None
        return drawn(batch, number, self.stream(batch, step))

    def one_by_one(
        self,
        description: Any,
        batch: Batch,
        function: Callable[[Any, Batch, Triplets | None, bool], Listed],
        triplets: Triplets | None = None,
    ) -> OneByOne:
        """The part of a loss that `function` makes of triplets."""
        by_rows = getattr(description, "normalizer", None) == "anchors"
        return OneByOne(
            description, batch, triplets, function, self.reduction, self.backend, by_rows
        )
