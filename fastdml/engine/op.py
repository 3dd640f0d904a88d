"""The one operator behind every loss: `torch.ops.fastdml.row_loss`.

It returns the loss and, because they cost least together, its gradients, in the type of statistics. It is
a plain function of tensors (no autograd of its own), so torch.compile and exporters see one opaque call.
Its arguments are a packed call.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from . import crossover, dispatch, library
from .call import LEAVES, Call, read, statistic_type
from .executors import Executor, Result, Wanted
from .problem import Problem
from .relation import LabelRelation

GRADIENTS = tuple(f"d_{name}" for name in LEAVES)

SCHEMA = (
    "row_loss(Tensor?[] tensors, str[] words, bool[] wanted) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)

_library = torch.library.Library("fastdml", "DEF")
_library.define(SCHEMA)


def reduced(
    problem: Problem, executor: Executor, reduction: str, wanted: Wanted
) -> tuple[Tensor, Result]:
    """The reduced loss and the derivatives of it; of a share of the rows the loss of all of them, and the
    derivatives of the share."""
    counted, whole = problem.loss.counted, problem.whole
    if problem.loss.combined:
        return _of_all_rows(problem, executor, reduction, wanted)
    if reduction == "mean" and not counted:
        rows = problem.relation.rows if whole is None else whole.rows
        problem.weight = 1.0 / max(1, rows)
    result = _ran(problem, executor, wanted)
    if result.total is not None:
        return _over_shares(problem, result.total), result
    outputs = result.outputs
    if wanted.total and _compiled_sums(outputs):
        total = torch.ops.fastdml_native.total(outputs, problem.row_weight, problem.weight)
        return _over_shares(problem, total), result
    losses = outputs[:, 0]
    weighted = losses if problem.row_weight is None else losses * problem.row_weight
    if reduction == "none":
        return weighted.contiguous(), result
    # Summed in double precision: the order of a sum over a large batch must not show.
    total = weighted.sum(dtype=torch.float64)
    if reduction == "nonzero" or (reduction == "mean" and counted):
        count = (weighted > 0) if reduction == "nonzero" else result.outputs[:, 1]
        count = count.sum(dtype=torch.float64)
        if whole is not None:
            total, count = whole.total(torch.stack([total, count])).unbind()
        share = count.clamp(min=1).reciprocal()
        total = total * share
        for name in GRADIENTS:
            if (d := getattr(result, name)) is not None:
                d.mul_(share.to(d.dtype))
    elif whole is not None:
        total = whole.total(total)
    return (total * problem.weight).to(losses.dtype), result


def _over_shares(problem: Problem, total: Tensor) -> Tensor:
    """The sum of what the shares of the rows add up to."""
    whole = problem.whole
    return total if whole is None else whole.total(total.double()).to(total.dtype)


def _ran(problem: Problem, executor: Executor, wanted: Wanted) -> Result:
    """What the executor finds; of a share without a row nothing, which no executor need know."""
    whole = problem.whole
    if problem.relation.rows or (whole is not None and whole.executor is not None):
        return executor.run(problem, wanted)

    def zeros(asked: bool, like: Tensor | None) -> Tensor | None:
        shown = asked and like is not None
        return torch.zeros_like(like, dtype=problem.statistic) if shown else None  # type: ignore[arg-type]

    outputs = problem.anchors.new_zeros(0, problem.loss.outputs, dtype=problem.statistic)
    given = (problem.anchors, problem.candidates, problem.all_scalars, problem.row_values, problem.col_values)
    asked = (wanted.anchors, wanted.candidates, wanted.scalars, wanted.row_values, wanted.col_values)
    return Result(outputs, *map(zeros, asked, given))


def _compiled_sums(outputs: Tensor) -> bool:
    """Whether the compiled library adds up outputs: one call instead of four."""
    return outputs.device.type == "cpu" and library.load() is not None and outputs.is_contiguous()


def _of_all_rows(
    problem: Problem, executor: Executor, reduction: str, wanted: Wanted
) -> tuple[Tensor, Result]:
    """Two visits, of the matrix or of each block: the rows' outputs, then their weights in what `combine`
    makes of them."""
    whole = problem.whole
    # (Of a list of pairs an executor makes rows of its own.)
    by_blocks = executor.by_blocks and isinstance(problem.relation, LabelRelation)
    if problem.loss.grouped and wanted and by_blocks and whole is None:
        result = _ran(problem, executor, wanted._replace(grouped=True))
        return problem.loss.combine(result.outputs, reduction), result
    result = _ran(problem, executor, Wanted())
    outputs = result.outputs if whole is None else whole.joined(result.outputs)
    if not wanted:
        return problem.loss.combine(outputs, reduction), result
    value, weight = problem.loss.weighed(outputs, reduction)
    problem.row_weight = (weight if whole is None else whole.own(weight)).contiguous()
    return value, _ran(problem, executor, wanted._replace(known=True))


_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality


_SAME_WORLD = contextlib.nullcontext()


def own_world(device: str) -> contextlib.AbstractContextManager[object]:
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


def _of_nothing(call: Call, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    """What the operator returns of no anchors or no candidates: 0 (NaN of anchors that hold one), and
    gradients of 0."""
    a, kind = call.anchors, statistic_type(call.anchors, call.candidates)
    value = a.new_zeros(a.shape[0] if call.reduction == "none" else (), dtype=kind)
    value = value.masked_fill_(~a.isfinite().all(), torch.nan)
    if call.whole is not None and value.dim() == 0:
        value = call.whole.total(value)
    leaves = zip(call.leaves, wanted)
    return value, *(torch.zeros_like(x, dtype=kind) if w and x is not None else None for x, w in leaves)


def computed(call: Call, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    """What the operator returns, with None for gradients that there are not."""
    # (A share without a row takes part in what the shares tell each other. Candidates that do not travel are
    # the same to all shares.)
    alone = call.whole is None and call.anchors.shape[0] == 0
    if alone or (call.columns.shape[0] == 0 and (call.whole is None or call.whole.executor is None)):
        return _of_nothing(call, wanted)
    problem = Problem.of(call)
    executor = _executor(problem, call.backend)
    if problem.device_type == "cuda":
        crossover.notice(problem, executor.name, call.backend)
    summed = call.reduction in ("mean", "sum") and problem.loss.outputs == 1
    with own_world(problem.device_type):
        value, result = reduced(problem, executor, call.reduction, Wanted(*wanted, summed))  # type: ignore[call-arg]
    problem.unconditioned(result.d_anchors, result.d_candidates)
    if result.d_scalars is not None and call.scalars is not None:
        # Computed scalars come after those of the call, and a presweep's values after the candidates'.
        result.d_scalars = result.d_scalars[: call.scalars.numel()]
    if result.d_col_values is not None and call.col_values is not None:
        result.d_col_values = result.d_col_values[: call.col_values.shape[0]]
    return (
        value,
        _stored_like(result.d_anchors, call.anchors, False),
        _stored_like(result.d_candidates, call.candidates, True),
        _stored_like(result.d_scalars, call.scalars, False),
        _stored_like(result.d_row_values, call.row_values, False),
        _stored_like(result.d_col_values, call.col_values, False),
    )


def row_outputs(call: Call) -> Tensor:
    """[M, outputs] of the rows of a call, whatever is made of them; no gradient."""
    problem = Problem.of(call)
    executor = _executor(problem, call.backend)
    with own_world(call.anchors.device.type):
        return _ran(problem, executor, Wanted()).outputs


def _executor(problem: Problem, backend: str) -> Executor:
    if problem.whole is not None and problem.whole.executor is not None:
        given: Executor = problem.whole.executor
        return given
    return dispatch.choose(problem, backend)[0]


def _stored_like(d: Tensor | None, x: Tensor | None, by_columns: bool) -> Tensor | None:
    """The gradient d of an input x, by rows; by_columns: or by columns, if x is."""
    if d is None or x is None:
        return None
    if by_columns and not x.is_contiguous() and x.t().is_contiguous():
        return d.t().contiguous().t()
    return d.contiguous()


def row_loss(
    tensors: list[Tensor | None], words: list[str], wanted: list[bool]
) -> tuple[Tensor, ...]:
    """The operator itself, of a packed call: an operator returns tensors only."""
    call = Call.unpacked(tensors, read(words))
    nothing = call.anchors.new_empty
    return tuple(nothing(0) if x is None else x for x in computed(call, wanted))


def _fake(tensors: list[Tensor | None], words: list[str], wanted: list[bool]) -> tuple[Tensor, ...]:
    call = Call.unpacked(tensors, read(words))
    a = call.anchors
    kind = statistic_type(a, call.candidates)
    shape = (a.shape[0],) if call.reduction == "none" else ()
    found = [a.new_empty(shape, dtype=kind)]
    for name, asked, x in zip(LEAVES, wanted, call.leaves):
        d = None
        if x is not None and asked:
            d = _stored_like(x.new_empty(x.shape, dtype=kind), x, name == "candidates")
        found.append(a.new_empty(0) if d is None else d)
    return tuple(found)


_library.impl("row_loss", row_loss, "CompositeExplicitAutograd")
torch.library.register_fake("fastdml::row_loss", _fake, lib=_library)
