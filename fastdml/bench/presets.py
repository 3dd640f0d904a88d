"""What --preset measures, and what the numbers of `issue` must be."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from . import catalogue, losses, ranks
from .record import Record
from .requirement import Requirement, judge
from .workload import Workload

Case = tuple[Workload, tuple[str, ...]]

USUAL = catalogue.USUAL
# Seconds of timing per problem, where the preset has many.
BUDGET = {"losses": 3.0, "shared": 2.0}
_EVERYBODY = ("native", "chunked", "torch", "torch-hand", "pml")


def _of(loss: str, batch: int, **sizes: int) -> Workload:
    return Workload(loss, batch, options=USUAL.get(loss, ()), **sizes)  # type: ignore[arg-type]


def quick() -> list[Case]:
    """Every registered loss, two sizes, under a minute each."""
    return [
        (_of(loss, b, classes=200), _EVERYBODY)
        for loss in catalogue.measurable()
        for b in (64, 512)
    ]


def table() -> list[Case]:
    """Every registered loss at the usual sizes."""
    return [(_of(loss, b), _EVERYBODY) for loss in catalogue.measurable() for b in (512, 4096)]


def paper() -> list[Case]:
    """Time and memory against batch size, for the plot."""
    sizes = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    return [(_of(loss, b), _EVERYBODY) for loss in catalogue.measurable() for b in sizes]


_THREE = ("multi_similarity", "proxy_anchor", "smooth_ap")
_SMALL = (16, 32, 64, 128)


def issue() -> list[Case]:
    """The requirements of the first release."""
    cases: list[Case] = [(_of(loss, 4096), _EVERYBODY) for loss in _THREE]
    cases += [(_of(loss, 512), _EVERYBODY) for loss in ("multi_similarity", "smooth_ap")]
    cases += [(_of("smooth_ap", 1024), ("native", "pml"))]
    cases += [
        (_of(loss, b, classes=100), ("auto", "torch", "torch-hand", "pml"))
        for loss in _THREE
        for b in _SMALL
    ]
    # Next to no arithmetic: what is left is the way to the kernel and back.
    tiny = ("auto", "torch-hand", "autograd")
    cases += [(_of(loss, 8, dim=8, classes=8), tiny) for loss in _THREE]
    cases += [(_of(loss, 65536), ("native",)) for loss in ("multi_similarity", "smooth_ap")]
    return cases


def shared() -> list[Case]:
    """Every loss that pytorch-metric-learning has too, beside it."""
    who = ("native", "pml")
    return [(_of(loss, b), who) for loss in catalogue.SHARED for b in (512, 1024, 4096)]


PRESETS: dict[str, Callable[[], list[Case]]] = {
    "quick": quick,
    "table": table,
    "paper": paper,
    "issue": issue,
    "shared": shared,
    "ranks": ranks.cases,
    "losses": losses.cases,
}


def demanded(preset: str | None, records: Sequence[Record]) -> list[Requirement]:
    """The requirements that a preset is there to judge, judged by medians."""
    judges = {"ranks": ranks.judged, "losses": losses.judged}
    if preset in judges:
        return judges[preset](records)
    return requirements(records) if preset == "issue" else []


def requirements(records: Sequence[Record]) -> list[Requirement]:
    """The requirements of the preset `issue`, judged by medians."""
    table = {(r.loss.partition(":")[0], r.batch, r.contender): r for r in records}
    found: list[Requirement] = []

    def demand(
        text: str,
        value: float | None,
        compare: Callable[[float, float], bool],
        limit: float,
        unit: str,
    ) -> None:
        found.append(judge(text, value, limit, unit, compare))

    def get(loss: str, batch: int, who: str, what: str = "ms") -> float | None:
        record = table.get((loss, batch, who))
        return None if record is None else getattr(record, what)

    def faster(loss: str, batch: int, who: str, than: str) -> float | None:
        ours, theirs = get(loss, batch, who), get(loss, batch, than)
        return None if ours is None or theirs is None else theirs / ours

    for loss, limit in (("multi_similarity", 1.3), ("proxy_anchor", 1.4), ("smooth_ap", 2.0)):
        ratio = get(loss, 4096, "native", "ratio")
        demand(f"{loss}, B=4096, native / products", ratio, operator.le, limit, "x")
    for loss in _THREE:
        ratio = get(loss, 4096, "chunked", "ratio")
        demand(f"{loss}, B=4096, chunked / products", ratio, operator.le, 8, "x")
    for loss, batch, limit in (
        ("multi_similarity", 4096, 15.0), ("multi_similarity", 512, 1.0), ("smooth_ap", 512, 200.0)
    ):  # fmt: skip
        text = f"{loss}, B={batch}, pytorch-metric-learning / native"
        compare = operator.gt if limit == 1 else operator.ge
        demand(text, faster(loss, batch, "native", "pml"), compare, limit, "x")
    for loss in _THREE:
        for batch in _SMALL:
            best = [faster(loss, batch, "auto", than) for than in ("torch", "torch-hand")]
            known = [b for b in best if b is not None]
            text = f"{loss}, B={batch}, best plain torch / fastdml"
            demand(text, min(known) if known else None, operator.ge, 1, "x")
        ours, empty = get(loss, 8, "auto"), get(loss, 8, "autograd")
        text = f"{loss}, B=8, D=8: a step less that of an empty autograd function"
        overhead = None if ours is None or empty is None else (ours - empty) * 1e3
        demand(text, overhead, operator.le, 150, " us")
    for (loss, batch, who), record in table.items():
        if record.contender == "native" and (batch >= 4096):
            text = f"{loss}, B={batch}, {who}: memory beyond inputs and gradients"
            demand(text, record.extra_mib, operator.le, 64, " MiB")
    return found
