"""One set, each pair visited once for both its ends: two products instead of three.

Blocks are trapezoids: rows [start, stop) against all columns from `start` on. Forwards every pair is folded
into the statistics of its row and of its column, which is a row too. Backwards the block is multiplied
again, H = G_ij + G_ji made of the numbers of both rows, and

    dA_I += H A_J        half a product
    dA_J += H^T A_I      half a product

where J are all columns from the block's first row on. A loss brings its streamed form (`RowLoss.streamed`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..loss import RowLoss
from ..problem import Problem
from ..relation import LabelRelation
from ..similarity import PRODUCT
from ..workspace import block_limit, buffer, rows_within
from . import Result, Wanted

_ROWS = 256  # of a trapezoid, at most
# Up to so many samples one block of all pairs costs less.
_SMALL = 512


class Symmetric:
    name = "symmetric"

    def refuses(self, problem: Problem) -> str | None:
        relation = problem.relation
        if problem.loss.only_in_torch is not None:
            return problem.loss.only_in_torch
        if problem.device_type != "cpu":
            return f"the symmetric schedule runs on the CPU, not on {problem.device_type}"
        if not problem.one_set:
            return "anchors and candidates are two sets"
        if not (isinstance(relation, LabelRelation) and relation.one_set):
            return "pairs are not those of one set of labels"
        if not problem.excludes_own or problem.own_offset != 0:
            return "samples are compared with themselves"
        metric = problem.loss.metric
        if metric.kind != PRODUCT:
            return (
                f"similarity {problem.loss.similarity!r}: distances of near pairs are made from "
                "differences, which the streamed form does not do"
            )
        if metric.clipped or metric.raw_anchors:
            return f"no streamed form for the similarity {problem.loss.similarity!r}"
        if problem.teacher is not None or problem.col_values is not None:
            return "a teacher or values of the candidates"
        found = _streamed(problem)
        if found is None:
            return f"{problem.loss.name!r} has no streamed form"
        return found if isinstance(found, str) else None

    def prefers(self, problem: Problem) -> bool:
        """Whether this can run the problem and is expected to cost less than the compiled rows: a sweep
        for statistics multiplies again, which small batches feel."""
        if problem.relation.rows <= _SMALL or self.refuses(problem) is not None:
            return False
        form, _ = _form(problem)
        return problem.relation.rows > _SMALL * len(form.statistics)

    def plan(self, problem: Problem) -> str:
        form, _ = _form(problem)
        sweeps = len(form.statistics)
        return (
            f"each pair once for both its ends: {sweeps} sweep{'s' * (sweeps > 1)} for statistics, "
            f"then the weights; {_rows(problem)} rows at a time"
        )

    def run(self, problem: Problem, wanted: Wanted) -> Result:
        return _Run(problem, wanted).result()


def _streamed(problem: Problem) -> Any:
    """The loss's streamed form and its members for this call, or why there is none, or None."""
    if type(problem.loss).streamed is RowLoss.streamed:
        return None
    if "streamed" not in problem.__dict__:
        metric = problem.loss.metric
        high = 1.0 if metric.normalized else float("inf")
        scalars = [] if problem.all_scalars is None else problem.all_scalars.tolist()
        size = torch.finfo(problem.statistic).bits // 8
        problem.__dict__["streamed"] = problem.loss.streamed(scalars, -high, high, size)
    return problem.__dict__["streamed"]


def _form(problem: Problem) -> tuple[Any, tuple[float, ...]]:
    found = _streamed(problem)
    assert isinstance(found, tuple)
    return found


def _rows(problem: Problem) -> int:
    """Rows of a trapezoid: within the workspace."""
    n = problem.relation.rows
    size = torch.finfo(problem.statistic).bits // 8
    return min(_ROWS, rows_within(block_limit("cpu", n, size, True), n, size, n))


class _Run:
    def __init__(self, problem: Problem, wanted: Wanted) -> None:
        self.problem, self.wanted = problem, wanted
        self.form, members = _form(problem)
        self.members = list(members)
        self.x = problem.anchors
        n = self.n = self.x.shape[0]
        self.size = _rows(problem)
        self.starts = list(range(0, n, self.size))
        self.pieces = torch.get_num_threads()
        self.held = buffer("similarity", self.size * n, self.x)
        self.left: int | None = None  # which block's products the workspace holds
        self.classes = problem.classes.col_class
        # Scales and squares of the rows, for products as they come.
        metric = problem.loss.metric
        self.numbers = (problem.row_scale, metric.kind, problem.row_square, problem.epsilon)

    def empty(self, *shape: int) -> Tensor:
        return self.x.new_empty(shape)

    def block(self, start: int) -> Tensor:
        """The products of a trapezoid."""
        stop = min(self.n, start + self.size)
        shape = (stop - start, self.n - start)
        s = self.held[: shape[0] * shape[1]].view(shape)
        if self.left != start:
            torch.mm(self.x[start:stop], self.x[start:].t(), out=s)
            self.left = start
        return s

    def rows(self, sweep: int, statistics: Tensor, **out: Tensor | None) -> None:
        """What a pass reads of the rows, or (-1) their results, from their statistics."""
        problem = self.problem
        several = problem.loss.outputs > 1 and not problem.loss.counted
        torch.ops.fastdml_native.stream_rows_(
            self.form.id,
            self.members,
            sweep,
            statistics,
            problem.all_scalars,
            problem.row_values,
            problem.row_weight if several else None,
            problem.weight if several else 1.0,
            float(self.n - 1),
            out.get("known"),
            out.get("loss"),
            out.get("d_scalars"),
            out.get("d_row_values"),
        )

    def known(self, sweep: int, statistics: Tensor) -> Tensor | None:
        if self.form.reads[sweep] == 0:
            return None
        found = self.empty(self.form.reads[sweep], self.n)
        self.rows(sweep, statistics, known=found)
        return found

    def gathered(self) -> Tensor:
        """[all, N] statistics of the rows."""
        form, problem = self.form, self.problem
        statistics = self.empty(sum(form.statistics), self.n)
        for sweep, count in enumerate(form.statistics):
            known = self.known(sweep, statistics)
            partial = self.empty(self.pieces, count, self.n)
            torch.ops.fastdml_native.stream_gather_(form.id, sweep, partial, None)
            for start in self.starts if sweep % 2 == 0 else self.starts[::-1]:
                torch.ops.fastdml_native.stream_fold_(
                    self.block(start), form.id, self.members, sweep, start, *self.numbers,
                    self.classes, known, problem.all_scalars, partial,
                )  # fmt: skip
            torch.ops.fastdml_native.stream_gather_(form.id, sweep, partial, statistics)
        return statistics

    def result(self) -> Result:
        problem, wanted = self.problem, self.wanted
        statistics = self.gathered()
        out = Result(self.empty(self.n, problem.loss.outputs))
        scalars = problem.all_scalars
        if wanted.scalars and scalars is not None:
            out.d_scalars = self.x.new_zeros(self.n, scalars.numel())
        if wanted.row_values and problem.row_values is not None:
            out.d_row_values = torch.zeros_like(problem.row_values)
        self.rows(
            -1, statistics, loss=out.outputs, d_scalars=out.d_scalars, d_row_values=out.d_row_values
        )
        if problem.loss.outputs == 1 or problem.loss.counted:
            for d in (out.d_scalars, out.d_row_values):
                if d is not None:
                    d *= problem.weight
                    if problem.row_weight is not None:
                        d *= problem.row_weight.reshape(-1, 1)
        if out.d_scalars is not None:
            out.d_scalars = out.d_scalars.sum(0, dtype=torch.float64).to(self.x.dtype)
        if wanted.anchors or wanted.candidates:
            out.d_anchors = self.gradient(statistics)
        out.outputs.add_(problem.poison)
        return out

    def gradient(self, statistics: Tensor) -> Tensor:
        problem, x = self.problem, self.x
        known = self.known(len(self.form.statistics), statistics)
        d = torch.zeros_like(x)
        backwards = self.left != self.starts[0]
        for start in self.starts[::-1] if backwards else self.starts:
            h = self.block(start)
            torch.ops.fastdml_native.stream_weigh_(
                h, self.form.id, self.members, start, *self.numbers, self.classes, known,
                problem.all_scalars, problem.row_weight, problem.weight, self.pieces,
            )  # fmt: skip
            self.left = None
            stop = start + h.shape[0]
            d[start:stop].addmm_(h, x[start:])
            d[start:].addmm_(h.t(), x[start:stop])
        problem.loss.metric.finish_(d, x, problem.row_scale, None)
        return d
