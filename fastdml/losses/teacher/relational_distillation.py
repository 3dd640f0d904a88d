"""Relational knowledge distillation of distances and of angles."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.autograd import evaluate, once, refuse_transforms
from ...engine.call import Before, Call, statistic_type
from ...engine.registry import register
from ...language import Row, count, detach, maximum, minimum, sum
from ...language.described import Described
from .relations import RelationalLoss, check_teacher

__all__ = ["RKDAngleLoss", "RKDDistanceLoss"]


def _huber(x: Any) -> Any:
    """x^2 / 2 up to 1 and |x| - 1/2 beyond; its derivative is x, cut off."""
    cut = detach(minimum(maximum(x, -1.0), 1.0))
    return cut * (x - cut / 2)


@register
@dataclasses.dataclass(frozen=True)
class RKDDistance(Described):
    """SPEC 1.2. Scalars: one over the student's mean distance, and over the teacher's."""

    name = "rkd_distance"
    provenance = "released code"
    learnable = (0.2, 0.2)
    teacher_similarity = "raw_distance"
    symmetric = True

    similarity: str = dataclasses.field(default="raw_distance", kw_only=True)

    def __post_init__(self) -> None:
        check.distance(self.similarity)

    def row(self, p: Row) -> Any:
        x = p.s * p.scalar(0) - p.teacher * p.scalar(1)
        return sum(_huber(x), where=p.pair) / p.columns


@register
@dataclasses.dataclass(frozen=True)
class MeanDistance(Described):
    """The mean of the distances above 0."""

    name = "mean_distance"
    unlisted = True
    counted = True
    outputs = 2
    symmetric = True
    additive = True

    similarity: str = dataclasses.field(default="raw_distance", kw_only=True)

    def __post_init__(self) -> None:
        check.distance(self.similarity)

    def row(self, p: Row) -> Any:
        return sum(p.s, where=p.pair), count(where=p.pair & (p.s > 0))


@register
@dataclasses.dataclass(frozen=True)
class RKDAngle(Described):
    """SPEC 1.2, of one vertex: rows are directions from it, compared by their cosines."""

    name = "rkd_angle"
    provenance = "released code"
    self_pair = "keep"
    teacher_similarity = "cosine"
    symmetric = True

    def row(self, p: Row) -> Any:
        return sum(_huber(p.s - p.teacher), where=p.pair)


class RKDDistanceLoss(RelationalLoss):
    """Distance-wise relational distillation.

    *Relational Knowledge Distillation*, Park et al., CVPR 2019 (arXiv 1904.05068), equations 5 to 7:
    the mean over all B^2 pairs of Huber's cost of d_ij / mu - d'_ij / mu', d the Euclidean distances of
    the embeddings as they are, d' those of the teacher's, mu their means over the distances above 0
    (which the gradient follows).

    Costs two passes over the batch, one for the mean: four products of the batch with itself and two of
    the teacher's. Other arguments: see `RelationalLoss`.
    """

    function = "rkd_distance"
    describes = RKDDistance
    default_similarity = "raw_distance"
    similarities = ("raw_distance",)

    def calls(self, embeddings: Tensor, teacher: Tensor) -> list[Any]:
        check_teacher(embeddings, teacher, "teacher", self.validate)
        call = self.relational_call(RKDDistance(), embeddings, teacher, weight=self.weight)
        means = tuple(
            call.replace(loss=MeanDistance(), anchors=x, teacher=(), reduction="mean", weight=1.0)
            for x in (embeddings, teacher.detach())
        )
        return [call.replace(before=Before(means, _in_units_of_means))]


def _in_units_of_means(call: Call, means: list[Tensor]) -> Call:
    """The call with one over the mean distances of student and teacher as its scalars."""
    kind = statistic_type(call.anchors)
    # Without a distance above 0 there is nothing to scale.
    safe = [torch.where(m > 0, m, torch.ones_like(m)).to(kind).reciprocal() for m in means]
    return call.replace(scalars=torch.stack(safe))


class RKDAngleLoss(RelationalLoss):
    """Angle-wise relational distillation.

    *Relational Knowledge Distillation*, Park et al., CVPR 2019 (arXiv 1904.05068), equations 8 and 9:
    the mean over all B^3 ordered triples of Huber's cost of the difference between the cosine of the
    angle at the middle sample and the teacher's.

    Angles at one sample are cosines of the directions from it: B losses of B x B pairs, one after
    another, in O(B D) memory. The arithmetic stays 2 B^3 D for the student and B^3 E for the teacher:
    Huber's cost has no shorter form. Only reduction="mean". Other arguments: see `RelationalLoss`.
    """

    function = "rkd_angle"
    mean_over = "angles of three samples"
    describes = RKDAngle
    reductions = ("mean",)
    similarities = ("cosine",)

    def calls(self, embeddings: Tensor, teacher: Tensor) -> list[Any]:
        check_teacher(embeddings, teacher, "teacher", self.validate)
        return [Vertices(embeddings, teacher.detach(), self.backend, self.weight)]


@dataclasses.dataclass(frozen=True)
class Vertices:
    """The calls of all vertices, one after another; each is dropped before the next."""

    embeddings: Tensor
    teacher: Tensor
    backend: str
    weight: float
    some: tuple[int, int] | None = None  # the first of the vertices, and the one after the last

    def share(self, start: int, stop: int) -> Vertices:
        """What vertices [start, stop) add."""
        return dataclasses.replace(self, some=(start, stop))

    def evaluate(self) -> Tensor:
        some = self.some or (0, self.embeddings.shape[0])
        refuse_transforms()
        value: Tensor = _Angles.apply(self.embeddings, self.teacher, self.backend, *some)
        return self.weight * value

    @property
    def call(self) -> Call:
        """One of them, for who asks what runs."""
        return of_vertex(self.embeddings, self.teacher, self.backend)


def of_vertex(edges: Tensor, teacher: Tensor, backend: str) -> Call:
    """The call of the directions from one vertex, [B, D], and those of the teacher."""
    everything = torch.zeros(edges.shape[0], dtype=torch.int64, device=edges.device)
    return Call(
        RKDAngle(),
        edges,
        anchor_labels=everything,
        teacher=(teacher,),
        reduction="sum",
        backend=backend,
    )


def _angles(
    embeddings: Tensor, teacher: Tensor, backend: str, start: int, stop: int, gradient: bool
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient of vertices [start, stop), one after another."""
    kind = statistic_type(embeddings, teacher)
    x, t = embeddings.to(kind), teacher.to(kind)
    size = x.shape[0]
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    d_x = torch.zeros_like(x) if gradient else x.new_empty(0)
    for j in range(start, stop):
        edges = (x - x[j]).requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            value = evaluate(of_vertex(edges, t - t[j], backend))
        total += value.detach()
        if gradient:
            (d_edges,) = torch.autograd.grad(value, edges)
            d_x += d_edges
            d_x[j] -= d_edges.sum(0)
    share = 1.0 / max(1, size) ** 3
    return (total * share).to(kind), d_x * share


def _angles_fake(
    embeddings: Tensor, teacher: Tensor, backend: str, start: int, stop: int, gradient: bool
) -> tuple[Tensor, Tensor]:
    kind = statistic_type(embeddings, teacher)
    shape = embeddings.shape if gradient else (0,)
    return embeddings.new_empty((), dtype=kind), embeddings.new_empty(shape, dtype=kind)


_library = torch.library.Library("fastdml", "FRAGMENT")
_library.define(
    "rkd_angle(Tensor embeddings, Tensor teacher, str backend, SymInt start, SymInt stop, bool gradient) "
    "-> (Tensor, Tensor)"
)
_library.impl("rkd_angle", _angles, "CompositeExplicitAutograd")
torch.library.register_fake("fastdml::rkd_angle", _angles_fake, lib=_library)


class _Angles(torch.autograd.Function):
    """The gradient comes with the loss: a graph of B vertices would hold B copies of the batch."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, teacher: Tensor, backend: str, start: int, stop: int
    ) -> Tensor:
        value, gradient = torch.ops.fastdml.rkd_angle(
            embeddings, teacher, backend, start, stop, ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(embeddings, gradient)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, gradient = ctx.saved_tensors
        return *once([(gradient * upstream).to(embeddings.dtype)], [embeddings]), *[None] * 4
