"""The requirements of the pair, relational and proxy losses: against their own matrix products."""

from __future__ import annotations

from collections.abc import Sequence

from fastdml.bench import catalogue
from fastdml.bench.record import Record
from fastdml.bench.requirement import Requirement, completes, judge
from fastdml.bench.workload import Workload

from .ranks import LOSSES as RANKS

BATCH, CLASSES = 4096, 10_000
# Times the products of the loss's own problem, and times the three of one similarity matrix.
RATIO, BARE, WORKSPACE = 1.5, 3, 64.0
# One proxy loss of each kind: softmax, softmax with a margin, rows of proxies, distances. The step is
# to complete; its batch is what keeps it to seconds.
MANY = ("NormalizedSoftmaxLoss", "ArcFaceLoss", "ProxyAnchorLoss", "ProxyNCALoss")
MANY_BATCH, MANY_CLASSES = 256, 1_000_000
# Rank losses, which have requirements of their own (`ranks`), and losses whose cost is no matter of
# products: sorted rows, every triple of samples.
_ELSEWHERE = {
    *RANKS, "auc", "dense_triplet", "histogram", "margin", "pnp", "ranked_list", "rkd_angle",
    "soft_bin_ap", "soprc", "tuplet_margin",
}  # fmt: skip


def names() -> list[str]:
    """What is judged: registered pair and relational losses, and proxy losses by module."""
    others = [
        name
        for name in catalogue.measurable()
        if name not in _ELSEWHERE and not catalogue.is_proxy(name)
    ]
    return others + catalogue.proxy_modules()


def cases() -> list[tuple[Workload, tuple[str, ...]]]:
    """The requirements of the pair, relational and proxy losses."""
    found = [
        Workload(name, BATCH, classes=CLASSES, options=catalogue.USUAL.get(name, ()))
        for name in names()
    ]
    found += [Workload(name, MANY_BATCH, classes=MANY_CLASSES) for name in MANY]
    return [(workload, ("native",)) for workload in found]


def judged(records: Sequence[Record]) -> list[Requirement]:
    """What was demanded and what was measured, by medians."""
    table = {(r.loss.partition(":")[0], r.batch): r for r in records if r.contender == "native"}
    found: list[Requirement] = []

    for name in names():
        record = table.get((name, BATCH))
        ratio = None if record is None else record.ratio
        products = BARE if record is None else record.products
        found.append(judge(f"{name}, native / its {products} products", ratio, RATIO, "x"))
        if record is not None and products > BARE and not _has_teacher(name):
            # Its similarities are needed twice; shown against one time of them as well.
            whole = None if ratio is None else ratio * products / BARE
            found.append(judge(f"{name}, native / {BARE} products", whole, RATIO, "x"))
        extra = None if record is None else record.extra_mib
        found.append(judge(f"{name}, workspace", extra, WORKSPACE, " MiB"))
    for name in MANY:
        record = table.get((name, MANY_BATCH))
        text = f"{name}, {MANY_CLASSES} classes"
        found.append(completes(text, None if record is None else record.ms))
        extra = None if record is None else record.extra_mib
        found.append(judge(f"{text}, workspace", extra, WORKSPACE, " MiB"))
    return found


def _has_teacher(name: str) -> bool:
    return catalogue.is_relational(catalogue.module_class(name))
