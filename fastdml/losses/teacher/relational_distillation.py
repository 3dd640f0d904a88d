"""Relational knowledge distillation of distances and of angles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...engine import autograd, check, op
from ...engine.dispatch import check_backend
from ...engine.loss import RowLoss, Rows
from ...engine.registry import handle, register
from .relations import RelationalLoss, check_teacher, relational_loss

__all__ = ["RKDAngleLoss", "RKDDistanceLoss", "rkd_angle", "rkd_distance"]


def _huber(x: Tensor) -> Tensor:
    return torch.nn.functional.smooth_l1_loss(x, torch.zeros_like(x), reduction="none")


@register
@dataclasses.dataclass(frozen=True)
class RKDDistance(RowLoss):
    """SPEC 1.2. Scalars: one over the student's mean distance, and over the teacher's."""

    name = "rkd_distance"
    provenance = "released code"
    learnable = (0.2, 0.2)
    teacher_similarity = "raw_distance"
    symmetric = True

    similarity: str = dataclasses.field(default="raw_distance", kw_only=True)

    def __post_init__(self) -> None:
        check.distance(self.similarity)

    def parameters(self) -> tuple[float, ...]:
        return (0.0,)

    def spec(self, rows: Rows) -> Tensor:
        assert rows.teacher is not None and rows.scalars is not None
        terms = _huber(rows.s * rows.scalars[0] - rows.teacher * rows.scalars[1])
        if rows.pair is not None:
            terms = torch.where(rows.pair, terms, torch.zeros_like(terms))
        return terms.mean(1)


@register
@dataclasses.dataclass(frozen=True)
class MeanDistance(RowLoss):
    """The mean of the distances above 0."""

    name = "mean_distance"
    counted = True
    outputs = 2
    symmetric = True

    similarity: str = dataclasses.field(default="raw_distance", kw_only=True)

    def __post_init__(self) -> None:
        check.distance(self.similarity)

    def parameters(self) -> tuple[float, ...]:
        return (0.0,)

    def spec(self, rows: Rows) -> Tensor:
        d = rows.s if rows.pair is None else torch.where(rows.pair, rows.s, torch.zeros_like(rows.s))
        return torch.stack([d.sum(1), (d > 0).sum(1).to(d.dtype)], dim=1)


@register
@dataclasses.dataclass(frozen=True)
class RKDAngle(RowLoss):
    """SPEC 1.2, of one vertex: rows are directions from it, compared by their cosines."""

    name = "rkd_angle"
    provenance = "released code"
    self_pair = "keep"
    teacher_similarity = "cosine"
    symmetric = True

    def parameters(self) -> tuple[float, ...]:
        return (0.0,)

    def spec(self, rows: Rows) -> Tensor:
        assert rows.teacher is not None
        return _huber(rows.s - rows.teacher).sum(1)


class RKDDistanceLoss(RelationalLoss):
    """Distance-wise relational distillation.

    *Relational Knowledge Distillation*, Park et al., CVPR 2019 (arXiv 1904.05068), equations 5 to 7:
    the mean over all B^2 pairs of Huber's cost of d_ij / mu - d'_ij / mu', d the Euclidean distances of
    the embeddings as they are, d' those of the teacher's, mu their means over the distances above 0
    (which the gradient follows).

    Costs two passes over the batch, one for the mean: four products of the batch with itself and two of
    the teacher's. Other arguments: see `RelationalLoss`.
    """

    def description(self) -> RKDDistance:
        return RKDDistance()

    def function(self) -> tuple[Callable[..., Tensor], dict[str, Any]]:
        return rkd_distance, {}


def rkd_distance(
    embeddings: Tensor,
    teacher: Tensor,
    *,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
) -> Tensor:
    """Distance-wise relational distillation of embeddings [B, D] from a teacher's [B, E].

    See `RKDDistanceLoss`; reduction, backend, validate: see `relational_loss`.
    """
    check_backend(backend)
    check_teacher(embeddings, teacher, "teacher", validate)
    everything = torch.zeros(embeddings.shape[0], dtype=torch.int64, device=embeddings.device)
    kind = op.statistic_type(embeddings, teacher)

    def inverse_mean(x: Tensor) -> Tensor:
        mean = autograd.row_loss(
            x, None, everything, None, loss=handle(MeanDistance()), backend=backend
        ).to(kind)
        # Without a distance above 0 there is nothing to scale.
        return torch.where(mean > 0, mean, torch.ones_like(mean)).reciprocal()

    scalars = torch.stack([inverse_mean(embeddings), inverse_mean(teacher.detach())])
    return relational_loss(
        RKDDistance(),
        embeddings,
        teacher,
        scalars=scalars,
        reduction=reduction,
        backend=backend,
        validate=validate,
    )


class RKDAngleLoss(RelationalLoss):
    """Angle-wise relational distillation.

    *Relational Knowledge Distillation*, Park et al., CVPR 2019 (arXiv 1904.05068), equations 8 and 9:
    the mean over all B^3 ordered triples of Huber's cost of the difference between the cosine of the
    angle at the middle sample and the teacher's.

    Angles at one sample are cosines of the directions from it: B losses of B x B pairs, one after
    another, in O(B D) memory. The arithmetic stays 2 B^3 D for the student and B^3 E for the teacher:
    Huber's cost has no shorter form. Only reduction="mean". Other arguments: see `RelationalLoss`.
    """

    def description(self) -> RKDAngle:
        return RKDAngle()

    def function(self) -> tuple[Callable[..., Tensor], dict[str, Any]]:
        return rkd_angle, {}


def rkd_angle(
    embeddings: Tensor,
    teacher: Tensor,
    *,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = False,
) -> Tensor:
    """Angle-wise relational distillation of embeddings [B, D] from a teacher's [B, E].

    See `RKDAngleLoss`; backend, validate: see `relational_loss`.
    """
    if reduction != "mean":
        raise ValueError(f"reduction: expected 'mean', got {reduction!r}")
    check_backend(backend)
    check_teacher(embeddings, teacher, "teacher", validate)
    return _Angles.apply(embeddings, teacher.detach(), backend)


def _angles(
    embeddings: Tensor, teacher: Tensor, backend: str, gradient: bool
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient, one vertex after another."""
    kind = op.statistic_type(embeddings, teacher)
    x, t = embeddings.to(kind), teacher.to(kind)
    size = x.shape[0]
    everything = torch.zeros(size, dtype=torch.int64, device=x.device)
    loss = handle(RKDAngle())
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    d_x = torch.zeros_like(x) if gradient else x.new_empty(0)
    wanted = [gradient, False, False, False, False]
    for j in range(size):
        value, d_edges, *_ = torch.ops.fastdml.row_loss(
            x - x[j],
            None,
            everything,
            None,
            [],
            [t - t[j]],
            None,
            None,
            None,
            None,
            loss,
            "",
            backend,
            "sum",
            wanted,
        )
        total += value
        if gradient:
            d_x += d_edges
            d_x[j] -= d_edges.sum(0)
    share = 1.0 / size**3
    return (total * share).to(kind), (d_x * share).to(embeddings.dtype)


def _angles_fake(
    embeddings: Tensor, teacher: Tensor, backend: str, gradient: bool
) -> tuple[Tensor, Tensor]:
    kind = op.statistic_type(embeddings, teacher)
    return embeddings.new_empty((), dtype=kind), embeddings.new_empty(
        embeddings.shape if gradient else 0
    )


_library = torch.library.Library("fastdml", "FRAGMENT")
_library.define(
    "rkd_angle(Tensor embeddings, Tensor teacher, str backend, bool gradient) -> (Tensor, Tensor)"
)
_library.impl("rkd_angle", _angles, "CompositeExplicitAutograd")
torch.library.register_fake("fastdml::rkd_angle", _angles_fake, lib=_library)


class _Angles(torch.autograd.Function):
    """The gradient comes with the loss: a graph of B vertices would hold B copies of the batch."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, teacher: Tensor, backend: str) -> Tensor:
        value, gradient = torch.ops.fastdml.rkd_angle(
            embeddings, teacher, backend, ctx.needs_input_grad[0]
        )
        ctx.save_for_backward(embeddings, gradient)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, gradient = ctx.saved_tensors
        found = (gradient * upstream).to(gradient.dtype)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            found = autograd._Once.apply(found, embeddings)
        return found, None, None
