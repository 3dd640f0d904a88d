"""The requirements of the first release."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from fastdml.bench.presets import EVERYBODY, Case, of
from fastdml.bench.record import Record
from fastdml.bench.requirement import Requirement, judge

_THREE = ("multi_similarity", "proxy_anchor", "smooth_ap")
_SMALL = (16, 32, 64, 128)


def cases() -> list[Case]:
    """The requirements of the first release."""
    cases: list[Case] = [(of(loss, 4096), EVERYBODY) for loss in _THREE]
    cases += [(of(loss, 512), EVERYBODY) for loss in ("multi_similarity", "smooth_ap")]
    cases += [(of("smooth_ap", 1024), ("native", "pml"))]
    cases += [
        (of(loss, b, classes=100), ("auto", "torch", "torch-hand", "pml"))
        for loss in _THREE
        for b in _SMALL
    ]
    # Next to no arithmetic: what is left is the way to the kernel and back.
    tiny = ("auto", "torch-hand", "autograd")
    cases += [(of(loss, 8, dim=8, classes=8), tiny) for loss in _THREE]
    cases += [(of("multi_similarity", 65536), ("auto", "native")), (of("smooth_ap", 65536), ("native",))]
    return cases


def judged(records: Sequence[Record]) -> list[Requirement]:
    """The requirements of the first release, judged by medians."""
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
