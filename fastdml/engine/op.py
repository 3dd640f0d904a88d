"""The one operator behind every loss: `torch.ops.fastdml.row_loss`.

It returns the loss and, because they cost least together, its gradients. It is a plain function of
tensors (no autograd of its own), so torch.compile and exporters see one opaque call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import dispatch
from .problem import Problem
from .registry import description
from .relation import LabelRelation, PredicateRelation, Relation, TupleRelation

REDUCTIONS = ("mean", "sum", "nonzero", "none")

SCHEMA = (
    "row_loss(Tensor anchors, Tensor? candidates, Tensor? anchor_labels, Tensor? candidate_labels, "
    "Tensor[] pairs, Tensor[] teacher, Tensor? row_weight, str loss, str relation, str backend, "
    "str reduction, bool[] gradients) -> (Tensor, Tensor, Tensor)"
)

_library = torch.library.Library("fastdml", "DEF")
_library.define(SCHEMA)

_predicates: dict[str, object] = {}


def predicate_handle(predicate: object) -> str:
    """A string that stands for a user's relation in the operator's arguments."""
    for known, found in _predicates.items():
        if found is predicate:
            return known
    name = f"predicate:{len(_predicates)}"
    _predicates[name] = predicate
    return name


def statistic_type(anchors: Tensor, candidates: Tensor | None) -> torch.dtype:
    """float64 where an input is, else float32: the type of losses and accumulated gradients."""
    both = (anchors,) if candidates is None else (anchors, candidates)
    return torch.float64 if any(x.dtype == torch.float64 for x in both) else torch.float32


def problem_of(
    anchors: Tensor,
    candidates: Tensor | None,
    anchor_labels: Tensor | None,
    candidate_labels: Tensor | None,
    pairs: Sequence[Tensor],
    teacher: Sequence[Tensor],
    row_weight: Tensor | None,
    loss: str,
    relation: str,
) -> Problem:
    """The operator's arguments as a problem."""
    statistic = statistic_type(anchors, candidates)
    # Products in the input's type on an accelerator, in the type of the statistics on the CPU, where
    # half-precision products are neither faster nor accurate.
    if anchors.device.type == "cpu" or candidates is not None and candidates.dtype != anchors.dtype:
        compute = statistic
    else:
        compute = anchors.dtype
    a = anchors.detach().to(compute).contiguous()
    c = a if candidates is None else candidates.detach().to(compute).contiguous()
    related: Relation
    if pairs:
        related = TupleRelation(tuple(pairs), a.shape[0], c.shape[0])  # type: ignore[arg-type]
    elif relation:
        related = PredicateRelation(_predicates[relation], a.shape[0], c.shape[0], a.device)  # type: ignore[arg-type]
    else:
        assert anchor_labels is not None
        rows = anchor_labels.contiguous()
        columns = rows if candidate_labels is None else candidate_labels.contiguous()
        related = LabelRelation(rows, columns)
    return Problem(
        loss=description(loss),
        anchors=a,
        candidates=c,
        relation=related,
        statistic=statistic,
        row_weight=None if row_weight is None else row_weight.to(statistic).contiguous(),
        teacher=None if not teacher else (teacher[0].to(compute), teacher[-1].to(compute)),
    )


def row_loss(
    anchors: Tensor,
    candidates: Tensor | None,
    anchor_labels: Tensor | None,
    candidate_labels: Tensor | None,
    pairs: list[Tensor],
    teacher: list[Tensor],
    row_weight: Tensor | None,
    loss: str,
    relation: str,
    backend: str,
    reduction: str,
    gradients: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    problem = problem_of(
        anchors, candidates, anchor_labels, candidate_labels, pairs, teacher, row_weight, loss, relation
    )
    executor, _ = dispatch.choose(problem, backend)
    if reduction == "mean":
        problem.weight = 1.0 / max(1, problem.relation.rows)
    device = anchors.device.type
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            losses, d_a, d_c = executor.run(problem, anchors=gradients[0], candidates=gradients[1])
    else:
        losses, d_a, d_c = executor.run(problem, anchors=gradients[0], candidates=gradients[1])
    value = losses
    if reduction != "none":
        weighted = losses if problem.row_weight is None else losses * problem.row_weight
        # Summed in double precision: the order of a sum over a large batch must not show.
        total = weighted.sum(dtype=torch.float64)
        if reduction == "nonzero":
            share = (losses > 0).sum().clamp(min=1).to(torch.float64).reciprocal()
            total = total * share
            for d in (d_a, d_c):
                if d is not None:
                    d.mul_(share.to(d.dtype))
        value = (total * problem.weight).to(losses.dtype)
    empty = anchors.new_empty(0)
    return (
        value,
        empty if d_a is None else d_a.to(anchors.dtype),
        empty.clone() if d_c is None else d_c.to(candidates.dtype),  # type: ignore[union-attr]
    )


def _fake(
    anchors: Tensor,
    candidates: Tensor | None,
    anchor_labels: Tensor | None,
    candidate_labels: Tensor | None,
    pairs: list[Tensor],
    teacher: list[Tensor],
    row_weight: Tensor | None,
    loss: str,
    relation: str,
    backend: str,
    reduction: str,
    gradients: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (anchors.shape[0],) if reduction == "none" else ()
    value = anchors.new_empty(shape, dtype=statistic_type(anchors, candidates))
    d_a = anchors.new_empty(anchors.shape if gradients[0] else (0,))
    other = anchors if candidates is None else candidates
    d_c = other.new_empty(other.shape) if gradients[1] and candidates is not None else anchors.new_empty(0)
    return value, d_a, d_c


_library.impl("row_loss", row_loss, "CompositeExplicitAutograd")
torch.library.register_fake("fastdml::row_loss", _fake, lib=_library)
