"""Printed C++ functors against the library's own, which were written by hand, and against the words."""

import pytest
import torch
from described import examples
from expressions import run, tree
from printed import Block, by_hand, together

from fastdml.engine import library
from fastdml.engine.loss import Rows
from fastdml.language import cpp
from fastdml.language.compile import load
from fastdml.language.evaluate import evaluate
from fastdml.language.graph import lift
from fastdml.language.program import program
from fastdml.language.row import Trace, TracedRow, trace

pytestmark = pytest.mark.skipif(library.load() is None, reason="no compiled library")

# Of examples that print the same functor, one.
SAME = {("multi_similarity", 2), ("binomial_deviance", 1), ("contrastive", 2), ("contrastive", 3),
        ("softmax_cross_entropy", 3), ("softmax_cross_entropy", 1)}  # fmt: skip
# float32 rounds by a few units of the last digit of the largest number.
CASES = [c for c in examples() if (c[0], c[1]) not in SAME]
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-6}
SHAPES = [
    (7, 7, True, 2),
    (24, 57, True, 9),
    (16, 33, False, 5),
    (3, 1, False, 1),
    (5, 130, True, 1),
]


@pytest.fixture(scope="module")
def functors(cache):
    return together(CASES)


def close(found, expected, dtype, what):
    for a, b, name in zip(found, expected, ("loss", "weight", "d_scalars", "d_values")):
        if a is None:
            continue
        assert torch.isfinite(a).all(), f"{what}: {name} is not finite"
        bound = TOLERANCE[dtype] * max(1.0, float(b.abs().max()))
        assert float((a - b).abs().max()) <= bound, f"{what}: {name}"


@pytest.mark.parametrize("case", CASES, ids=[f"{name}-{k}" for name, k, _, _ in CASES])
def test_equals_the_functor_written_by_hand(case, functors):
    name, k, _, description = case
    printed, opened = functors[f"{name}_{k}"]
    hand, members = by_hand(description)
    proxies = name == "softmax_cross_entropy"
    for rows, columns, one_set, classes in SHAPES:
        values = description.example_values(rows, columns)
        if name in ("nt_xent", "proxy_anchor"):
            values["scalars"] = torch.tensor([1.7])
        for dtype in TOLERANCE:
            classes = columns if proxies else classes
            block = Block(rows, columns, dtype, rows, classes, one_set and not proxies, **values)
            weight = None
            if description.outputs > 1:
                weight = torch.linspace(-1, 2, rows * description.outputs).to(dtype)
            expected = block.run(hand, members, description.outputs, row_weight=weight)
            found = block.run(printed, opened, description.outputs, row_weight=weight)
            close(found, expected, dtype, f"{rows} x {columns} {dtype}")
            losses, *_ = block.run(printed, opened, description.outputs, False, weight)
            close([losses], expected[:1], dtype, "without a gradient")


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
        close((losses, weights, d_scalars, d_values), expected, torch.float64, f"tree({seed})")
