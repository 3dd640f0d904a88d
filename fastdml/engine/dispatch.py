"""Which executor runs a problem."""

from __future__ import annotations

from . import crossover, library
from .executors import Executor
from .executors.chunked import Chunked
from .executors.dense import Dense
from .executors.native import Native
from .executors.symmetric import Symmetric
from .executors.triton import Triton
from .problem import Problem

SYMMETRIC = Symmetric()
EXECUTORS: dict[str, Executor] = {
    e.name: e for e in (Dense(), Chunked(), Native(), SYMMETRIC, Triton())
}


def check_backend(backend: str) -> None:
    if not isinstance(backend, str) or (backend != "auto" and backend not in EXECUTORS):
        raise ValueError(f"backend: expected 'auto' or one of {sorted(EXECUTORS)}, got {backend!r}")


def choose(problem: Problem, backend: str) -> tuple[Executor, str]:
    """The executor and why. A forced one that cannot run the problem is a ValueError."""
    if backend != "auto":
        check_backend(backend)
        executor = EXECUTORS[backend]
        reason = executor.refuses(problem)
        if reason is not None:
            raise ValueError(f"backend: {backend!r} cannot run {problem.loss.name!r}: {reason}")
        return executor, "asked for"
    if SYMMETRIC.prefers(problem):
        return SYMMETRIC, "one set: two products instead of three"
    native = EXECUTORS["native"].refuses(problem)
    if problem.device_type == "cuda":
        wanted = native is not None or crossover.prefers_tiles(problem)
        if wanted and EXECUTORS["triton"].refuses(problem) is None:
            return EXECUTORS["triton"], "tile kernels" + crossover.caveat(problem, "triton")
    if native is None:
        return EXECUTORS["native"], "compiled for this device" + crossover.caveat(problem, "native")
    if library.load() is None:
        library.notice()
    return EXECUTORS["chunked"], native
