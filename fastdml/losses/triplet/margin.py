"""Margin loss, over all triplets or with negatives drawn by distance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import statistic_type
from ...engine.counting import longest_row, row_counts
from ...engine.loss import Piece, RowLoss, Rows
from ...engine.registry import register
from ...engine.summed import values_of
from ...mining.batch import Batch
from ...mining.choice import LEAST, distance_log_weight, draw, poison
from ...mining.lazy import LazyPairs
from ...mining.triplets import Stream, Triplets, check_per_anchor
from ..base import Term
from ..terms import masked_sum
from .listed import Listed, PerRow, TripletLoss, costs, pair_numbers

__all__ = ["MarginLoss"]

_NORMALIZERS = {"pairs": 0, "triplets": 1}
_BY_DISTANCE = "distance_weighted"


@register
@dataclasses.dataclass(frozen=True)
class Margin(RowLoss):
    """SPEC 2.14. row_values: beta of the row; then, for draws, its number and its stream's two numbers."""

    name = "margin"
    provenance = "released code"
    outputs = 2
    counted = True

    margin: float = 0.2
    nu: float = 0.0
    normalizer: str = "pairs"
    drawn: bool = False
    dimension: int = 128
    cutoff: float = 0.5
    nonzero_loss_cutoff: float = 1.4
    epsilon: float = 0.0
    similarity: str = dataclasses.field(default="distance", kw_only=True)

    def __post_init__(self) -> None:
        check.finite(self.margin, "margin")
        check.finite(self.nu, "nu")
        check.non_negative(self.cutoff, "cutoff")
        check.finite(self.nonzero_loss_cutoff, "nonzero_loss_cutoff")
        check.non_negative(self.epsilon, "epsilon")
        check.one_of(self.normalizer, "normalizer", sorted(_NORMALIZERS))

    def with_rule(self, rule: Mapping[str, Any]) -> RowLoss | None:
        # A miner's distances have no epsilon, and only draws by distance are known; they go before own ones.
        known = self.epsilon == 0 and "drawn" in rule
        return dataclasses.replace(self, **rule) if known else None

    @property
    def only_in_torch(self) -> str | None:
        known = self.metric.sign < 0
        return super().only_in_torch or (None if known else "its compiled forms are on distances")

    @property
    def detaches(self) -> bool:  # type: ignore[override]
        return self.drawn  # which pairs are drawn is a step function of the distances

    @property
    def unlisted(self) -> bool:  # type: ignore[override]
        return self.drawn  # a candidate's random numbers are those of its place among all

    def parameters(self) -> tuple[float, ...]:
        return (
            self.margin,
            self.nu,
            float(_NORMALIZERS[self.normalizer]),
            float(self.drawn),
            float(self.dimension),
            max(self.cutoff, LEAST),
            self.nonzero_loss_cutoff,
        )

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(0.1, 0.3, "triplets")]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        return {"row_values": torch.linspace(0.9, 1.4, rows)[:, None]}

    def distance_epsilon(self, dimension: int) -> float:
        return self.epsilon

    def spec(self, rows: Rows) -> Tensor:
        assert rows.row_values is not None
        beta = rows.row_values[:, 0]
        return self._drawn(rows, beta) if self.drawn else self._all(rows, beta)

    def _all(self, rows: Rows, beta: Tensor) -> Tensor:
        sign = self.metric.sign
        pull = sign * (beta[:, None] - rows.s) + self.margin
        push = sign * (rows.s - beta[:, None]) + self.margin
        kind = rows.s.dtype
        own, others = row_counts(rows.positive).to(kind), row_counts(rows.negative).to(kind)
        near = row_counts((pull > 0) & rows.positive).to(kind)
        far = row_counts((push > 0) & rows.negative).to(kind)
        loss = others * masked_sum(pull.relu(), rows.positive)
        loss = loss + own * masked_sum(push.relu(), rows.negative) + self.nu * beta * own * others
        if self.normalizer == "triplets":
            count = own * others - (own - near) * (others - far)
        else:
            count = others * near + own * far
        return torch.stack([loss, count], dim=1)

    def pieces(self, rows: Rows) -> dict[str, Piece]:
        if self.drawn:
            raise ValueError("reducer: expected DivisorReducer or SumReducer with draws by distance")
        assert rows.row_values is not None
        beta = rows.row_values[:, 0]
        near, columns, valid = rows.thresholds()
        sign = self.metric.sign
        pull = (sign * (beta[:, None] - near) + self.margin).relu()[:, :, None]
        push = (sign * (rows.s - beta[:, None]) + self.margin).relu()[:, None, :]
        mask = (valid[:, :, None] & rows.negative[:, None, :]).flatten(1)
        shape = (rows.s.shape[0], columns.shape[1], rows.s.shape[1])
        every = torch.arange(rows.s.shape[1], device=rows.s.device)
        index = [t.expand(shape).flatten(1) for t in (columns[:, :, None], every)]
        active = ((pull > 0).to(pull.dtype) + (push > 0).to(pull.dtype)).flatten(1)
        divisor = masked_sum(active, mask)
        loss = Piece("triplet", (pull + push).flatten(1), mask, divisor, (index[0], index[1]))
        found = {"margin_loss": loss}
        if self.nu:
            weight = (self.nu * beta)[:, None].expand_as(mask)
            found["beta_reg_loss"] = Piece("element", weight, mask, divisor)
        return found

    def _drawn(self, rows: Rows, beta: Tensor) -> Tensor:
        assert rows.row_values is not None
        longest = longest_row(rows.positive)
        index = torch.arange(rows.s.shape[1], device=rows.s.device).expand_as(rows.s)
        index = index.masked_fill(~rows.positive, rows.s.shape[1]).sort(1).values[:, :longest]
        valid = index < rows.s.shape[1]
        d = rows.s.detach()
        eligible = rows.negative & (d < self.nonzero_loss_cutoff)
        weight = distance_log_weight(d, self.dimension, self.cutoff)
        drawn, some = draw(weight, eligible, longest, rows.row_values[:, 1:4].detach())
        valid = valid & some[:, None]
        pull = rows.s.gather(1, index.clamp(max=rows.s.shape[1] - 1)) - beta[:, None] + self.margin
        push = beta[:, None] - rows.s.gather(1, drawn) + self.margin
        near, far = valid & (pull > 0), valid & (push > 0)
        loss = (
            masked_sum(pull, near)
            + masked_sum(push, far)
            + self.nu * beta * valid.sum(1)
            + poison(d)
        )
        count = (near | far).sum(1) if self.normalizer == "triplets" else near.sum(1) + far.sum(1)
        return torch.stack([loss, count.to(loss.dtype)], dim=1)


def _of_rows(values: Tensor, embeddings: Tensor, labels: Tensor | None, validate: bool) -> Tensor:
    """[B] beta of every row."""
    rows, classes = embeddings.shape[0], values.shape[0]
    if classes == 1:
        return values.expand(rows)
    if labels is None:
        raise ValueError("labels: expected labels with a beta for every class, got None")
    check.class_range(labels, classes, "labels", validate, "one beta per class")
    return values[labels]


def _stream_columns(stream: Stream, like: Tensor) -> list[Tensor]:
    """[B] numbers of the rows and, for all of them, seed and step."""
    rows = like.shape[0]
    number = torch.arange(rows, dtype=like.dtype, device=like.device)
    parts = [torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in stream]
    return [number, *(v.reshape(1).expand(rows) for v in parts)]


def _of_listed(
    boundary: Tensor, description: Margin, batch: Batch, triplets: Triplets, summed: bool
) -> Listed:
    """[T] losses of the triplets, and how many of their pairs (or 1 if any) are active.

    boundary: beta, [1] or of every row [B].
    """

    def cost(some: Triplets, near: Tensor, far: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        # One boundary is added up as such, not once for every triplet's row.
        beta = beta if beta.shape[0] == 1 else values_of(beta, some.a)
        pull, push = sign * (beta - near) + margin, sign * (far - beta) + margin
        pulled, pushed = pull.detach() > 0, push.detach() > 0
        if description.normalizer == "triplets":
            count = (pulled | pushed).to(pull.dtype)
        else:
            count = pulled.to(pull.dtype) + pushed.to(pull.dtype)
        return pull.relu() + push.relu() + description.nu * beta, count

    sign, margin = description.metric.sign, description.margin
    epsilon = description.distance_epsilon(batch.embeddings.shape[1])
    numbers = pair_numbers(batch, description.similarity, triplets, epsilon)
    return *costs(cost, triplets, numbers, (boundary,), summed), triplets.a


def _some_triplet(batch: Batch) -> Tensor:
    """Whether any anchor has a positive and a negative: a bool scalar."""
    if batch.pairs:
        a1, _, a2, _ = batch.pairs
        return torch.isin(a1, a2).any()
    own, others = batch.counts()
    return ((own > 0) & (others > 0)).any()


def _once(some: Tensor, nu: float, beta: Tensor, rows: int | None) -> Tensor:
    """nu times the one beta there is, if there is a triplet; rows: as [rows] shares, or None: at once."""
    once = torch.where(some, nu * beta, 0.0)
    return once if rows is None else once / max(1, rows) * once.new_ones(rows)


class MarginLoss(TripletLoss):
    """Margin loss.

    *Sampling Matters in Deep Embedding Learning*, Wu et al., ICCV 2017 (arXiv 1706.07567), equations 3
    and 4, on Euclidean distances d of normalised embeddings, over triplets of an anchor a, a positive p
    and a negative n:

        [d_ap - beta + margin]_+ + [beta - d_an + margin]_+

    divided by the number of active pairs of all triplets.

    Args:
        margin: half the width of the band around beta.
        nu: weight of beta, where it is learnt: nu beta is added once if there is one beta, and to every
            triplet's loss if there is one for each class, as in pytorch-metric-learning.
        beta: the boundary's initial value. learn_beta: whether it is learnt, as the parameter `beta`.
        num_classes: None: one beta; otherwise one for each class 0 ... num_classes - 1, of the anchor.
        triplets_per_anchor: "all"; a number: that many triplets of every anchor that has both kinds,
            drawn uniformly with replacement, O(batch * number) memory; or "distance_weighted":
            for every positive one negative is drawn, with probabilities inverse to the density of
            distances on the sphere, inside the pass over the row, as with a `DistanceWeightedMiner`'s
            result as `indices_tuple`. An anchor without an admissible negative has no triplet then.
        normalizer: "pairs" (above; the released code), or "triplets" with at least one active pair.
        cutoff: distances below count as this one. nonzero_loss_cutoff: negatives farther are not drawn.
        epsilon: added to squared distances under the root (1e-8 in the released code).
        seed: of the draws, an integer in [0, 2^24). In training mode every call takes the next numbers
            (`step`, in the state); the same state gives the same draws on every device.

    A tuple (a, p, n) is a list of triplets, and these alone count; it takes O(triplets) memory. Of
    (a1, p, a2, n) every positive of an anchor is taken with every negative of it.

    With reduction="sum" nothing is divided; "none" returns the sum of each row's triplets, and with one
    learnt beta of nu beta a share of 1 / batch each. Other arguments: see `SampleLoss`.
    """

    function = "margin"
    reducers = {"DivisorReducer": "mean", "SumReducer": "sum"}
    part_names = ("margin_loss", "beta_reg_loss")
    learnt = ("beta",)
    constants = ("beta",)

    beta: Tensor
    inputs = {"beta": ("beta", "learn_beta", "num_classes"), "step": ()}
    default_similarity = "distance"

    def __init__(
        self,
        margin: float = 0.2,
        nu: float = 0,
        beta: float = 1.2,
        triplets_per_anchor: str | int = "all",
        learn_beta: bool = False,
        num_classes: int | None = None,
        *,
        normalizer: str = "pairs",
        cutoff: float = 0.5,
        nonzero_loss_cutoff: float = 1.4,
        epsilon: float = 0.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_per_anchor(triplets_per_anchor, "all", _BY_DISTANCE)
        super().__init__(triplets_per_anchor, seed, **kwargs)
        self.margin = margin
        self.nu = check.finite(nu, "nu")
        self.learn_beta = learn_beta
        self.normalizer = normalizer
        self.cutoff = cutoff
        self.nonzero_loss_cutoff = nonzero_loss_cutoff
        self.epsilon = epsilon
        within = "a number in the range of float32"
        beta = check.number(beta, "beta", within, lambda v: abs(v) < 3e38)
        classes = 1 if num_classes is None else check.count(num_classes, "num_classes")
        self.num_classes = None if num_classes is None else classes
        initial = torch.full((classes,), beta, dtype=torch.float64)
        if learn_beta:
            self.learn("beta", initial)
        else:
            # As margin, an argument: not in the state, where pytorch-metric-learning has none either.
            self.register_buffer("beta", initial, persistent=False)
        self.description()  # checks the parameters

    @property
    def mean_over(self) -> str:  # type: ignore[override]
        return f"{self.normalizer} above 0"

    def description(self) -> Margin:
        by_distance = self.triplets_per_anchor == _BY_DISTANCE
        if by_distance and self.similarity != "distance":
            raise ValueError(
                f"similarity: expected 'distance' with draws by distance, got {self.similarity!r}"
            )
        return Margin(
            self.margin,
            self.nu if self.learn_beta else 0.0,
            self.normalizer,
            by_distance,
            epsilon=self.epsilon,
            cutoff=self.cutoff,
            nonzero_loss_cutoff=self.nonzero_loss_cutoff,
            similarity=self.similarity,
        )

    def calls(
        self,
        *batch: Any,
        own: int | Tensor | None = None,
        beta: Tensor | float | None = None,
        step: int | Tensor | None = None,
    ) -> list[Any]:
        embeddings = batch[0]
        check.embeddings(embeddings, "embeddings", self.validate)
        step = None if step is None else check.seed(step, "step")
        values = self._values(embeddings, beta)
        one_beta = values.shape[0] == 1
        nu = self.nu if self.learn_beta or beta is not None else 0.0
        description, found = self.resolved(*batch, own=own)
        description = dataclasses.replace(
            description, nu=0.0 if one_beta else nu, dimension=embeddings.shape[1]
        )
        per_row = _of_rows(values, embeddings, found.labels, self.validate)
        triplets = self.listed(description, found, step)
        if triplets is None:
            columns = [per_row]
            if description.drawn:
                columns += _stream_columns(found.stream or self.stream(found, step), per_row)
            row_values = torch.stack(columns, dim=1)
            parts: list[Any] = [self.sample_call(description, found, row_values=row_values)]
        else:
            function = PerRow(_of_listed, values if one_beta else per_row)
            parts = [self.one_by_one(description, found, function, triplets)]
        if one_beta and nu != 0:
            some = _some_triplet(found) if triplets is None else triplets.any()
            of_rows = self.reduction == "none" and not self.gives_elements
            rows = embeddings.shape[0] if of_rows else None
            parts.append(Term(_once, (some, nu, values[0], rows)))
        return parts

    def resolved(
        self, embeddings: Tensor, labels: Tensor | None = None, indices_tuple: object = None, *others: Any,
        **kwargs: Any,
    ) -> tuple[Any, Batch]:  # fmt: skip
        # A row that draws its triplets itself adds them up; a reducer wants every one.
        if self.gives_elements and isinstance(indices_tuple, LazyPairs):
            indices_tuple = indices_tuple.listed()
        return super().resolved(embeddings, labels, indices_tuple, *others, **kwargs)

    def _values(self, embeddings: Tensor, beta: Tensor | float | None) -> Tensor:
        """[1] or [C] values of beta in the type of the loss."""
        beta = self.beta if beta is None else beta
        if not isinstance(beta, Tensor):
            check.finite(beta, "beta")
        elif beta.dim() > 1 or beta.numel() == 0 or not beta.is_floating_point():
            raise ValueError(
                "beta: expected a number or floating-point values [classes], got "
                f"{beta.dtype} {tuple(beta.shape)}"
            )
        kind = statistic_type(embeddings)
        return torch.as_tensor(beta, dtype=kind, device=embeddings.device).reshape(-1)
