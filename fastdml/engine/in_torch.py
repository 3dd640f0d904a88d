"""A call evaluated by torch: blocks of rows, each computed again in the backward pass.

For what no executor makes of products: distances of other kinds, whose own parameters may want a
gradient, and numbers of the pairs that a row's loss does not keep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .call import Call, statistic_type
from .counting import row_counts
from .loss import RowLoss, Rows
from .problem import Problem, joined
from .recompute import recomputed
from .relation import LabelRelation, Relation, TupleRelation
from .similarity import Metric, without_autocast
from .summed import values_of

# Bytes of one block's temporaries.
_AT_ONCE = 32 << 20
_BACKENDS = ("auto", "chunked", "dense")


def refuses(backend: str) -> str | None:
    """Why a backend cannot run this, or None."""
    if backend in _BACKENDS:
        return None
    return f"this runs in torch; expected backend {', '.join(map(repr, _BACKENDS))}"


def plan(problem: Problem) -> str:
    """What runs, in words."""
    return f"in torch, {_block(problem)} rows at a time, computed again in the backward pass"


def evaluate(call: Call) -> Tensor:
    """The loss of a call, as `autograd.evaluate` has it before `finish` and `weight`."""
    reason = refuses(call.backend)
    if reason is not None:
        raise ValueError(f"backend: {call.backend!r} cannot run {call.loss.name!r}: {reason}")
    outputs = row_outputs(call)
    return reduced(call.loss, outputs, call.row_weight, call.reduction)


def row_outputs(
    call: Call, function: Callable[[Rows], Tensor] | None = None, constants: Sequence[Tensor] = ()
) -> Tensor:
    """[M, k] what `function` (the loss's specification) makes of every row, differentiable; 0 of no pair.

    constants: tensors that `function` reads besides.
    """
    if call.is_empty:
        kind = statistic_type(call.anchors, call.candidates)
        nothing = (call.anchors * 0).sum(1, keepdim=True).to(kind)
        for x in call.leaves[1:]:
            nothing = nothing if x is None else nothing + (x * 0).sum().to(kind)
        return nothing.expand(-1, max(1, call.loss.outputs))
    with without_autocast(call.anchors.device):
        problem = Problem.of(call)
        make = function or call.loss.spec
        block, inputs = _blocks(call, problem, function is not None)

        def part(start: int, stop: int, *inputs: Tensor | None) -> Tensor:
            return make(block(start, stop, *inputs)).reshape(stop - start, -1)

        rows, step = problem.relation.rows, _block(problem)
        if step >= rows:
            return part(0, rows, *inputs) + problem.poison
        parts = [
            recomputed(part, (start, min(rows, start + step), *inputs), (*call.constants, *constants))
            for start in range(0, rows, step)
        ]
        return torch.cat(parts) + problem.poison


def all_rows(call: Call) -> Rows:
    """All rows as one block, differentiable: the whole matrix."""
    with without_autocast(call.anchors.device):
        problem = Problem.of(call)
        block, inputs = _blocks(call, problem, True)
        return block(0, problem.relation.rows, *inputs)


def pairs_of(metric: Metric, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """[T] what rows i [T] of x and rows j of y are, differentiable; one block's copies exist at a time."""
    size = max(1, _AT_ONCE // (x[:1].numel() * x.element_size() * 4))

    def part(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return metric.paired(values_of(x, i), values_of(y, j))

    if i.shape[0] <= size:
        return part(x, y, i, j)
    blocks = zip(i.split(size), j.split(size), strict=True)
    return torch.cat([recomputed(part, (x, y, *b)) for b in blocks])


def _blocks(
    call: Call, problem: Problem, follow: bool
) -> tuple[Callable[..., Rows], tuple[Tensor | None, ...]]:
    """A function of start, stop and the differentiable inputs that makes the rows of a block; the inputs.

    follow: whether derivatives go through what the presweep finds, for which a specification accounts itself.
    """
    kind = problem.statistic

    def wide(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(kind)

    a = call.anchors.to(kind)
    c = a if call.candidates is None else call.candidates.to(kind)
    scalars = problem.all_scalars
    if call.scalars is not None and scalars is not None:
        # Those of the call may want a gradient; those that follow were counted.
        scalars = torch.cat([call.scalars.to(kind), scalars[call.scalars.numel() :]])
    col_values = _with_presweep(problem, a, c, wide(call.col_values), follow, call.constants)
    row_values = wide(call.row_values)

    def block(start: int, stop: int, a: Tensor, c: Tensor, *values: Tensor | None) -> Rows:
        s = call.loss.metric.dense(a[start:stop], c, problem.epsilon)
        teacher = problem.teacher_problem  # a constant, also of a distance that is learnt
        theirs = None if teacher is None else teacher.similarities(start, stop).detach()
        found = problem.rows(s, start, stop, theirs)
        found.scalars, row_values, found.col_values = values
        found.row_values = None if row_values is None else row_values[start:stop]
        return found

    return block, (a, c, scalars, row_values, col_values)


def _with_presweep(
    problem: Problem,
    a: Tensor,
    c: Tensor,
    col_values: Tensor | None,
    follow: bool,
    constants: Sequence[Tensor],
) -> Tensor | None:
    """The column values, and what the loss's presweep finds."""
    before = problem.loss.presweep()
    if before is None:
        return col_values
    other = problem.swapped(before)
    step = _block(other)

    def part(start: int, stop: int, a: Tensor, c: Tensor) -> Tensor:
        s = before.metric.dense(c[start:stop], a, problem.epsilon)
        return before.spec(other.rows(s, start, stop)).reshape(stop - start, -1)

    with contextlib.nullcontext() if follow else torch.no_grad():
        found = [
            recomputed(part, (start, min(other.relation.rows, start + step), a, c), constants)
            for start in range(0, other.relation.rows, step)
        ]
        theirs = torch.cat(found).t()
    return joined(col_values, theirs)


def bytes_per_pair(problem: Problem) -> int:
    """What a pair and its specification take."""
    size = torch.finfo(problem.statistic).bits // 8
    per_pair = size + problem.loss.spec_bytes * size // 4
    if problem.loss.threshold_list:
        per_pair += 5 * size * max(1, _longest(problem.relation))
    return per_pair


def _longest(relation: Relation) -> int:
    """The most positives of a row, or a bound; of a function a guess, from the first rows."""
    if isinstance(relation, LabelRelation):
        positives, _ = relation.counts(without_own=False)
    elif isinstance(relation, TupleRelation):
        positives = torch.bincount(relation.indices[0])
    else:
        positives = row_counts(relation.masks(0, min(64, relation.rows))[0])
    return int(positives.max()) if positives.numel() else 0


def _block(problem: Problem) -> int:
    per_pair = torch.finfo(problem.statistic).bits // 8 + bytes_per_pair(problem)
    rows = max(1, _AT_ONCE // (per_pair * max(1, problem.relation.columns)))
    together = problem.loss.rows_together
    return max(together, rows - rows % together)


def reduced(loss: RowLoss, outputs: Tensor, row_weight: Tensor | None, reduction: str) -> Tensor:
    """The loss of all rows' outputs [M, k], reduced."""
    if loss.combined:
        return loss.combine(outputs, reduction)
    losses = outputs[:, 0]
    if row_weight is not None:
        losses = losses * row_weight.to(losses.dtype)
    if reduction == "none":
        return losses
    total = losses.sum(dtype=torch.float64)
    if reduction == "nonzero":
        total = total / (losses > 0).sum().clamp(min=1)
    elif reduction == "mean":
        total = total / (
            outputs[:, 1].detach().sum(dtype=torch.float64).clamp(min=1)
            if loss.counted
            else max(1, losses.shape[0])
        )
    return total.to(losses.dtype)
