"""Triplet margin loss over all triplets of the batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import Piece, RowLoss, Rows
from ...engine.registry import register
from ...engine.similarity import METRICS, without_autocast
from ...mining.batch import Batch
from ...mining.choice import STRATEGIES, check_strategies, chosen, nearest, poison
from ...mining.lazy import LazyPairs
from ...mining.pairs import all_pairs
from ...mining.triplets import Triplets, check_per_anchor, joined
from ...reducers import AvgNonZeroReducer, BaseReducer, MeanReducer, native
from ..terms import masked_sum, rank_pairs, softplus, sort_code
from .listed import Listed, TripletLoss, costs, pair_numbers, wide
from .swapped import swapped_sums

__all__ = ["TripletMarginLoss"]


_INF = float("inf")
_COUNTED = {"active": 0, "triplets": 1, "anchors": 2}


@register
@dataclasses.dataclass(frozen=True)
class TripletMargin(RowLoss):
    """SPEC 3.8, all (positive, negative) pairs of every anchor.

    farther_than, at_most: a miner's rule. Triplets count whose negative is farther than the positive by more
        than the one and by no more than the other.
    """

    name = "triplet_margin"
    provenance = "released code"
    outputs = 2
    counted = True
    threshold_list = True

    margin: float = 0.05
    smooth: bool = False
    normalizer: str = "active"
    positives: str = "all"
    negatives: str = "all"
    k: int = 1
    farther_than: float = -_INF
    at_most: float = _INF
    sort: bool | None = dataclasses.field(default=None, kw_only=True)
    similarity: str = dataclasses.field(default="distance", kw_only=True)

    def __post_init__(self) -> None:
        sort_code(self.sort)
        check.finite(self.margin, "margin")
        check.one_of(self.normalizer, "normalizer", sorted(_COUNTED))
        check.count(self.k, "k")
        check_strategies(self.positives, self.negatives, ("positives", "negatives"))

    def with_rule(self, rule: Mapping[str, Any]) -> RowLoss | None:
        if set(rule) <= {"farther_than", "at_most"}:
            alike = not self.smooth and self.normalizer == "active"
            if not alike or (self.positives, self.negatives) != ("all", "all"):
                return None
            # What is farther than the loss's margin has no loss, and is not counted.
            rule = {k: v for k, v in rule.items() if k != "at_most" or v < self.margin}
        return super().with_rule(rule)

    @property
    def direction(self) -> float:
        return self.metric.sign

    def parameters(self) -> tuple[float, ...]:
        counted = float(_COUNTED[self.normalizer])
        chosen = (float(STRATEGIES[self.positives]), float(STRATEGIES[self.negatives]))
        form = (float(self.smooth), sort_code(self.sort), counted)
        # How much nearer negatives are, from the least on.
        nearer = (-self.at_most, -self.farther_than)
        return (self.margin, self.direction, *form, *chosen, float(self.k), *nearer)

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [
            cls(),
            cls(margin=0.2, normalizer="anchors", similarity="cosine"),
            cls(smooth=True, similarity="squared_distance", sort=True),
            cls(similarity="cosine", sort=True),
            cls(0.2, positives="easy", negatives="semihard"),
            cls(0.2, negatives="nearest", k=3),
            cls(normalizer="triplets", similarity="raw_distance"),
            # Bounds that no triplet of the tests' largest batch is near, so that rounding decides of none.
            cls(0.2, farther_than=0.0093553, at_most=0.1211527),
            cls(0.3, at_most=-0.0875796, similarity="cosine", sort=True),
        ]

    def cost(self, t: Tensor) -> Tensor:
        """The loss of triplets; t: similarity or distance of the negative less that of the positive."""
        excess = self.direction * t + self.margin
        cost = softplus(excess) if self.smooth else excess.relu()
        # (A NaN of a listed triplet stays one.)
        return cost.masked_fill(self.left_out(t), 0.0) if self.chooses else cost

    @property
    def chooses(self) -> bool:
        """Whether a miner's rule leaves triplets out."""
        return (self.farther_than, self.at_most) != (-_INF, _INF)

    def left_out(self, t: Tensor) -> Tensor:
        farther = -self.direction * t
        return (farther <= self.farther_than) | (farther > self.at_most)

    def active(self, t: Tensor) -> Tensor:
        """1 where a triplet has a loss, else 0."""
        t = t.detach()
        return ((self.direction * t + self.margin > 0) & ~self.left_out(t)).to(t.dtype)

    def counted_ones(self, t: Tensor) -> Tensor:
        """1 where a triplet counts in the mean, else 0, with normalizers that count triplets."""
        return (
            torch.ones_like(t) if self.smooth or self.normalizer == "triplets" else self.active(t)
        )

    def spec(self, rows: Rows) -> Tensor:
        rows = self._taking_part(rows)
        if self._one_of_a_kind:
            return self._of_chosen(rows)
        total, positives, negatives = rank_pairs(rows, self.cost)
        if self.negatives == "nearest":
            total = total + poison(rows.s)
        if self.normalizer == "anchors":
            count = torch.ones_like(total)
        elif self.smooth or self.normalizer == "triplets":
            count = positives * negatives
        else:
            count, _, _ = rank_pairs(rows, self.active)
        return torch.stack([total, count], dim=1)

    @property
    def _one_of_a_kind(self) -> bool:
        """Whether of a row's positives or of its negatives one takes part."""
        return self.positives != "all" or self.negatives not in ("all", "nearest")

    def _taking_part(self, rows: Rows) -> Rows:
        """The rows with those candidates alone that are chosen."""
        near, negatives = self.direction * rows.s, self.negatives
        if negatives == "nearest":
            rows = dataclasses.replace(rows, negative=nearest(near, rows.negative, self.k))
            negatives = "all"
        if not self._one_of_a_kind:
            return rows
        positive, negative = chosen(near, rows.positive, rows.negative, self.positives, negatives)
        return dataclasses.replace(rows, positive=positive, negative=negative)

    def pieces(self, rows: Rows) -> dict[str, Piece]:
        rows = self._taking_part(rows)
        threshold, columns, valid = rows.thresholds()
        t = rows.s[:, None, :] - threshold[:, :, None]
        cost = self.cost(t)
        mask = valid[:, :, None] & rows.negative[:, None, :] & ~self.left_out(t)
        every = torch.arange(rows.s.shape[1], device=rows.s.device)
        index = [t.expand_as(mask).flatten(1) for t in (columns[:, :, None], every)]
        return {"loss": Piece("triplet", cost.flatten(1), mask.flatten(1), columns=(index[0], index[1]))}

    def _of_chosen(self, rows: Rows) -> Tensor:
        positive, negative = rows.positive, rows.negative
        if self.positives != "all":
            fixed = masked_sum(rows.s, positive)[:, None]
            t, part = rows.s - fixed, negative & positive.any(1, keepdim=True)
        else:
            fixed = masked_sum(rows.s, negative)[:, None]
            t, part = fixed - rows.s, positive & negative.any(1, keepdim=True)
        total = masked_sum(self.cost(t), part) + poison(rows.s)
        if self.normalizer == "anchors":
            count = torch.ones_like(total)
        elif self.smooth or self.normalizer == "triplets":
            count = part.sum(1).to(total.dtype)
        else:
            count = masked_sum(self.active(t), part)
        return torch.stack([total, count], dim=1)


# Reducer objects that are the mean of all triplets, or of those above 0.
_NORMALIZERS: dict[Any, str] = {MeanReducer: "triplets", AvgNonZeroReducer: "active"}


class TripletMarginLoss(TripletLoss):
    """Triplet margin loss over all triplets of the batch, none of which is ever listed.

    *FaceNet: A Unified Embedding for Face Recognition and Clustering*, Schroff et al., CVPR 2015
    (arXiv 1503.03832), equation 3, over all triplets of an anchor a, a positive p and a negative n:
    [d_ap - d_an + margin]_+ on distances, [s_an - s_ap + margin]_+ on similarities.

    Args:
        margin: in units of `similarity`.
        swap: the negative counts from the positive instead of from the anchor where it is nearer to it:
            min(d_an, d_pn) for d_an. Over all triplets these are compared one by one, class by class in
            blocks of bounded memory.
        smooth_loss: log(1 + exp(.)) in place of the hinge.
        triplets_per_anchor: "all", or a number: that many triplets of every anchor that has both kinds,
            drawn uniformly with replacement; O(batch * number) memory. An `indices_tuple` goes
            before it.
        normalizer: what the mean is over. "active": the triplets above 0 (the default, as in
            pytorch-metric-learning; every triplet with smooth_loss), "triplets": all of them,
            "anchors": the sum of a row's triplets, averaged over the rows.
        positives, negatives: which of an anchor's candidates take part, chosen in the pass over its row:
            "all", "hard" (the hardest: farthest positive, nearest negative), "easy", or "semihard" (the
            hardest that is still on the right side of the other kind's). Of negatives also "nearest":
            the k nearest. A `BatchEasyHardMiner` or `NearestNegativeMiner` handed in as `indices_tuple`
            sets them.
        k: of negatives="nearest". Those that are as far as the k-th, to rounding, all take part.
        seed: of the draws, an integer in [0, 2^24). In training mode every call takes the next numbers
            (`step`, in the state).
        similarity: "distance" (Euclidean, of normalised embeddings; the default),
            "squared_distance", "raw_distance", "raw_squared_distance", "cosine" or "dot".
        sort: whether a row of similarities is sorted once, so that only the pairs within the loss's
            window of a positive are evaluated one by one: None where a class is large enough for
            that to pay, on CUDA for more than 256 candidates of one class and for negatives="nearest";
            True always, False never. The result is the same to rounding: a sigmoid is cut off where it
            is within 1e-13 (float64: 3e-20) of 0 or 1.

    A tuple (a, p, n) is a list of triplets, and these alone count; it takes O(triplets) memory. Of
    (a1, p, a2, n) every positive of an anchor is compared with every negative of it.

    With reduction="sum" nothing is divided; "none" returns the sum of each row's triplets. Other
    arguments: see `SampleLoss`.
    """

    function = "triplet_margin"
    inputs = {"step": ()}
    default_similarity = "distance"
    reducers = {"AvgNonZeroReducer": "mean", "SumReducer": "sum", "MeanReducer": "mean"}

    def __init__(
        self,
        margin: float = 0.05,
        swap: bool = False,
        smooth_loss: bool = False,
        triplets_per_anchor: str | int = "all",
        *,
        normalizer: str = "active",
        positives: str = "all",
        negatives: str = "all",
        k: int = 1,
        sort: bool | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_per_anchor(triplets_per_anchor, "all")
        super().__init__(triplets_per_anchor, seed, **kwargs)
        self.margin = margin
        self.swap = swap
        self.smooth_loss = smooth_loss
        if type(native(self._reducer)) is MeanReducer:
            normalizer = _NORMALIZERS[MeanReducer]
        self.normalizer = normalizer
        self.positives = positives
        self.negatives = negatives
        self.k = k
        self.sort = sort
        description = self.description()  # checks the parameters
        if swap and description.similarity == "projection":
            raise ValueError("similarity: expected another one with swap, got 'projection'")
        if swap or self.draws:
            _refuse_choice(description)

    def _reduction_of(self, reducer: object) -> str:
        found = super()._reduction_of(reducer)
        kind = type(native(reducer))
        if kind in _NORMALIZERS:
            self.normalizer = _NORMALIZERS[kind]
        return found

    def _reducer_of(self, reduction: str) -> BaseReducer:
        other = reduction == "mean" and self.normalizer != "active"
        return MeanReducer() if other else super()._reducer_of(reduction)

    @property
    def mean_over(self) -> str:  # type: ignore[override]
        if self.normalizer == "anchors":
            return "samples"
        return "triplets" if self.smooth_loss or self.normalizer == "triplets" else "triplets above 0"

    def description(self) -> TripletMargin:
        return TripletMargin(
            self.margin,
            self.smooth_loss,
            self.normalizer,
            self.positives,
            self.negatives,
            self.k,
            similarity=self.similarity,
            sort=self.sort,
        )

    def calls(
        self, *batch: Any, own: int | Tensor | None = None, step: int | Tensor | None = None
    ) -> list[Any]:
        step = None if step is None else check.seed(step, "step")
        if (self.swap or self.draws) and len(batch) > 2 and isinstance(batch[2], LazyPairs):
            # These take triplets one by one: no rule of a miner's applies.
            batch = (*batch[:2], tuple(batch[2]), *batch[3:])
        description, found = self.resolved(*batch, own=own)
        triplets = self.listed(description, found, step, join=self.swap)
        if triplets is None and not self.swap:
            return [self.sample_call(description, found)]
        _refuse_choice(description)
        if triplets is None and description.similarity not in METRICS and found.predicate is None:
            # A user's distance, whose own parameters may want a gradient.
            triplets = Triplets(*joined(*all_pairs(found)))
        if triplets is None:
            if found.predicate is not None:
                raise ValueError(
                    "indices_tuple: swapped triplets come from labels or listed ones; expected index "
                    "tensors or None, got a function"
                )
            return [self.one_by_one(description, found, _of_all_swapped)]
        function: Any = functools.partial(_of_listed, swap=self.swap)
        return [self.one_by_one(description, found, function, triplets)]


def _refuse_choice(description: TripletMargin) -> None:
    for name in ("positives", "negatives"):
        kind = getattr(description, name)
        if kind != "all":
            raise ValueError(
                f"{name}: expected 'all' with swap, a number of triplets_per_anchor or listed triplets, "
                f"got {kind!r}; hand a miner's tuple to the loss to choose among triplets"
            )


def _of_listed(
    description: TripletMargin, batch: Batch, triplets: Triplets, summed: bool, swap: bool
) -> Listed:
    """[T] losses of the triplets, and 1 where they count."""

    def cost(_: Triplets, near: Tensor, far: Tensor, *between: Tensor) -> tuple[Tensor, Tensor]:
        for other in between:
            far = _nearer(description, far, other)
        t = far - near
        return description.cost(t), description.counted_ones(t)

    numbers = pair_numbers(batch, description.similarity, triplets, swap=swap)
    return *costs(cost, triplets, numbers, (), summed), triplets.a


def _nearer(description: TripletMargin, one: Tensor, other: Tensor) -> Tensor:
    return torch.minimum(one, other) if description.direction < 0 else torch.maximum(one, other)


def _of_all_swapped(
    description: TripletMargin, batch: Batch, _: Triplets | None, summed: bool
) -> Listed:
    """[B] sums of every anchor's triplets, how many of them count, and the anchors."""
    x, y = wide(batch)
    labels, columns = batch.need_labels(), batch.column_labels
    assert columns is not None
    if batch.ref_emb is None:  # the compiler refuses a tensor that is two inputs at once
        y, columns = x.view_as(x), labels.view_as(labels)
    with without_autocast(x.device):
        loss, count = swapped_sums(
            x, y, labels, columns, batch.own_columns(), description.similarity, description.direction,
            description.margin, description.smooth,
        )  # fmt: skip
    if description.smooth or description.normalizer == "triplets":
        own, others = batch.counts()
        count = (own * others).to(loss.dtype)
    return loss, count, torch.arange(x.shape[0], device=x.device)
