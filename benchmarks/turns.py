"""Contenders take turns in one process, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping

# Freed memory stays with the process. Whether the system takes pages back between steps is luck of the
# allocator, and giving them anew can take as long as a step.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 34)}


def keep_memory() -> None:
    """Starts the program anew where it does not keep its memory: that is settled when a process begins."""
    if not KEPT.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEPT})


def take_turns(
    steps: Mapping[str, Callable[[], object]],
    turns: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    before: Callable[[], object] = lambda: None,
    budget: float = math.inf,
) -> dict[str, list[float]]:
    """Seconds by `clock` of every step in every turn; each ran once before, which does not count.

    before() runs ahead of every step, unmeasured. After `budget` seconds, and at least three turns, no turn
    begins.
    """
    for step in steps.values():
        before()
        step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    began = time.perf_counter()
    for turn in range(turns):
        if turn >= 3 and time.perf_counter() - began > budget:
            break
        for name, step in steps.items():
            before()
            start = clock()
            step()
            found[name].append(clock() - start)
    return found


def ratio(times: Mapping[str, list[float]], one: str, other: str) -> float:
    """The median over turns of one over the other: of times that are neighbours."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))
