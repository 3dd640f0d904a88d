"""Candidates that travel: every rank's block of columns visits all ranks, and no rank ever holds them all.

A block goes round once for every sweep of a row's statistics, and once for the weights, when the derivatives
by its columns go with it. It is sent on before it is worked on, and the derivatives that others have made of
it arrive while this rank makes its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engine import dispatch
from ..engine.call import Call
from ..engine.loss import RowLoss
from ..engine.problem import Problem
from ..engine.schedule import Result, Wanted
from .arguments import Set
from .ranks import Ranks
from .statistics import Statistics, statistics_of

Visit = Callable[[Problem, Wanted], Result]


def refuses(loss: RowLoss) -> str | None:
    """Why a loss cannot have its columns block by block, or None."""
    if loss.additive:
        return None
    found = statistics_of(loss)
    return found if isinstance(found, str) else None


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a call on all ranks. labels [N]; own: int64 [M], where this rank's rows stand among
    them; col_values [k, N], of which the last `swept` are those of the loss's presweep."""

    set: Set
    labels: Tensor
    own: Tensor | None
    col_values: Tensor | None
    swept: int

    def of(self, rank: int) -> dict[str, Any]:
        """A rank's block, as fields of a call."""
        start, count = self.set.starts[rank], self.set.counts[rank]
        own = None
        if self.own is not None:
            inside = (self.own >= start) & (self.own < start + count)
            own = torch.where(inside, self.own - start, -1)
        values, swept = None, None
        if self.col_values is not None:
            part = self.col_values[:, start : start + count]
            given = len(part) - self.swept
            values = part[:given] if given else None
            swept = part[given:] if self.swept else None
        labels = self.labels[start : start + count]
        return {"candidate_labels": labels, "own": own, "col_values": values, "swept": swept}


class Ring:
    """Runs a rank's rows against the columns of all ranks (`engine.executors.Executor`)."""

    name = "ring"
    by_blocks = False

    def __init__(self, ranks: Ranks, columns: Columns) -> None:
        self.ranks, self.columns = ranks, columns

    def refuses(self, problem: Problem) -> str | None:
        return refuses(problem.loss)

    def plan(self, problem: Problem) -> str:
        return f"columns travel over {self.ranks.size} ranks, {rounds(problem.loss)} times round"

    def run(self, problem: Problem, wanted: Wanted) -> Result:
        if problem.loss.additive:
            return self._added(problem, wanted)
        found = statistics_of(problem.loss)
        assert isinstance(found, Statistics)
        state = found.start(problem)
        for sweep in range(len(found.sweeps)):
            step = state.fold(sweep)
            self._round(problem, step.run)
            state.settle(sweep)
        out = state.result(wanted)
        if wanted.anchors or wanted.candidates:
            self._weighed(problem, wanted, state.weigh().run, out)
        return out

    def _added(self, problem: Problem, wanted: Wanted) -> Result:
        """Of losses whose pairs only add up, by any executor."""
        rows, kind, like = problem.relation.rows, problem.statistic, problem.anchors
        out = Result(torch.zeros(rows, problem.loss.outputs, dtype=kind, device=like.device))
        if wanted.scalars and problem.all_scalars is not None:
            out.d_scalars = torch.zeros_like(problem.all_scalars)
        if wanted.row_values and problem.row_values is not None:
            out.d_row_values = torch.zeros_like(problem.row_values)

        def visit(block: Problem, wanted: Wanted) -> Result:
            executor, _ = dispatch.choose(block, "auto")
            found = executor.run(block, wanted)
            out.outputs += found.outputs
            for name in ("d_scalars", "d_row_values"):
                mine, more = getattr(out, name), getattr(found, name)
                if mine is not None and more is not None:
                    mine += more
            return found

        self._weighed(problem, wanted._replace(total=False), visit, out)
        return out

    def _weighed(self, problem: Problem, wanted: Wanted, visit: Visit, out: Result) -> None:
        """A round in which derivatives by the columns go with them."""
        if wanted.anchors:
            out.d_anchors = torch.zeros_like(problem.anchors, dtype=problem.statistic)

        def made(block: Problem) -> Tensor | None:
            found = visit(block, wanted)
            block.unconditioned(found.d_anchors, found.d_candidates)
            if out.d_anchors is not None and found.d_anchors is not None:
                out.d_anchors += found.d_anchors
            return found.d_candidates

        carried = None
        if wanted.candidates:
            carried = torch.zeros_like(problem.candidates, dtype=problem.statistic)
        out.d_candidates = self._round(problem, made, carried)

    def _round(
        self,
        problem: Problem,
        visit: Callable[[Problem], Tensor | None],
        carried: Tensor | None = None,
    ) -> Tensor | None:
        """Visits this rank's rows and every rank's columns.

        carried: of this rank's columns, what goes round with them: what `visit` returns is added.
        Returns it as all ranks have left it.
        """
        ranks, size, counts = self.ranks, self.ranks.size, self.columns.set.counts
        held = [problem.candidates, *([problem.teacher[1]] if problem.teacher else [])]
        under_way: list[Any] = []
        for step in range(size):
            source = (ranks.rank - step) % size
            coming = counts[(source - 1) % size]
            rooms = [x.new_empty(coming, *x.shape[1:]) for x in held]
            last = step == size - 1
            moving = [] if last else ranks.pass_on(held, rooms, 2 * step)
            found = None
            if counts[source] and problem.relation.rows:
                found = visit(self._block(problem, held, source))
            if carried is not None:
                ranks.wait(under_way)
                total = carried if found is None else carried.add_(found)
                if size > 1:
                    # The last step sends it home, to the rank whose columns they are.
                    carried = total.new_empty(coming, *total.shape[1:])
                    under_way = ranks.pass_on([total], [carried], 2 * step + 1)
            ranks.wait(moving)
            held = rooms
        ranks.wait(under_way)
        return carried

    def _block(self, problem: Problem, held: list[Tensor], source: int) -> Problem:
        call = Call(
            problem.loss,
            problem.anchors,
            held[0],
            problem.relation.anchor_labels,  # type: ignore[attr-defined]
            teacher=(problem.teacher[0], held[1]) if problem.teacher else (),
            scalars=problem.scalars,
            computed=problem.computed,
        )
        block = Problem.of(call.replace(**self.columns.of(source)))
        # As the problem has them: [M] or [M, outputs].
        block.row_values, block.row_weight = problem.row_values, problem.row_weight
        block.weight = problem.weight
        return block


def rounds(loss: RowLoss) -> int:
    """How often columns go round for a loss and its derivatives."""
    found = None if loss.additive else statistics_of(loss)
    sweeps = len(found.sweeps) if isinstance(found, Statistics) else int(loss.combined)
    before = loss.presweep()
    return sweeps + 1 + (0 if before is None else rounds(before) - 1)
