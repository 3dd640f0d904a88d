"""Margin loss, over all triplets or with negatives drawn by distance."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...mining.choice import distance_log_weight, draw, poison
from ...engine.op import statistic_type
from ...engine.registry import register
from ...engine.relation import LabelRelation
from ...mining.miners import LazyPairs
from ..base import Call, checked, checked_reduction, sample_loss
from ..terms import masked_sum
from .triplets import (
    Batch,
    Stream,
    TripletLoss,
    Triplets,
    check_per_anchor,
    distances,
    one_by_one,
    reduced,
    rows_of,
    wide,
)

__all__ = ["MarginLoss", "margin"]

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
        check.positive(self.cutoff, "cutoff")
        check.positive(self.nonzero_loss_cutoff, "nonzero_loss_cutoff")
        check.non_negative(self.epsilon, "epsilon")
        if self.normalizer not in _NORMALIZERS:
            raise ValueError(
                f"normalizer: expected one of {sorted(_NORMALIZERS)}, got {self.normalizer!r}"
            )

    @property
    def detaches(self) -> bool:  # type: ignore[override]
        return self.drawn  # which pairs are drawn is a step function of the distances

    def parameters(self) -> tuple[float, ...]:
        return (
            self.margin,
            self.nu,
            float(_NORMALIZERS[self.normalizer]),
            float(self.drawn),
            float(self.dimension),
            self.cutoff,
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
        pull = rows.s - beta[:, None] + self.margin
        push = beta[:, None] - rows.s + self.margin
        kind = rows.s.dtype
        own, others = rows.positive.sum(1).to(kind), rows.negative.sum(1).to(kind)
        near = ((pull > 0) & rows.positive).sum(1).to(kind)
        far = ((push > 0) & rows.negative).sum(1).to(kind)
        loss = others * masked_sum(pull.relu(), rows.positive)
        loss = loss + own * masked_sum(push.relu(), rows.negative) + self.nu * beta * own * others
        if self.normalizer == "triplets":
            count = own * others - (own - near) * (others - far)
        else:
            count = others * near + own * far
        return torch.stack([loss, count], dim=1)

    def _drawn(self, rows: Rows, beta: Tensor) -> Tensor:
        assert rows.row_values is not None
        longest = int(rows.positive.sum(1).max()) if rows.positive.numel() else 0
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


def margin(
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: object = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.2,
    nu: float = 0,
    beta: Tensor | float = 1.2,
    triplets_per_anchor: str | int = "all",
    normalizer: str = "pairs",
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
    epsilon: float = 0.0,
    seed: int | Tensor = 0,
    step: int | Tensor = 0,
    similarity: str = "distance",
    **options: Any,
) -> Tensor:
    """Margin loss as a function; see `MarginLoss`.

    beta: a number, or a tensor of one or [C] elements, which may want a gradient; with [C], labels are
    0 ... C - 1. seed, step: below 2^24, the stream of draws. options: see `sample_loss`.
    """
    check_per_anchor(triplets_per_anchor, "all", _BY_DISTANCE)
    check.embeddings(embeddings, "embeddings")
    by_distance = triplets_per_anchor == _BY_DISTANCE
    if "distance" not in similarity or (by_distance and similarity != "distance"):
        kinds = "'distance' with draws by distance" if by_distance else "a kind of distance"
        raise ValueError(f"similarity: expected {kinds}, got {similarity!r}")
    stream: Stream = (check.seed(seed, "seed"), check.seed(step, "step"))
    validate = options.get("validate", False)
    values = _beta(beta, embeddings)
    one_beta = values.shape[0] == 1
    description = Margin(
        margin,
        0.0 if one_beta else nu,
        normalizer,
        by_distance,
        embeddings.shape[1],
        cutoff,
        nonzero_loss_cutoff,
        epsilon,
        similarity=similarity,
    )
    batch = (embeddings, labels, indices_tuple, ref_emb, ref_labels)
    description, batch, stream = _fused(description, batch, stream)
    per_row = _of_rows(values, embeddings, batch[1], validate)
    number = "all" if description.drawn else triplets_per_anchor
    single = one_by_one(description, batch, number, stream, validate=validate)
    if single is None:
        columns = [per_row]
        if description.drawn:
            columns += _stream_columns(stream, per_row)
        row_values = torch.stack(columns, dim=1)
        value = sample_loss(description, *batch, row_values=row_values, **options)
    else:
        reduction = checked_reduction(description, batch[3], **options)
        call, triplets = single
        loss, count = _of_listed(description, call, triplets, per_row)
        value = reduced(loss, count, triplets.a, embeddings.shape[0], reduction)
    if not one_beta or nu == 0:
        return value
    some = _some_triplet(checked(*batch)) if single is None else single[1].any()
    once = torch.where(some, nu * values[0], 0.0)
    return value + (once / value.shape[0] if value.dim() else once)


def _fused(description: Margin, batch: Batch, stream: Stream) -> tuple[Margin, Batch, Stream]:
    """The same call, with the draws of a miner's result inside the pass over the rows."""
    embeddings, labels, indices, ref_emb, ref_labels = batch
    if not isinstance(indices, LazyPairs) or indices.stream is None:
        return description, batch, stream
    fused = indices.fuse(description, embeddings, labels, ref_emb, ref_labels)
    if not isinstance(fused, Margin) or fused.epsilon != 0:  # the miner's distances have no epsilon
        return description, (embeddings, labels, tuple(indices), ref_emb, ref_labels), stream
    _, labels, _, ref_labels = indices.mined
    return fused, (embeddings, labels, None, ref_emb, ref_labels), indices.stream


def _beta(beta: Tensor | float, embeddings: Tensor) -> Tensor:
    """[1] or [C] values in the type of the loss."""
    if isinstance(beta, Tensor):
        if beta.dim() > 1 or beta.numel() == 0 or not beta.is_floating_point():
            raise ValueError(
                "beta: expected a number or floating-point values [classes], got "
                f"{beta.dtype} {tuple(beta.shape)}"
            )
    else:
        check.finite(beta, "beta")
    kind = statistic_type(embeddings, None)
    return torch.as_tensor(beta, dtype=kind, device=embeddings.device).reshape(-1)


def _of_rows(values: Tensor, embeddings: Tensor, labels: Tensor | None, validate: bool) -> Tensor:
    """[B] beta of every row."""
    rows, classes = embeddings.shape[0], values.shape[0]
    if classes == 1:
        return values.expand(rows)
    if labels is None:
        raise ValueError("labels: expected labels with a beta for every class, got None")
    labels = check.labels(labels, rows, embeddings.device, "labels", "embeddings")
    check.class_range(labels, classes, "labels", validate, "one beta per class")
    return values[labels]


def _stream_columns(stream: Stream, like: Tensor) -> list[Tensor]:
    """[B] numbers of the rows and, for all of them, seed and step."""
    rows = like.shape[0]
    number = torch.arange(rows, dtype=like.dtype, device=like.device)
    parts = [torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in stream]
    return [number, *(v.reshape(1).expand(rows) for v in parts)]


def _of_listed(
    description: Margin, call: Call, triplets: Triplets, per_row: Tensor
) -> tuple[Tensor, Tensor]:
    """[T] losses of the triplets, and how many of their pairs (or 1 if any) are active."""
    x, y = wide(call)
    epsilon = description.distance_epsilon(x.shape[1])
    near, far = (
        distances(description.metric, x, y, triplets.a, other, epsilon)
        for other in (triplets.p, triplets.n)
    )
    beta = rows_of(per_row[:, None], triplets.a)[:, 0]
    pull, push = near - beta + description.margin, beta - far + description.margin
    pulled, pushed = pull.detach() > 0, push.detach() > 0
    if description.normalizer == "triplets":
        count = (pulled | pushed).to(pull.dtype)
    else:
        count = pulled.to(pull.dtype) + pushed.to(pull.dtype)
    loss = pull.relu() + push.relu() + description.nu * beta
    return triplets.masked(loss), triplets.masked(count)


def _some_triplet(call: Call) -> Tensor:
    """Whether any anchor has a positive and a negative: a bool scalar."""
    if call.pairs:
        a1, _, a2, _ = call.pairs
        return torch.isin(a1, a2).any()
    assert call.labels is not None
    columns = call.labels if call.ref_labels is None else call.ref_labels
    own, others = LabelRelation(call.labels, columns).counts(excludes_self=call.ref_emb is None)
    return ((own > 0) & (others > 0)).any()


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
            drawn uniformly with replacement, O(batch * number * dim) memory; or "distance_weighted":
            for every positive one negative is drawn, with probabilities inverse to the density of
            distances on the sphere, inside the pass over the row, as with a `DistanceWeightedMiner`'s
            result as `indices_tuple`. An anchor without an admissible negative has no triplet then.
        normalizer: "pairs" (above; the released code), or "triplets" with at least one active pair.
        cutoff: distances below count as this one. nonzero_loss_cutoff: negatives farther are not drawn.
        epsilon: added to squared distances under the root (1e-8 in the released code).
        seed: of the draws, an integer in [0, 2^24). In training mode every call takes the next numbers
            (`step`, in the state); the same state gives the same draws on every device.

    A tuple (a, p, n) is a list of triplets, and these alone count; it takes O(triplets * dim) memory. Of
    (a1, p, a2, n) every positive of an anchor is taken with every negative of it.

    With reduction="sum" nothing is divided; "none" returns the sum of each row's triplets, and with one
    learnt beta of nu beta a share of 1 / batch each. Other arguments: see `SampleLoss`.
    """

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
        initial = torch.full((num_classes or 1,), check.finite(beta, "beta"))
        if learn_beta:
            self.beta = nn.Parameter(initial)
        else:
            # As margin, an argument: not in the state, where pytorch-metric-learning has none either.
            self.register_buffer("beta", initial, persistent=False)
        self.description()  # checks the parameters

    def description(self) -> Margin:
        return Margin(
            self.margin,
            self.nu if self.learn_beta else 0.0,
            self.normalizer,
            epsilon=self.epsilon,
            cutoff=self.cutoff,
            nonzero_loss_cutoff=self.nonzero_loss_cutoff,
            similarity=self.similarity,
        )

    def losses(self, *batch: Any) -> Tensor:
        return margin(
            *batch,
            margin=self.margin,
            nu=self.nu if self.learn_beta else 0.0,
            beta=self.beta,
            triplets_per_anchor=self.triplets_per_anchor,
            normalizer=self.normalizer,
            cutoff=self.cutoff,
            nonzero_loss_cutoff=self.nonzero_loss_cutoff,
            epsilon=self.epsilon,
            **{**self.stream(), **self.options()},
        )
