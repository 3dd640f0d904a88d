"""The requirements of the rank losses: against the bare products, and against their published forms."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from fastdml.bench.record import Record
from fastdml.bench.requirement import Requirement, completes, judge
from fastdml.bench.workload import Workload

# A loss's largest ratio to the three products with 4 images per class, and its published form: who
# computes it here, on the whole matrix or cube, and the largest batch (a power of two) it holds in 15 GB.
LOSSES: dict[str, tuple[float, str, int]] = {
    "smooth_ap": (2.0, "pml", 512),
    "sup_ap": (2.0, "torch", 4096),
    "triplet_margin": (1.5, "pml", 1024),
    "recall_at_k": (2.0, "torch", 4096),
    "fast_ap": (2.5, "pml", 4096),
}
BATCH, LARGE_CLASS, LARGE_BATCH = 4096, 64, 32768
LARGE_CLASS_RATIO, WORKSPACE = 6.0, 64.0


def cases() -> list[tuple[Workload, tuple[str, ...]]]:
    """The requirements of the rank losses."""
    found: list[tuple[Workload, tuple[str, ...]]] = []
    for loss, (_, who, most) in LOSSES.items():
        found.append((Workload(loss, BATCH), ("native", who) if most == BATCH else ("native",)))
        if most != BATCH:
            found.append((Workload(loss, most), ("native", who)))
        found.append((Workload(loss, BATCH, per_class=LARGE_CLASS), ("native",)))
        found.append((Workload(loss, LARGE_BATCH), ("native",)))
    return found


def judged(records: Sequence[Record]) -> list[Requirement]:
    """What was demanded and what was measured, by medians."""
    table = {(r.loss.partition(":")[0], r.batch, r.per_class, r.contender): r for r in records}
    found: list[Requirement] = []

    def of(record: Record | None, what: str) -> float | None:
        return None if record is None else getattr(record, what)

    for loss, (limit, who, batch) in LOSSES.items():
        for per_class, bound in ((4, limit), (LARGE_CLASS, LARGE_CLASS_RATIO)):
            ours = table.get((loss, BATCH, per_class, "native"))
            text = f"{loss}, B={BATCH}, {per_class} per class"
            found.append(judge(f"{text}, native / products", of(ours, "ratio"), bound, "x"))
            found.append(judge(f"{text}, workspace", of(ours, "extra_mib"), WORKSPACE, " MiB"))
        whole = table.get((loss, LARGE_BATCH, 4, "native"))
        text = f"{loss}, B={LARGE_BATCH}"
        found.append(completes(text, of(whole, "ms")))
        found.append(judge(f"{text}, workspace", of(whole, "extra_mib"), WORKSPACE, " MiB"))
        ours, dense = (table.get((loss, batch, 4, c)) for c in ("native", who))
        for what, name in (("ms", "time"), ("peak_mib", "memory")):
            mine, theirs = (of(r, what) for r in (ours, dense))
            ratio = theirs / mine if mine and theirs else None
            text = f"{loss}, B={batch}, {name} of the dense form ({who}) / native"
            found.append(judge(text, ratio, 1, "x", operator.ge))
    return found
