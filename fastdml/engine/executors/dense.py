"""The reference: the whole matrix, differentiated by autograd from end to end."""

from __future__ import annotations

import torch

from ..problem import Problem
from . import Result


class Dense:
    name = "dense"

    def refuses(self, problem: Problem) -> str | None:
        return None

    def plan(self, problem: Problem) -> str:
        m, n = problem.relation.rows, problem.relation.columns
        return f"the whole {m} x {n} matrix in autograd: the reference, for small inputs"

    def run(self, problem: Problem, *, anchors: bool, candidates: bool) -> Result:
        metric = problem.loss.metric
        with torch.enable_grad():
            a = problem.anchors.detach().to(problem.statistic).requires_grad_(anchors)
            if problem.one_set:
                c = a
            else:
                c = problem.candidates.detach().to(problem.statistic).requires_grad_(candidates)
            s = metric.dense(a) @ metric.dense(c).t()
            teacher = None
            if problem.teacher is not None:
                teacher = (problem.teacher[0] @ problem.teacher[1].t()).to(problem.statistic)
            losses = problem.loss.spec(problem.rows(s, 0, a.shape[0], teacher))
            inputs = [x for x in ([a] if problem.one_set else [a, c]) if x.requires_grad]
            gradients = []
            if inputs:
                weight = torch.full_like(losses, problem.weight)
                if problem.row_weight is not None:
                    weight = weight * problem.row_weight
                gradients = list(torch.autograd.grad(losses, inputs, weight, allow_unused=True))
                gradients = [
                    torch.zeros_like(x) if g is None else g
                    for g, x in zip(gradients, inputs, strict=True)
                ]
        d_anchors = gradients.pop(0) if anchors else None
        d_candidates = gradients.pop(0) if gradients else None
        return losses.detach(), d_anchors, d_candidates
