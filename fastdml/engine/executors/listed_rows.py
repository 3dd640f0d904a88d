"""Compiled row functors over listed pairs: a row is what a list names of it, and nothing else is read."""

from __future__ import annotations

import torch

from ..listed import Compiled, RowList, plan
from ..loss import RowLoss
from ..problem import Problem
from ..registry import registered
from ..relation import TupleRelation
from ..similarity import DISTANCE
from . import Result, Wanted
from .one_block import functor_of


def refuses(problem: Problem) -> str | None:
    """Why a problem of a list cannot run so, or None."""
    loss = problem.loss
    if problem.device_type != "cpu":
        return "compiled functors take listed pairs on the CPU only"
    if problem.teacher is not None or problem.col_values is not None or loss.presweep() is not None:
        return "with values of columns or a teacher, compiled functors take pairs from labels only"
    if not registered(loss):  # what a user's function reads of other pairs is not known
        return "functors of a user's loss take pairs from labels only"
    from_labels = type(loss).label_scalars is not RowLoss.label_scalars
    if from_labels or loss.columns == "proxies" or loss.rows_together > 1:
        return f"{loss.name!r} needs labels"
    relation = problem.relation
    if loss.joint and isinstance(relation, TupleRelation) and not relation.disjoint:
        return "some pair is listed as positive and as negative"
    if loss.unlisted:
        return f"{loss.name!r} looks at pairs that are not listed, or counts them"
    return None


def explained(problem: Problem) -> str:
    """What would run, in words."""
    relation = problem.relation
    assert isinstance(relation, TupleRelation)
    pairs = sum(t.shape[0] for t in relation.indices[::2])
    size = torch.finfo(problem.statistic).bits // 8
    return f"listed pairs, {plan('cpu', relation.rows, relation.columns, pairs, size)}"


def run(problem: Problem, wanted: Wanted) -> Result:
    """Outputs of the rows, and the wanted derivatives of their weighted sum."""
    problem.condition()
    relation, loss = problem.relation, problem.loss
    assert isinstance(relation, TupleRelation)
    start, column = relation.by_rows(keep_own=loss.self_pair == "keep")
    pairs = Compiled(problem, [RowList(start, column, every=2)])
    # What a first visit has found is there for the second.
    values = problem.__dict__.pop("listed_values", None)
    values = pairs.values()[0] if values is None else values
    numbers = values.clone() if wanted and loss.metric.kind == DISTANCE else values
    out = Result.of(problem, wanted)
    torch.ops.fastdml_native.listed_rows_(
        values, start, functor_of(loss), loss.members, problem.row_weight, problem.weight,
        problem.all_scalars, problem.row_values, out.outputs, out.d_scalars, out.d_row_values, bool(wanted),
    )  # fmt: skip
    if wanted.anchors or wanted.candidates:
        found = pairs.gradients([values], [numbers], (wanted.anchors, wanted.candidates))
        out.d_anchors, out.d_candidates = found
    if not wanted:
        problem.__dict__["listed_values"] = values
    out.finish(problem)
    return out
