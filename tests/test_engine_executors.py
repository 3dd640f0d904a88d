"""Every executor against the dense form in float64, over every registered loss and ragged problems."""

import contextlib
import dataclasses

import pytest
import torch
from conftest import BACKENDS, CASES, EXAMPLES, call, distance, engine_arguments, scales

from fastdml.engine import autograd
from fastdml.engine.problem import Problem
from fastdml.engine.registry import handle

OTHERS = [b for b in BACKENDS if b != "dense"]
REDUCTIONS = ("mean", "sum", "nonzero", "none")

# Beyond twice the error of torch's own computation in the same type: a few units in the last place of
# float32 arithmetic, relative to the largest value, and one rounding of the result to its type.
FLOOR = 16 * torch.finfo(torch.float32).eps
NAMES = ("loss", "gradient of anchors", "gradient of candidates")


@contextlib.contextmanager
def shaken():
    """Every similarity moved by up to two units in float32's last place."""
    rows = Problem.rows

    def shake(self, s, *rest):
        g = torch.Generator().manual_seed(77)
        noise = torch.rand(s.shape, generator=g, dtype=torch.float64) * 2 - 1
        return rows(self, s * (1 + 2 * torch.finfo(torch.float32).eps * noise), *rest)

    Problem.rows = shake
    try:
        yield
    finally:
        Problem.rows = rows


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_float64_equals_dense(description, backend, reduction, case):
    true = call(description, case, "dense", reduction)
    found = call(description, case, backend, reduction)
    for name, t, f, scale in zip(NAMES, true, found, scales(description, case, reduction)):
        assert f.dtype == torch.float64
        assert distance(f, t, scale) < 1e-11, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_narrow_types_err_at_most_twice_as_torch(description, backend, dtype, case):
    """... or as a shake of the similarities' last places does (sharp losses are badly conditioned)."""
    narrow = case.to(dtype)
    wide = narrow.to(torch.float64)
    true = call(description, wide, "dense")
    torchs = call(description, narrow, "dense")
    with shaken():
        moved = call(description, wide, "dense")
    found = call(description, narrow, backend)
    for name, t, f, by_torch, m, scale in zip(
        NAMES, true, found, torchs, moved, scales(description, wide)
    ):
        kind = torch.float32 if name == "loss" else dtype
        assert f.dtype == kind, name
        floor = FLOOR + (torch.finfo(dtype).eps if kind != torch.float32 else 0)
        bound = 2 * max(distance(by_torch, t, scale), distance(m, t, scale)) + floor
        assert distance(f, t, scale) <= bound, name


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("description", EXAMPLES)
@pytest.mark.parametrize("name", ["ragged", "reference"])
def test_row_losses_take_upstream_weights(description, backend, name):
    case = CASES[name]()
    rows = engine_arguments(description, case)[0].shape[0]
    weight = torch.randn(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight[::3] = 0
    true = call(description, case, "dense", "none", weight)
    found = call(description, case, backend, "none", weight)
    for part, t, f in zip(NAMES, true, found):
        assert distance(f, t) < 1e-11, part


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_reductions_agree_with_row_losses(description, backend):
    case = CASES["ragged"]()
    rows, d_rows, *_ = call(description, case, backend, "none")
    kept = (rows > 0).sum().clamp(min=1)
    for reduction, divisor in (("sum", 1), ("mean", len(rows)), ("nonzero", kept)):
        value, gradient, *_ = call(description, case, backend, reduction)
        assert distance(value, rows.sum() / divisor) < 1e-12
        assert distance(gradient, d_rows / divisor) < 1e-12


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_dot_product(description, backend):
    description = dataclasses.replace(description, similarity="dot")
    case = CASES["ragged"]()
    case = dataclasses.replace(case, x=case.x / 8)
    for t, f in zip(call(description, case, "dense"), call(description, case, backend)):
        assert distance(f, t) < 1e-11


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("description", EXAMPLES)
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_the_gradients_asked_for(description, backend, wanted):
    """Each alone equals what both together give; without any the value is the same."""
    case = CASES["reference"]()
    value, *gradients = call(description, case, backend)
    anchors, candidates, rows, columns = engine_arguments(description, case)
    leaves = [x.clone().requires_grad_(w) for x, w in zip((anchors, candidates), wanted)]
    alone = autograd.row_loss(*leaves, rows, columns, loss=handle(description), backend=backend)
    assert torch.equal(alone.detach(), value)
    assert alone.requires_grad == any(wanted)
    if any(wanted):
        alone.backward()
    for leaf, w, g in zip(leaves, wanted, gradients):
        assert (leaf.grad is not None) == w
        assert not w or distance(leaf.grad, g) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_strides_do_not_matter(description, backend):
    case = CASES["reference"]()
    strided = dataclasses.replace(
        case,
        x=torch.stack([case.x, case.x], 2)[:, :, 1],
        y=torch.stack([case.y, -case.y], 1)[:, 0],
        ref=case.ref.t().contiguous().t(),
        ref_y=case.ref_y.flip(0).clone().flip(0),
    )
    for a, b in zip(call(description, case, backend), call(description, strided, backend)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_one_column_of_a_transposed_matrix(description, backend):
    """A [B, 1] tensor may count as contiguous with any stride of its second dimension."""
    case = CASES["one_dimension"]()
    odd = torch.cat([case.x.t(), case.x.t()]).contiguous().t()[:, :1]
    found = call(description, dataclasses.replace(case, x=odd), backend)
    for a, b in zip(call(description, case, backend), found):
        assert torch.equal(a, b)


@pytest.mark.parametrize("description", EXAMPLES)
@pytest.mark.parametrize("mixed", [(torch.float32, torch.float64), (torch.float16, torch.float32)])
def test_anchors_and_candidates_of_different_types(description, mixed):
    case = CASES["reference"]()
    case = dataclasses.replace(case, x=case.x.to(mixed[0]), ref=case.ref.to(mixed[1]))
    true = call(description, case.to(torch.float64), "dense")
    torchs = call(description, case, "dense")
    with shaken():
        moved = call(description, case.to(torch.float64), "dense")
    for backend in OTHERS:
        for t, f, d, m in zip(true, call(description, case, backend), torchs, moved):
            assert f.dtype == d.dtype
            bound = 2 * max(distance(d, t), distance(m, t)) + FLOOR + torch.finfo(f.dtype).eps
            assert distance(f, t) < bound


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_no_gradient_is_computed_without_a_graph(description, backend, monkeypatch):
    from fastdml.engine.dispatch import EXECUTORS

    asked = []
    executor = EXECUTORS[backend]
    run = executor.run
    monkeypatch.setattr(executor, "run", lambda p, **k: asked.append(k) or run(p, **k))
    case = CASES["ragged"]()
    anchors, candidates, rows, columns = engine_arguments(description, case)
    anchors.requires_grad_()
    with torch.no_grad():
        autograd.row_loss(anchors, candidates, rows, columns, loss=handle(description), backend=backend)
    assert asked == [{"anchors": False, "candidates": False}]


@pytest.mark.parametrize("backend", BACKENDS)
def test_inference_mode_leaves_nothing_behind(backend):
    """Buffers kept from inference mode must serve training afterwards."""
    description, case = EXAMPLES[0].values[0], CASES["ragged"]()
    arguments = engine_arguments(description, case)
    with torch.inference_mode():
        inside = autograd.row_loss(*arguments, loss=handle(description), backend=backend)
    assert torch.equal(inside, call(description, case, backend)[0])
