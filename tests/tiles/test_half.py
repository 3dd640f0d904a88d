"""Every loss with a tile functor in float16, through the executor: against its specification in float64.

On the CPU the public functions compute in float32; the executor takes what it is given.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
import triton_mode  # noqa: F401  (before triton is imported)
from conftest import Case, _embeddings, _labels, inputs
from test_public_losses import TILED, TRITON

from fastdml.engine.executors import Wanted
from fastdml.engine.executors.dense import outputs_of
from fastdml.engine.problem import Problem
from fastdml.engine.relation import LabelRelation
from fastdml.engine.similarity import Metric

HALF = [p for p in TILED if not p.values[0].similarity.startswith("raw")]
ULP = torch.finfo(torch.float16).eps


def samples() -> Case:
    """41 rows in classes of up to 13; lengths that keep distances and products within float16."""
    x = _embeddings(41, 24, 31)
    return Case(x / x.norm(dim=1, keepdim=True) * 1.5, _labels([1, 2, 4, 5, 7, 9, 13], 32))


def problem(description, dtype: torch.dtype, statistic: torch.dtype) -> Problem:
    given = inputs(description, samples())

    def rounded(x):
        return None if x is None else x.to(torch.float16).to(dtype)

    a = rounded(given.anchors)
    c = a if given.candidates is None else rounded(given.candidates)
    teacher = [rounded(t) for t in given.teacher]
    columns = given.anchor_labels if given.candidate_labels is None else given.candidate_labels
    values = (given.scalars, given.row_values, given.col_values)
    scalars, row_values, col_values = (None if v is None else v.to(statistic) for v in values)
    return Problem(
        description, a, c, LabelRelation(given.anchor_labels, columns), statistic,
        teacher=(teacher[0], teacher[-1]) if teacher else None, scalars=scalars,
        row_values=row_values, col_values=col_values,
    )  # fmt: skip


def dense(given: Problem) -> list[torch.Tensor]:
    """Sum of the first outputs and the gradients of it, in the types of the problem."""
    a = given.anchors.clone().requires_grad_()
    c = a if given.one_set else given.candidates.clone().requires_grad_()
    names = ("scalars", "row_values", "col_values")
    values = [given.all_scalars, given.row_values, given.col_values]
    values = [None if v is None else v.clone().requires_grad_() for v in values]
    outputs = outputs_of(given, a, c, *values)
    leaves = [a] if given.one_set else [a, c]
    weight = torch.ones_like(outputs)
    if given.loss.counted:
        weight[:, 1] = 0
    total = (outputs * weight).sum()
    count = 0 if given.scalars is None else given.scalars.numel()
    wanted = leaves + [v for v in values if v is not None]
    found = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    gradients = [g for g in found[: len(leaves)]]
    further = dict(zip([n for n, v in zip(names, values) if v is not None], found[len(leaves) :]))
    if count:
        gradients.append(further["scalars"][:count])
    if given.row_values is not None:
        gradients.append(further["row_values"])
    if given.col_values is not None and given.loss.column_bias:
        gradients.append(further["col_values"])
    return [total.detach(), *gradients]


def tiles(given: Problem) -> list[torch.Tensor]:
    wanted = Wanted(True, not given.one_set, True, True, given.loss.column_bias)
    if given.loss.outputs > 1 and not given.loss.counted:
        given.row_weight = torch.ones(given.relation.rows, given.loss.outputs)
    out = TRITON.run(given, wanted)
    given.unconditioned(out.d_anchors, out.d_candidates)
    total = (out.outputs[:, :1] if given.loss.counted else out.outputs).sum()
    found = [total, out.d_anchors]
    found += [] if given.one_set else [out.d_candidates]
    if given.scalars is not None:
        found.append(out.d_scalars[: given.scalars.numel()])
    found += [d for d in (out.d_row_values, out.d_col_values) if d is not None]
    return found


def single_products(monkeypatch) -> None:
    """Products rounded to float16, and everything after them in float32: torch under autocast."""
    plain = Metric.dense
    monkeypatch.setattr(Metric, "dense", lambda *args: plain(*args).float())


@pytest.mark.parametrize("description", HALF)
def test_float16(description, monkeypatch):
    true = dense(problem(description, torch.float64, torch.float64))
    found = tiles(problem(description, torch.float16, torch.float32))
    single_products(monkeypatch)
    plain = dense(problem(description, torch.float16, torch.float32))
    assert len(found) == len(true)
    for k, (f, t, p) in enumerate(zip(found, true, plain)):
        assert torch.isfinite(f).all(), f"result {k}"
        error = (f.double() - t).abs().max()
        allowed = 2 * (p.double() - t).abs().max() + 2 * ULP * t.abs().max()
        assert error <= allowed, f"result {k}: {error:.3e}, allowed {allowed:.3e}"


@pytest.mark.parametrize("description", [p for p in HALF if p.id in ("contrastive0", "calibration0")])
def test_weights_of_large_batches(description):
    """1 / B^2 for every pair is too little for float16, but not beside its like."""
    found = []
    for share in (1.0, 2.0**-32):
        given = problem(description, torch.float16, torch.float32)
        given.row_weight = torch.full((given.relation.rows, given.loss.outputs), share)
        found.append(TRITON.run(given, Wanted(True, False)).d_anchors / share)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("description", [p for p in HALF if p.id in ("sup_con0", "softmax_cross_entropy0")])
def test_lengths_of_rows(description, monkeypatch):
    """Weights are over the lengths of the rows that they multiply: those of short rows are too much for
    float16, unless the rows are brought into range."""
    case = samples()
    lengths = torch.tensor([1e-3, 1.0, 3e3]).repeat(14)[:41, None]
    monkeypatch.setitem(globals(), "samples", lambda: dataclasses.replace(case, x=case.x * lengths))
    true = dense(problem(description, torch.float64, torch.float64))[1:]
    found = tiles(problem(description, torch.float16, torch.float32))[1:]
    for f, t in zip(found, true, strict=True):
        assert ((f - t).norm(dim=1) <= 2 * ULP * t.norm(dim=1)).all()
