"""The row functors alone, on given similarities: no matrix product, no autograd."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from ..engine import library, schedule
from ..engine.call import Call
from ..engine.executors.native import Native
from ..engine.problem import Problem
from ..engine.schedule import Result, Visit
from . import catalogue
from .extras import require
from .timing import Quantiles, quantiles
from .workload import Workload


@dataclasses.dataclass(frozen=True)
class KernelTime:
    """Nanoseconds per pair of rows x columns. forward: the loss alone; both: with the weights."""

    loss: str
    rows: int
    columns: int
    isa: str
    threads: int
    forward: Quantiles
    both: Quantiles


@contextlib.contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Runs a block on one instruction set. ValueError where it is not compiled in or not here."""
    module = library.load()
    assert module is not None
    before = module.active_isa()
    module.force_isa(name)
    try:
        yield
    finally:
        module.force_isa(before)


def measure(
    workloads: Sequence[Workload], rows: int, repeats: int, progress: Callable[[str], None]
) -> list[KernelTime]:
    """Times the functor of every workload on `rows` rows, in every instruction set of the machine.

    Raises:
        ValueError: where there is no compiled library, or no functor of any of them in it.
    """
    module = library.load()
    if module is None:
        raise ValueError("--kernels: the compiled library is not installed")
    found = []
    for workload in workloads:
        catalogue.check_loss(workload.loss)
        if _call(workload).loss.functor_name not in library.functors():
            continue
        for isa in module.isas():
            progress(f"{workload.title} {isa}")
            try:
                with instruction_set(isa):
                    found.append(_measure(workload, isa, rows, repeats))
            except ValueError:  # this processor lacks it
                continue
    if not found:
        raise ValueError("--kernels: expected a loss with a compiled functor")
    return found


def _call(workload: Workload) -> Call:
    return catalogue.calls(catalogue.build(workload), catalogue.inputs(workload))[-1]


def _measure(workload: Workload, isa: str, rows: int, repeats: int) -> KernelTime:
    problem = Problem.of(_call(workload))
    a, c = problem.anchors, problem.candidates
    rows = min(rows, a.shape[0])
    source = a[:rows] @ c.t()
    s, out = torch.empty_like(source), Result(source.new_empty(a.shape[0], problem.loss.outputs))
    native = Native()
    schedule.presweep(problem, schedule.outputs_by(native))
    teacher = None
    if problem.teacher_problem is not None:
        teacher = problem.teacher_problem.similarities(0, rows)
    if problem.row_weight is None and problem.loss.outputs > 1:
        problem.row_weight = torch.ones_like(out.outputs)

    def nanoseconds(gradient: bool) -> Quantiles:
        found = []
        for k in range(repeats + 2):
            s.copy_(source)  # the functor overwrites it
            start = time.perf_counter()
            native(Visit(problem, s, 0, out, gradient, teacher))
            seconds = time.perf_counter() - start
            if k >= 2:
                found.append(1e9 * seconds / s.numel())
        return quantiles(found)

    both = nanoseconds(True)
    threads = torch.get_num_threads()
    size = s.shape[0], s.shape[1]
    return KernelTime(workload.title, *size, isa, threads, nanoseconds(False), both)


def table(found: Sequence[KernelTime]) -> Any:
    out = require("rich.table").Table(title="Row functors, ns per pair (p20 - p80)")
    for name in ("loss", "rows x pairs", "instruction set", "threads", "loss only", "loss and weights"):
        out.add_column(name)
    for k in found:
        cells = [f"{q.median:.2f} ({q.p20:.2f} - {q.p80:.2f})" for q in (k.forward, k.both)]
        out.add_row(k.loss, f"{k.rows} x {k.columns}", k.isa, str(k.threads), *cells)
    return out
