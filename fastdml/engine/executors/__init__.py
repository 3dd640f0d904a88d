"""Executors: each runs any description on a problem, or says why it cannot."""

from __future__ import annotations

from typing import Protocol

from ..problem import Problem
from ..schedule import Result, Wanted

__all__ = ["Executor", "Result", "Wanted"]


class Executor(Protocol):
    """by_blocks: whether `schedule.run` does what it does, but for lists of pairs."""

    name: str
    by_blocks: bool

    def refuses(self, problem: Problem) -> str | None:
        """Why this executor cannot run the problem, or None."""

    def run(self, problem: Problem, wanted: Wanted) -> Result:
        """Outputs of the rows, and the wanted derivatives of their weighted sum.

        `problem.poison` is part of the outputs."""

    def plan(self, problem: Problem) -> str:
        """What would run, in words."""
