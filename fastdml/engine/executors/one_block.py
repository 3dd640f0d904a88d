"""A small problem, in one call of the compiled library.

What `schedule` does in twenty operators. A small batch spends its time on the way into operators, and
where rows and columns are one set the two products of weights are one: (G + G^T) A.
"""

from __future__ import annotations

import torch

from .. import library
from ..loss import RowLoss
from ..problem import Problem
from ..schedule import Result, Wanted
from ..similarity import PRODUCT
from ..workspace import block_limit, buffer

# Pairs beyond which operators are cheap beside the arithmetic, and adding G^T to G costs what the second
# product does; and beyond which a second product of similarities is not, which the schedule saves.
_LARGEST = 1 << 18
_LARGEST_TWICE = 1 << 16
# Values of a matrix that costs less to allocate than to find in the workspace.
_FRESH = 1 << 12


def functor_of(loss: RowLoss) -> int:
    """The id of the compiled functor of a description that has one."""
    own = loss.functor()
    return own if isinstance(own, int) else library.functors()[loss.functor_name][0]


def takes(problem: Problem) -> bool:
    """Whether the call below can run a problem that the compiled functors can."""
    loss, metric = problem.loss, problem.loss.metric
    a, c = problem.anchors, problem.candidates
    return (
        problem.device_type == "cpu"
        and a.is_contiguous()
        and (c is a or c.is_contiguous())
        and problem.teacher is None
        and not loss.column_bias
        and not (metric.clipped or metric.raw_anchors)
        and (metric.normalized or metric.kind == PRODUCT)
        and _fits(problem)
    )


def _fits(problem: Problem) -> bool:
    a, n = problem.anchors, problem.candidates.shape[0]
    pairs = a.shape[0] * n
    if pairs <= _FRESH:  # which the smallest workspace holds
        return True
    loss, size = problem.loss, a.element_size()
    twice = loss.combined or loss.before is not None
    return pairs <= (_LARGEST_TWICE if twice else _LARGEST) and pairs * size <= block_limit("cpu", n, size)


def run(problem: Problem, wanted: Wanted) -> Result | None:
    """Outputs of the rows and the wanted derivatives of their weighted sum; None where embeddings have to be
    conditioned first."""
    a, c, loss = problem.anchors, problem.candidates, problem.loss
    m, n = a.shape[0], c.shape[0]
    metric, classes = loss.metric, problem.classes
    one_set = c is a
    outputs, total, *found = torch.ops.fastdml_native.one_block(
        a,
        None if one_set else c,
        None if m * n <= _FRESH else buffer("similarity", m * n, a).view(m, n),
        functor_of(loss),
        loss.members,
        metric.kind,
        metric.normalized,
        problem.epsilon,
        classes.packed,
        problem.longest,
        problem.own_offset,
        problem.own_index,
        problem.row_weight,
        problem.weight,
        problem.all_scalars,
        problem.row_values,
        problem.col_values,
        wanted.total,
        wanted.anchors,
        wanted.candidates,
        wanted.scalars,
        wanted.row_values,
    )
    if outputs.shape[0] != m:
        return None
    d_anchors, d_candidates, d_scalars, d_row_values = found
    if d_scalars is not None:
        d_scalars = d_scalars.sum(0, dtype=torch.float64).to(problem.statistic)
    return Result(outputs, d_anchors, d_candidates, d_scalars, d_row_values, total=total)
