"""One workload, all contenders: probe each alone, check each, time all together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from .. import explain
from . import catalogue, contenders, verify
from .contenders import FLOOR, OURS, EmptyStep, Products, Step
from .device import device, is_out_of_memory
from .probe import probe
from .record import Record
from .timing import Series, interleave
from .workload import Workload


@dataclasses.dataclass(frozen=True)
class Settings:
    """threads: of torch. budget: seconds of timing per workload. memory_limit: bytes and timeout: seconds of
    a contender's step."""

    threads: int
    budget: float
    memory_limit: int
    timeout: float


Report = Callable[[str, float], None]


def measure(
    workload: Workload, names: Sequence[str], settings: Settings, report: Report
) -> list[Record]:
    """Records in the order of names, the floor first. report(what, share) is told the progress."""
    catalogue.check_loss(workload.loss)
    on = device(workload.device)
    records = {name: _record(workload, name, settings.threads) for name in (FLOOR, *names)}
    for k, (name, record) in enumerate(records.items()):
        if name == FLOOR:  # its outputs are allocated before: nothing to find out
            continue
        report(f"{name}: memory", k / len(records))
        found = probe(
            name,
            workload,
            threads=settings.threads,
            memory_limit=settings.memory_limit,
            timeout=settings.timeout,
        )
        record.status, record.note = found.status, found.note
        if found.status == "ok":
            record.memory_kind = on.memory_kind
            record.peak_mib, record.extra_mib = found.peak / 2**20, found.extra / 2**20
        elif found.status == "timed out" and found.seconds:
            record.ms, record.measured = found.seconds * 1e3, 1

    report("reference", 0.0)
    true = verify.truth(workload)
    steps: dict[str, Step | Products | EmptyStep] = {}
    for name, record in records.items():
        if record.status != "ok":
            continue
        report(f"{name}: check", 0.0)
        try:
            steps[name] = step = contenders.make(name, workload)
            if isinstance(step, Step):
                _check(record, step, workload, true)
        except Exception as error:
            steps.pop(name, None)
            record.status = "out of memory" if is_out_of_memory(error) else "failed"
            record.note = f"{type(error).__name__}: {error}"[:200]

    if FLOOR in steps:
        series = interleave(
            steps, on, floor=FLOOR, budget=settings.budget, progress=lambda s: report("timing", s)
        )
        for name, times in series.items():
            _time(records[name], times, series[FLOOR])
    return list(records.values())


def _record(workload: Workload, name: str, threads: int) -> Record:
    shape = catalogue.shape(workload)
    runs = ""
    if name in OURS:
        try:
            module = catalogue.build(workload, backend=name)
            runs = explain(
                module, shape.rows, shape.columns, workload.dim, workload.device
            ).executor
        except ValueError:
            runs = name
    return Record(
        loss=workload.title,
        contender=name,
        runs=runs,
        batch=workload.batch,
        rows=shape.rows,
        columns=shape.columns,
        dim=workload.dim,
        per_class=workload.per_class,
        dtype=workload.dtype,
        device=workload.device,
        spread=workload.spread,
        products=shape.products,
        threads=threads,
    )


def _check(record: Record, step: Step, workload: Workload, true: verify.Truth | None) -> None:
    if true is not None:
        errors = verify.compare(step, true)
    elif record.contender in OURS:
        errors = verify.sampled(workload, record.contender, step)
    else:
        record.checked = "no: too large"
        return
    record.value_error, record.gradient_error = errors.value, errors.gradient
    record.checked = errors.how
    allowed = verify.TOLERANCE[workload.dtype]
    if not errors.within(allowed):
        allowed = verify.conditioned(workload, true, allowed)
    if not errors.within(allowed):
        # Another library's difference is a finding; ours, or our rendering in torch, is a fault.
        record.status = "differs" if record.contender == "pml" else "wrong"


def _time(record: Record, found: Series, floor: Series) -> None:
    if record.status == "wrong":
        return  # no time is reported of a wrong result
    ms, ratio = found.quantiles(), found.over(floor)
    record.ms, record.ms_p20, record.ms_p80 = (1e3 * t for t in dataclasses.astuple(ms))
    record.ratio, record.ratio_p20, record.ratio_p80 = dataclasses.astuple(ratio)
    record.measured = len(found.seconds)
