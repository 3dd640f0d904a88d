"""The reference: the whole matrix, differentiated by autograd from end to end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..problem import Problem, joined
from . import Result, Wanted


def outputs_of(
    problem: Problem,
    a: Tensor,
    c: Tensor,
    scalars: Tensor | None,
    row_values: Tensor | None,
    col_values: Tensor | None,
) -> Tensor:
    """[M, outputs] of the specification, differentiable in everything that is handed in."""
    s = problem.loss.metric.dense(a, c, problem.epsilon)
    teacher = None
    if problem.teacher_problem is not None:
        t = problem.teacher_problem
        kind = torch.float64 if t.loss.metric.from_differences else t.statistic
        teacher = t.loss.metric.dense(t.anchors.to(kind), t.candidates.to(kind), t.epsilon)
        teacher = teacher.to(t.statistic)
    rows = problem.rows(s, 0, a.shape[0], teacher)
    rows.scalars, rows.row_values, rows.col_values = scalars, row_values, col_values
    before = problem.loss.presweep()
    if before is not None and not problem.presweep_done:
        other = problem.swapped(before)
        theirs = other.rows(s.t(), 0, s.shape[1])
        theirs.scalars = scalars
        rows.col_values = joined(col_values, before.spec(theirs).reshape(s.shape[1], -1).t())
    return problem.loss.spec(rows).reshape(a.shape[0], -1)


class Dense:
    name = "dense"
    by_blocks = False

    def refuses(self, problem: Problem) -> str | None:
        return None

    def plan(self, problem: Problem) -> str:
        m, n = problem.relation.rows, problem.relation.columns
        return f"the whole {m} x {n} matrix in autograd: the reference, for small inputs"

    def run(self, problem: Problem, wanted: Wanted) -> Result:
        problem.condition()

        def leaf(x: Tensor | None, needed: bool) -> Tensor | None:
            return None if x is None else x.detach().to(problem.statistic).requires_grad_(needed)

        with torch.enable_grad():
            a = leaf(problem.anchors, wanted.anchors)
            c = a if problem.one_set else leaf(problem.candidates, wanted.candidates)
            assert a is not None and c is not None
            scalars = leaf(problem.all_scalars, wanted.scalars)
            row_values = leaf(problem.row_values, wanted.row_values)
            col_values = leaf(problem.col_values, wanted.col_values)
            outputs = outputs_of(problem, a, c, scalars, row_values, col_values)
            leaves = {
                "d_anchors": a,
                "d_candidates": None if problem.one_set else c,
                "d_scalars": scalars,
                "d_row_values": row_values,
                "d_col_values": col_values,
            }
            inputs = {k: x for k, x in leaves.items() if x is not None and x.requires_grad}
            result = Result(outputs.detach() + problem.poison)
            if inputs:
                weight = torch.full_like(outputs, problem.weight)
                if problem.row_weight is not None:
                    weight = weight * problem.row_weight.reshape(a.shape[0], -1)
                derivatives: Sequence[Tensor | None] = [None] * len(inputs)
                if outputs.requires_grad:  # not of a loss that is a constant
                    derivatives = torch.autograd.grad(
                        outputs, list(inputs.values()), weight, allow_unused=True
                    )
                for (name, x), g in zip(inputs.items(), derivatives, strict=True):
                    setattr(result, name, torch.zeros_like(x) if g is None else g)
        return result
