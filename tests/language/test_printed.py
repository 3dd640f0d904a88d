"""Printed C++ functors against the passes on tensors."""

import re

import pytest
import torch
from evaluated import evaluate
from expressions import run, tree
from printed import Block

from fastdml.engine import library
from fastdml.engine.loss import Rows
from fastdml.language import cpp, exp, relu, sum
from fastdml.language.compile import load
from fastdml.language.graph import REDUCTIONS, lift, topological
from fastdml.language.printed import forms, headers
from fastdml.language.program import program
from fastdml.language.row import Trace, TracedRow, trace

pytestmark = [
    pytest.mark.skipif(library.load() is None, reason="no compiled library"),
    pytest.mark.usefixtures("compiled_quickly"),
]

TOLERANCE = 1e-11


def close(found, expected, what):
    for a, b, name in zip(found, expected, ("loss", "weight", "d_scalars", "d_values")):
        if a is None:
            continue
        assert torch.isfinite(a).all(), f"{what}: {name} is not finite"
        bound = TOLERANCE * max(1.0, float(b.abs().max()))
        assert float((a - b).abs().max()) <= bound, f"{what}: {name}"


def above_their_sum(p):
    """The second sum reads the first, and computes the same exponentials."""
    level = sum(exp(p.s), where=p.positive)
    return sum(exp(p.s) * relu(p.s - level), where=p.negative)


def test_a_reduction_has_a_pass_before_those_that_read_it():
    known = set()
    for nodes in program(trace(above_their_sum)).passes:
        for node in nodes:
            assert {n for n in topological(node.args) if n.op in REDUCTIONS} <= known
        known |= {*nodes}
    assert len(known) > 1


def test_every_form_of_a_described_loss_is_in_the_library():
    """... and losses that print alike share one functor."""
    names = [one.name for _, one in forms()]
    assert len(names) == len(set(names)) and set(names) <= set(library.functors())
    for stem, text in headers().items():
        structs = re.findall(r"^struct (\w+)", text, re.M)
        assert len(structs) == len(set(structs)) <= len(re.findall("^FASTDML_ROW_LOSS", text, re.M)), stem
    alike = headers()["contrastive"]
    assert "FASTDML_ROW_LOSS(calibration, Contrastive)" in alike


@pytest.mark.slow
def test_random_expressions():
    """Value and all derivatives of 8 functions, compiled as one."""
    alpha = trace(lambda p, alpha: alpha, ("alpha",)).outputs[0]
    made = []
    for seed in range(8):
        outputs = (lift(run(tree(seed), TracedRow(), alpha)),)
        made.append(program(Trace(outputs, parameters=("alpha",))))
    values = {
        "scalars": torch.tensor([1.3, 0.8]),
        "row_values": torch.linspace(-1, 1, 9)[:, None],
        "col_values": torch.linspace(-1, 1, 74).view(2, 37).sin(),
        "teacher": torch.linspace(-1, 1, 9 * 37).view(9, 37).cos(),
    }
    block = Block(9, 37, torch.float64, 3, 5, True, **values)
    index = block.index
    positive = index.row_class[:, None] == index.col_class
    pair = ~torch.eye(9, 37, dtype=torch.bool)
    rows = Rows(block.s, positive & pair, ~positive & pair, pair, **{
        k: block.values[k] for k in ("teacher", "scalars", "row_values", "col_values")
    })  # fmt: skip
    names = tuple(f"random_{seed}" for seed in range(len(made)))
    functors = load(tuple(cpp.functor(one, name) for one, name in zip(made, names)), names)
    for seed, (one, functor) in enumerate(zip(made, functors)):
        losses, weights, d_scalars, d_values = block.run(functor, (0.9,))
        found = evaluate(one, rows, {"alpha": 0.9})
        expected_scalars, expected_values = torch.zeros_like(d_scalars), torch.zeros_like(d_values)
        for k, d in found.d_scalars.items():
            expected_scalars[:, k] = d
        for k, d in found.d_values.items():
            expected_values[:, k] = d
        expected = (found.outputs, found.weight * pair, expected_scalars, expected_values)
        close((losses, weights, d_scalars, d_values), expected, f"tree({seed})")
