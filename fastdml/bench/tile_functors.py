"""The tile functors that run, by name: what their kernels are compiled for where there is no GPU."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch

from ..engine.executors import triton
from ..engine.loss import RowLoss
from ..engine.problem import Problem
from ..engine.registry import LOSSES
from . import catalogue
from .workload import Workload

_CUDA = torch.device("cuda")


def names() -> list[str]:
    """Losses that run on tiles, and what some of them ask of their columns first."""
    found = {name for name in catalogue.measurable() if _problem(name, 4) is not None}
    return sorted(found | set(_before()))


def example(name: str, per_class: int = 16) -> Any:
    """A `kernels.aot.Example`: the loss as it is usually called, with `per_class` of a class.

    Raises:
        ValueError: for a loss without tiles.
    """
    problem = _problem(name, per_class) if name in LOSSES else _before().get(name)
    if problem is None:
        raise ValueError(f"name: expected a loss that runs on tiles, got {name!r}")
    tile, module = triton._tile(problem), triton.functor_of(problem.loss)
    counted = bool(getattr(module, "COUNTS_OWN", False))
    scalars = problem.all_scalars
    teacher = problem.teacher_problem
    aot = importlib.import_module("fastdml.kernels.aot")
    return aot.Example(
        tile,
        len(module.parameters(problem.loss)) + counted + (0 if scalars is None else scalars.numel()),
        metric=problem.loss.similarity,
        teacher="dot" if teacher is None else teacher.loss.similarity,
        centres=problem.loss.columns_per_class,
        one_set=problem.one_set,
        excludes_own=problem.excludes_own,
        gradient=name in LOSSES,
    )


def _problem(name: str, per_class: int) -> Problem | None:
    options = catalogue.USUAL.get(name, ())
    batch = 2 * per_class
    workload = Workload(name, batch=batch, dim=8, per_class=per_class, classes=4, options=options)
    module = catalogue.build(workload)
    for call in catalogue.calls(module, catalogue.inputs(workload)):
        if call.before is not None and call.scalars is None:  # they come from the calls before it
            call = call.replace(scalars=call.loss.example_values(batch, batch).get("scalars"))
        problem = Problem.of(call, device=_CUDA)
        if call.loss.name == name and triton.Triton().refuses(problem) is None:
            return problem
    return None


@functools.cache
def _before() -> dict[str, Problem]:
    """What is asked of columns first, by its name."""
    found: dict[str, Problem] = {}
    for name, loss in LOSSES.items():
        if loss.presweep is RowLoss.presweep or name not in catalogue.measurable():
            continue
        problem = _problem(name, 4)
        before = None if problem is None else problem.loss.presweep()
        if problem is not None and before is not None:
            found.setdefault(before.name, problem.swapped(before))
    return found
