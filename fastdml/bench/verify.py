"""Whether a contender computes the loss: value and gradients against float64.

Small problems are compared with the whole matrix in float64, larger ones with the same
specification over blocks of rows. Of problems too large for that, random rows are recomputed: their
losses, and the gradient of all embeddings and proxies of a weighted sum of those rows' losses; and
the gradient that was measured is compared with the one of that checked path.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from ..engine.problem import Problem
from . import catalogue, eager
from .contenders import Step, of_module
from .workload import Workload

# Pairs, times thresholds where the row owns a list of them.
_DENSE, _CHUNKED = 1 << 22, 1 << 26
_BLOCKS, _ROWS = 8, 4  # what is sampled

# Relative errors allowed, gradients in the Euclidean norm. float32: sharp exponentials and sigmoids
# amplify its rounding of the similarities (6e-8) to about 1e-6, and a mined pair that is that close
# to its limit may fall on the other side; a wrong loss is off by far more.
TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "float16": 2e-2, "bfloat16": 1e-1}


@dataclasses.dataclass(frozen=True)
class Errors:
    """Relative errors of value and gradients, and how they were found."""

    value: float
    gradient: float
    how: str

    def within(self, tolerance: float) -> bool:
        # Written so that NaN is not within anything.
        return self.value <= tolerance and self.gradient <= tolerance


@dataclasses.dataclass(frozen=True)
class Truth:
    value: Tensor
    gradients: dict[str, Tensor]
    how: str


def truth(workload: Workload) -> Truth | None:
    """The reference, or None where it would take too long and rows can be sampled instead."""
    shape = catalogue.shape(workload)
    size = sum(v.rows * v.columns for v in shape.visits) * (
        workload.per_class if shape.listed else 1
    )
    if size > _CHUNKED and _has_rows(workload):
        return None
    backend = "dense" if size <= _DENSE else "chunked"
    step = _double(workload, backend=backend)
    value = step()
    return Truth(value.detach(), _found(step), f"float64 {backend}")


def _has_rows(workload: Workload) -> bool:
    """Whether the loss is a sum over rows, each computed from its similarities alone."""
    module = catalogue.build(workload.small())
    if not hasattr(module, "description"):
        return False
    description = module.description()  # type: ignore[operator]
    asked = catalogue.calls(module, catalogue.inputs(workload.small()))
    extra = ("teacher", "pairs", "row_values", "col_values")
    given = [getattr(asked[0], k) for k in extra] if asked else []
    simple = len(asked) == 1 and not any(x is not None and len(x) for x in given)
    known = getattr(module, "reduction", None) in ("mean", "nonzero")
    alone = description.outputs == 1 and description.rows_together == 1
    return simple and known and alone and not description.presweep()


def compare(step: Step, true: Truth) -> Errors:
    """Runs the contender once more and compares."""
    value = step().detach()
    return Errors(_relative(value, true.value), _worst(_found(step), true.gradients), true.how)


def conditioned(workload: Workload, true: Truth | None, tolerance: float) -> float:
    """What to allow where the tolerance is not met: twice the error that the plain specification makes in
    the same type on the same rows, up to 50 tolerances.

    A loss of hinges over all triplets has millions of corners, and those within rounding of theirs fall
    on either side: 2e-4 of the gradient for a triplet loss of 512 samples. SupAP jumps where a negative
    passes a positive.
    """
    step = of_module(workload, catalogue.build(workload, backend="chunked"))
    plain = sampled(workload, "chunked", step) if true is None else compare(step, true)
    return min(50 * tolerance, max(tolerance, 2 * plain.value, 2 * plain.gradient))


def sampled(workload: Workload, backend: str, step: Step) -> Errors:
    """Errors of one of our executors on random rows; `step` is the contender that is measured."""
    module = catalogue.build(workload, backend=backend, reduction="none")
    path = of_module(workload, module)
    rows = path.forward()
    m = rows.shape[0]
    generator = torch.Generator().manual_seed(workload.seed + 1)
    starts = torch.randint(max(1, m - _ROWS), (_BLOCKS,), generator=generator).tolist()

    exact_module = catalogue.build(workload, torch.float64, reduction="none")
    data = catalogue.inputs(workload, torch.float64)
    exact = Step(lambda: torch.empty(0), catalogue.leaves(exact_module, data))
    (call,) = catalogue.calls(exact_module, data)
    problem = Problem.of(call)
    a = call.anchors
    c = a if call.candidates is None else call.candidates

    weight = torch.zeros(m, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    value_error = 0.0
    for start in starts:
        stop = min(m, start + _ROWS)
        s = problem.loss.metric.dense(a[start:stop], c, problem.epsilon)
        block = problem.rows(s, start, stop)
        block.scalars = eager.scalars_of(problem, call.scalars)
        true = problem.loss.spec(block)
        value_error = max(value_error, _relative(rows[start:stop].detach(), true.detach()))
        share = torch.rand(stop - start, dtype=torch.float64, generator=generator)
        weight[start:stop] += share
        total = total + (true * share.to(a.device)).sum()
    total.backward()
    wanted = _found(exact)
    rows.backward(weight.to(rows))
    gradient_error = _worst(_found(path), wanted)

    # The path that was measured, against the one that was just checked.
    module.zero_grad()
    path = of_module(workload, module)
    rows = path.forward()
    mean = rows.mean()
    if catalogue.build(workload).reduction == "nonzero":
        mean = rows.sum() / (rows > 0).sum().clamp(min=1)
    mean.backward()
    value = step().detach()
    return Errors(
        max(value_error, _relative(value, mean.detach())),
        max(gradient_error, _worst(_found(step), _found(path))),
        f"float64 on {_BLOCKS * _ROWS} rows",
    )


def _double(workload: Workload, **settings: str) -> Step:
    module = catalogue.build(workload, torch.float64, **settings)
    return of_module(workload, module, torch.float64)


def _found(step: Step) -> dict[str, Tensor]:
    return {k: torch.zeros_like(x) if x.grad is None else x.grad for k, x in step.leaves.items()}


def _relative(got: Tensor, wanted: Tensor) -> float:
    wanted = wanted.double()
    scale = float(wanted.abs().max())
    error = float((got.double() - wanted).abs().max())
    return error / scale if scale > 0 else (0.0 if error == 0 else math.inf)


def _worst(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    worst = 0.0
    for name, true in wanted.items():
        if name not in got:
            continue
        true = true.double()
        scale, error = float(true.norm()), float((got[name].double() - true).norm())
        relative = error / scale if scale > 0 else (0.0 if error == 0 else math.inf)
        if not relative <= worst:
            worst = relative
    return worst
