"""The differentiated program against autograd through the words, in float64."""

import dataclasses

import pytest
import torch
from blocks import block
from described import examples
from evaluated import evaluate
from expressions import functions, run
from hypothesis import given, settings

from fastdml.language.graph import lift
from fastdml.language.program import program
from fastdml.language.row import TensorRow, Trace, TracedRow, outputs_of, trace

ALPHA = 0.9
CASES = list(examples())


def close(found, expected, scale=1.0):
    atol = 1e-11 * max(scale, 1.0)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=atol)


def compare(traced, direct, rows, parameters, weights):
    """All derivatives of the traced function against autograd's of the direct one."""
    found = evaluate(program(traced), rows, parameters, weights)
    outputs = direct.reshape(rows.s.shape[0], -1)
    close(found.outputs.detach(), outputs.detach(), float(outputs.detach().abs().max()))
    leaves = [rows.s, rows.scalars, rows.row_values, rows.col_values]
    if not outputs.requires_grad:
        assert (found.weight == 0).all()
        return
    weights = torch.ones_like(outputs) if weights is None else weights
    g, scalars, values, columns = torch.autograd.grad(outputs, leaves, weights, allow_unused=True)
    if not all(d is None or torch.isfinite(d).all() for d in (g, scalars, values, columns)):
        return  # a function that has no derivative here
    size = 1.0 if g is None else float(g.abs().max())
    close(found.weight.detach(), torch.zeros_like(rows.s) if g is None else g, size)
    for got, expected, at in (
        (found.d_scalars, scalars, lambda x, k: x[k]),
        (found.d_values, values, lambda x, k: x[:, k]),
        (found.d_columns, columns, lambda x, k: x[k]),
    ):
        for k, x in got.items():
            of = at(expected, k) if expected is not None else None
            total = x.detach().sum(0) if of is None or of.dim() < x.dim() else x.detach()
            if of is not None and of.shape == rows.col_values[0].shape:
                total = x.detach().sum(0)
            close(
                total, torch.zeros_like(total) if of is None else of, float(x.detach().abs().max())
            )


@given(functions)
@settings(
    max_examples=300, deadline=None, derandomize=True, database=None, report_multiple_bugs=False
)
def test_random_expressions(tree):
    rows = block()
    alpha = trace(lambda p, alpha: alpha, ("alpha",)).outputs[0]
    traced = Trace((lift(run(tree, TracedRow(), alpha)),), parameters=("alpha",))
    direct = outputs_of(run(tree, TensorRow(rows), ALPHA), rows.s.shape[0])
    compare(traced, direct, rows, {"alpha": ALPHA}, None)


@pytest.mark.parametrize("case", CASES, ids=[f"{name}-{k}" for name, k, _ in CASES])
def test_described_losses(case):
    """... of the library, with its specification, which is the words on tensors."""
    _, _, description = case
    rows = block(
        single=description.columns == "proxies",
        scalars=4,
        distances="distance" in description.similarity,
    )
    if description.similarity.endswith("distance"):  # as its labels are then
        rows.teacher, rows.col_values = rows.teacher + 1.2, (rows.col_values + 1.2).detach().requires_grad_()
    for key, value in description.example_values(11, 23).items():
        if key != "scalars":
            setattr(rows, key, value.double().requires_grad_())
    direct = description.spec(rows)
    weights = None
    if description.outputs > 1 and not description.counted:
        weights = torch.linspace(-1, 2, direct.numel(), dtype=torch.float64).view_as(direct)
    elif description.counted:
        direct = direct[:, :1]
    traced = description.forms.program.trace
    if description.counted:
        traced = dataclasses.replace(traced, outputs=traced.outputs[:1], counted=False)
    compare(traced, direct, rows, description.open_arguments, weights)
