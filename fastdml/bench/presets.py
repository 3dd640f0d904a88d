"""What --preset measures."""

from __future__ import annotations

from collections.abc import Callable

from . import catalogue
from .workload import Workload

Case = tuple[Workload, tuple[str, ...]]

USUAL = catalogue.USUAL
# Seconds of timing per problem, where the preset has many.
BUDGET = {"losses": 3.0, "shared": 2.0}
EVERYBODY = ("auto", "native", "chunked", "torch", "torch-hand", "pml")


def of(loss: str, batch: int, **sizes: int) -> Workload:
    return Workload(loss, batch, options=USUAL.get(loss, ()), **sizes)  # type: ignore[arg-type]


def quick() -> list[Case]:
    """Every registered loss, two sizes, under a minute each."""
    return [
        (of(loss, b, classes=200), EVERYBODY)
        for loss in catalogue.measurable()
        for b in (64, 512)
    ]


def table() -> list[Case]:
    """Every registered loss at the usual sizes."""
    return [(of(loss, b), EVERYBODY) for loss in catalogue.measurable() for b in (512, 4096)]


def paper() -> list[Case]:
    """Time and memory against batch size, for the plot."""
    sizes = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    return [(of(loss, b), EVERYBODY) for loss in catalogue.measurable() for b in sizes]


def shared() -> list[Case]:
    """Every loss that pytorch-metric-learning has too, beside it."""
    who = ("native", "pml")
    return [(of(loss, b), who) for loss in catalogue.SHARED for b in (512, 1024, 4096)]


PRESETS: dict[str, Callable[[], list[Case]]] = {
    "quick": quick,
    "table": table,
    "paper": paper,
    "shared": shared,
}
