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

from . import catalogue, eager
from .contenders import Step
from .workload import Workload

# Pairs, times thresholds where the row owns a list of them.
_DENSE, _CHUNKED = 1 << 22, 1 << 26
_BLOCKS, _ROWS = 8, 4  # what is sampled

# Relative errors allowed, gradients in the Euclidean norm. float32: mined pairs and sharp sigmoids
# amplify its rounding of the similarities (6e-8) by a few hundred; a wrong loss is off by far more.
TOLERANCE = {"float64": 1e-9, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}


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


def cost(workload: Workload) -> int:
    """Values of the largest intermediate of the specification."""
    m, n = catalogue.shape(workload)
    module = catalogue.build(workload, torch.float32)
    listed = module.description().threshold_list  # type: ignore[operator]
    return m * n * (workload.per_class if listed else 1)


def truth(workload: Workload) -> Truth | None:
    """The reference, or None where it would take too long."""
    size = cost(workload)
    if size > _CHUNKED:
        return None
    backend = "dense" if size <= _DENSE else "chunked"
    step = _double(workload, backend=backend)
    value = step()
    return Truth(value.detach(), _found(step), f"float64 {backend}")


def compare(step: Step, true: Truth) -> Errors:
    """Runs the contender once more and compares."""
    value = step().detach()
    return Errors(_relative(value, true.value), _worst(_found(step), true.gradients), true.how)


def sampled(workload: Workload, backend: str, step: Step) -> Errors:
    """Errors of one of our executors on random rows; `step` is the contender that is measured."""
    module = catalogue.build(workload, workload.torch_dtype, backend=backend, reduction="none")
    path = _of(workload, module)
    rows = path.forward()
    m = rows.shape[0]
    generator = torch.Generator().manual_seed(workload.seed + 1)
    starts = torch.randint(max(1, m - _ROWS), (_BLOCKS,), generator=generator).tolist()

    exact = _double(workload, reduction="none")
    data = exact.leaves["embeddings"]
    source = workload.inputs(torch.float64)
    proxies = exact.leaves.get("proxies")
    description = module.description()  # type: ignore[operator]
    if proxies is not None and catalogue.is_proxy(workload):
        a, c = proxies, data
        row_labels = torch.arange(m, device=data.device)
        columns: Tensor | None = source.labels
    else:
        a, c = data, data if source.ref is None else source.ref
        row_labels, columns = source.labels, source.ref_labels
    problem = eager.problem(description, a, None if c is a else c, row_labels, columns)

    weight = torch.zeros(m, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64, device=data.device)
    value_error = 0.0
    for start in starts:
        stop = min(m, start + _ROWS)
        true = eager.spec_rows(problem, a, c, start, stop)
        value_error = max(value_error, _relative(rows[start:stop].detach(), true.detach()))
        share = torch.rand(stop - start, dtype=torch.float64, generator=generator)
        weight[start:stop] += share
        total = total + (true * share.to(data.device)).sum()
    total.backward()
    wanted = _found(exact)
    rows.backward(weight.to(rows))
    gradient_error = _worst(_found(path), wanted)

    # The path that was measured, against the one that was just checked.
    path = _of(workload, module)
    mean = path.forward().mean()
    mean.backward()
    value = step().detach()
    return Errors(
        max(value_error, _relative(value, mean.detach())),
        max(gradient_error, _worst(_found(step), _found(path))),
        f"float64 on {_BLOCKS * _ROWS} rows",
    )


def _of(workload: Workload, module: torch.nn.Module, dtype: torch.dtype | None = None) -> Step:
    data = workload.inputs(dtype)
    for p in module.parameters():
        p.grad = None
    leaves = {"embeddings": data.embeddings, **dict(module.named_parameters())}
    return Step(
        lambda: module(data.embeddings, data.labels, None, data.ref, data.ref_labels), leaves
    )


def _double(workload: Workload, **settings: str) -> Step:
    return _of(workload, catalogue.build(workload, torch.float64, **settings), torch.float64)


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
