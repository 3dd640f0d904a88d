"""Executors: each runs any description on a problem, or says why it cannot."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..problem import Problem

Result = tuple[Tensor, Tensor | None, Tensor | None]  # losses [M], d_anchors, d_candidates


class Executor(Protocol):
    name: str

    def refuses(self, problem: Problem) -> str | None:
        """Why this executor cannot run the problem, or None."""

    def run(self, problem: Problem, *, anchors: bool, candidates: bool) -> Result:
        """Losses of the rows and gradients; one set: everything in the anchors' gradient."""

    def plan(self, problem: Problem) -> str:
        """What would run, in words."""
