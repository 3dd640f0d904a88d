"""The one operator behind every loss: `torch.ops.fastdml.row_loss`.

It returns the loss and, because they cost least together, its gradients. It is a plain function of
tensors (no autograd of its own), so torch.compile and exporters see one opaque call.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import crossover, dispatch, library
from .executors import Executor, Result, Wanted
from .problem import Problem
from .registry import description
from .relation import LabelRelation, Predicate, PredicateRelation, Relation, TupleRelation

REDUCTIONS = ("mean", "sum", "nonzero", "none")
# In the order of the operator's results after the loss, and of `wanted`.
GRADIENTS = ("d_anchors", "d_candidates", "d_scalars", "d_row_values", "d_col_values")

SCHEMA = (
    "row_loss(Tensor anchors, Tensor? candidates, Tensor? anchor_labels, Tensor? candidate_labels, "
    "Tensor[] pairs, Tensor[] teacher, Tensor? scalars, Tensor? row_values, Tensor? col_values, "
    "Tensor? row_weight, str loss, str relation, str backend, str reduction, bool[] wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)

_library = torch.library.Library("fastdml", "DEF")
_library.define(SCHEMA)

_predicates: weakref.WeakValueDictionary[str, Predicate] = weakref.WeakValueDictionary()
_numbers = itertools.count()


class _Handle(str):
    """Keeps the predicate for as long as somebody may ask for it: a backward to come, say."""

    predicate: Predicate


def predicate_handle(predicate: Predicate) -> str:
    """A string that stands for a user's relation in the operator's arguments."""
    handle = _Handle(f"predicate:{next(_numbers)}")
    handle.predicate = predicate
    _predicates[str(handle)] = predicate
    return handle


def statistic_type(anchors: Tensor, candidates: Tensor | None = None) -> torch.dtype:
    """float64 where an input is, else float32: the type of losses and accumulated gradients."""
    wide = anchors.dtype == torch.float64
    wide = wide or (candidates is not None and candidates.dtype == torch.float64)
    return torch.float64 if wide else torch.float32


# Embeddings stored by columns are copied by rows up to this size, and used as they are beyond it.
_COPIED = 16 << 20


def _dense(x: Tensor) -> Tensor:
    """x without gaps: by rows, or, where a copy would cost memory, by columns if it comes so."""
    if x.shape[1] != 1 and x.is_contiguous():
        return x
    if x.shape[1] == 1:  # counts as contiguous with any stride of its second dimension
        return x[:, 0].contiguous()[:, None]
    large = x.numel() * x.element_size() > _COPIED
    return x if large and x.t().is_contiguous() else x.contiguous()


def problem_of(
    anchors: Tensor,
    candidates: Tensor | None,
    anchor_labels: Tensor | None,
    candidate_labels: Tensor | None,
    pairs: Sequence[Tensor],
    teacher: Sequence[Tensor],
    scalars: Tensor | None,
    row_values: Tensor | None,
    col_values: Tensor | None,
    row_weight: Tensor | None,
    loss: str,
    relation: str,
) -> Problem:
    """The operator's arguments as a problem."""
    statistic = statistic_type(anchors, candidates)
    # Products in the input's type on an accelerator, in the type of the statistics on the CPU, where
    # half-precision products are neither faster nor accurate.
    mixed = candidates is not None and candidates.dtype != anchors.dtype
    compute = statistic if anchors.device.type == "cpu" or mixed else anchors.dtype

    def values(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach().to(statistic).contiguous()

    a = _dense(anchors.detach().to(compute).contiguous())
    # A classifier's weight [D, C] comes in as its transpose: a million classes are not copied.
    c = a if candidates is None else _dense(candidates.detach().to(compute))
    related: Relation
    if pairs:
        related = TupleRelation(tuple(pairs), a.shape[0], c.shape[0])
    elif relation:
        related = PredicateRelation(_predicates[relation], a.shape[0], c.shape[0], a.device)
    else:
        assert anchor_labels is not None
        rows = anchor_labels.contiguous()
        columns = rows if candidate_labels is None else candidate_labels.contiguous()
        related = LabelRelation(rows, columns)
    theirs = [x.detach().to(compute).contiguous() for x in teacher]
    return Problem(
        loss=description(loss),
        anchors=a,
        candidates=c,
        relation=related,
        statistic=statistic,
        row_weight=values(row_weight),
        teacher=(theirs[0], theirs[-1]) if theirs else None,
        learnable=values(scalars),
        row_values=values(row_values),
        col_values=values(col_values),
    )


def evaluate(
    problem: Problem, executor: Executor, reduction: str, wanted: Wanted
) -> tuple[Tensor, Result]:
    """The reduced loss and the derivatives of it."""
    counted = problem.loss.counted
    if problem.loss.combined:
        return _of_all_rows(problem, executor, reduction, wanted)
    if reduction == "mean" and not counted:
        problem.weight = 1.0 / max(1, problem.relation.rows)
    result = executor.run(problem, wanted)
    if result.total is not None:
        return result.total, result
    outputs = result.outputs
    if wanted.total and _compiled_sums(outputs):
        total = torch.ops.fastdml_native.total(outputs, problem.row_weight, problem.weight)
        return total, result
    losses = outputs[:, 0]
    weighted = losses if problem.row_weight is None else losses * problem.row_weight
    if reduction == "none":
        return weighted.contiguous(), result
    # Summed in double precision: the order of a sum over a large batch must not show.
    total = weighted.sum(dtype=torch.float64)
    if reduction == "nonzero" or (reduction == "mean" and counted):
        count = (weighted > 0) if reduction == "nonzero" else result.outputs[:, 1]
        share = count.sum(dtype=torch.float64).clamp(min=1).reciprocal()
        total = total * share
        for name in GRADIENTS:
            if (d := getattr(result, name)) is not None:
                d.mul_(share.to(d.dtype))
    return (total * problem.weight).to(losses.dtype), result


def _compiled_sums(outputs: Tensor) -> bool:
    """Whether the compiled library adds up outputs: one call instead of four."""
    return outputs.device.type == "cpu" and library.load() is not None and outputs.is_contiguous()


def _of_all_rows(
    problem: Problem, executor: Executor, reduction: str, wanted: Wanted
) -> tuple[Tensor, Result]:
    """Two visits: the rows' outputs, then their weights in what `combine` makes of them."""
    result = executor.run(problem, Wanted())
    with torch.enable_grad():
        outputs = result.outputs.detach().requires_grad_()
        value = problem.loss.combine(outputs, reduction)
        if not wanted:
            return value.detach(), result
        (weight,) = torch.autograd.grad(value, outputs)
    problem.row_weight = weight.contiguous()
    return value.detach(), executor.run(problem, wanted)


_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality


_SAME_WORLD = contextlib.nullcontext()


def _own_world(device: str) -> contextlib.AbstractContextManager[object]:
    """Without autocast, and with an autograd of its own.

    The specs are differentiated inside the operator. A compiled graph or a dispatch mode (a counter
    of operations, say) calls the operator with autograd switched off beneath it.
    """
    autocast = torch.is_autocast_enabled(device)
    hidden = torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD)
    if not (autocast or hidden):
        return _SAME_WORLD
    world = contextlib.ExitStack()
    if autocast:
        world.enter_context(torch.autocast(device, enabled=False))
    if hidden:
        world.enter_context(torch._C._SetExcludeDispatchKeyGuard(_AUTOGRAD, False))
    return world


def computed(
    anchors: Tensor,
    candidates: Tensor | None,
    anchor_labels: Tensor | None,
    candidate_labels: Tensor | None,
    pairs: list[Tensor],
    teacher: list[Tensor],
    scalars: Tensor | None,
    row_values: Tensor | None,
    col_values: Tensor | None,
    row_weight: Tensor | None,
    loss: str,
    relation: str,
    backend: str,
    reduction: str,
    wanted: list[bool],
) -> tuple[Tensor | None, ...]:
    """What the operator returns, with None for gradients that there are not."""
    problem = problem_of(
        anchors,
        candidates,
        anchor_labels,
        candidate_labels,
        pairs,
        teacher,
        scalars,
        row_values,
        col_values,
        row_weight,
        loss,
        relation,
    )
    executor, _ = dispatch.choose(problem, backend)
    if anchors.device.type == "cuda":
        crossover.notice(problem, executor.name, backend)
    of_anchors, of_candidates, of_scalars, of_row_values, of_col_values = wanted
    asked = Wanted(
        of_anchors,
        of_candidates,
        of_scalars,
        of_row_values,
        of_col_values,
        total=reduction in ("mean", "sum") and problem.loss.outputs == 1,
    )
    with _own_world(anchors.device.type):
        value, result = evaluate(problem, executor, reduction, asked)
    d_scalars = result.d_scalars
    if d_scalars is not None and scalars is not None:
        d_scalars = d_scalars[: scalars.numel()]  # computed scalars come after the learnable ones
    return (
        value,
        _stored_like(result.d_anchors, anchors),
        _stored_like(result.d_candidates, candidates, by_columns=True),
        _stored_like(d_scalars, scalars),
        _stored_like(result.d_row_values, row_values),
        _stored_like(result.d_col_values, col_values),
    )


def _stored_like(d: Tensor | None, x: Tensor | None, by_columns: bool = False) -> Tensor | None:
    """The gradient d in the type of its input x, by rows; by_columns: or by columns, if x is."""
    if d is None or x is None:
        return None
    d = d.to(x.dtype)
    if by_columns and not x.is_contiguous() and x.t().is_contiguous():
        return d.t().contiguous().t()
    return d.contiguous()


def row_loss(*arguments: Any) -> tuple[Tensor, ...]:
    """The operator itself, of the arguments of `computed`: an operator returns tensors only."""
    nothing = arguments[0].new_empty
    return tuple(nothing(0) if x is None else x for x in computed(*arguments))


def _fake(
    anchors: Tensor,
    candidates: Tensor | None,
    anchor_labels: Tensor | None,
    candidate_labels: Tensor | None,
    pairs: list[Tensor],
    teacher: list[Tensor],
    scalars: Tensor | None,
    row_values: Tensor | None,
    col_values: Tensor | None,
    row_weight: Tensor | None,
    loss: str,
    relation: str,
    backend: str,
    reduction: str,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    shape = (anchors.shape[0],) if reduction == "none" else ()
    found = [anchors.new_empty(shape, dtype=statistic_type(anchors, candidates))]
    inputs = (anchors, candidates, scalars, row_values, col_values)
    for name, asked, x in zip(GRADIENTS, wanted, inputs):
        d = _stored_like(x.new_empty(x.shape), x, name == "d_candidates") if x is not None else None
        found.append(d if asked and d is not None else anchors.new_empty(0))
    return tuple(found)


_library.impl("row_loss", row_loss, "CompositeExplicitAutograd")
torch.library.register_fake("fastdml::row_loss", _fake, lib=_library)
