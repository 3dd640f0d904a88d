"""Every executor against the dense form in float64, over every registered loss and ragged problems."""

import contextlib
import dataclasses

import pytest
import torch
from conftest import (
    BACKENDS,
    CASES,
    EXAMPLES,
    FIRST_EXAMPLES,
    KINDS,
    ROW_EXAMPLES,
    assert_agree,
    call,
    distance,
    inputs,
    of_rows,
    rounded_products,
    scales,
)

import fastdml
from fastdml.engine.dispatch import EXECUTORS
from fastdml.engine.executors import one_block
from fastdml.engine.problem import Problem

OTHERS = [b for b in BACKENDS if b != "dense"]
# A small problem is one call of the compiled library; this way it goes through blocks as a large one.
BLOCKS = "native, in blocks"
WAYS = OTHERS + [BLOCKS] * ("native" in OTHERS)


@pytest.fixture
def way(request, monkeypatch):
    """The backend to call, set to work in blocks where that is asked for."""
    if request.param != BLOCKS:
        return request.param
    monkeypatch.setattr(one_block, "takes", lambda problem: False)
    return "native"


# Beyond twice the error of torch's own computation in the same type: a few units in the last place of
# float32 arithmetic, relative to the largest value, and one rounding of the result to its type.
FLOOR = 16 * torch.finfo(torch.float32).eps


@contextlib.contextmanager
def shaken():
    """Every similarity moved by up to two units in float32's last place, and every product by as many
    as its rounding may be off where a distance is made of it."""
    rows = Problem.rows

    def shake(self, s, *rest):
        g = torch.Generator().manual_seed(77)
        noise = torch.rand(s.shape, generator=g, dtype=torch.float64) * 2 - 1
        return rows(self, s * (1 + 2 * torch.finfo(torch.float32).eps * noise), *rest)

    Problem.rows = shake
    try:
        with rounded_products(torch.float32):
            yield
    finally:
        Problem.rows = rows


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("description", EXAMPLES)
def test_float64_equals_dense(description, way, case):
    """The mean; other reductions are compared with row losses below."""
    true = call(description, case, "dense")
    found = call(description, case, way)
    assert all(f.dtype == torch.float64 for f in found)
    assert_agree(description, case, found, true, scales=scales(description, case))


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("name", ["ragged", "reference"])
@pytest.mark.parametrize("description", [p for p in EXAMPLES if not of_rows(p.values[0])])
def test_sums_of_losses_that_are_no_sum_of_rows(description, name, way):
    case = CASES[name]()
    true = call(description, case, "dense", "sum")
    found = call(description, case, way, "sum")
    assert_agree(description, case, found, true, reduction="sum", scales=scales(description, case, "sum"))


# On the CPU both half types are one path, in float32.
NARROW = [
    (name, dtype)
    for name in ("ragged", "wide", "reference", "zeros")
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    if dtype != torch.bfloat16 or name == "ragged"
]


@pytest.mark.parametrize("name,dtype", NARROW)
@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_narrow_types_err_at_most_twice_as_torch(description, backend, name, dtype):
    """... or as a shake of the similarities' last places does (sharp losses are badly conditioned)."""
    narrow = CASES[name]().to(dtype)
    wide = narrow.to(torch.float64)
    true = call(description, wide, "dense")
    torchs = call(description, narrow, "dense")
    with shaken():
        moved = call(description, wide, "dense")
    found = call(description, narrow, backend)
    names = ["loss", *inputs(description, narrow).leaves()]
    results = zip(names, true, found, torchs, moved, scales(description, wide), strict=True)
    for name, t, f, by_torch, m, scale in results:
        kind = dtype if name in ("anchors", "candidates") else by_torch.dtype
        assert f.dtype == kind, name
        floor = FLOOR + (torch.finfo(dtype).eps if kind == dtype else 0)
        bound = 2 * max(distance(by_torch, t, scale), distance(m, t, scale)) + floor
        assert distance(f, t, scale) <= bound, name


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("description", ROW_EXAMPLES)
@pytest.mark.parametrize("name", ["ragged", "reference"])
def test_row_losses_take_upstream_weights(description, way, name):
    case = CASES[name]()
    rows = len(inputs(description, case).anchors)
    weight = torch.randn(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight[::3] = 0
    true = call(description, case, "dense", "none", weight)
    found = call(description, case, way, "none", weight)
    assert_agree(description, case, found, true, reduction="none", weight=weight)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", ROW_EXAMPLES)
def test_reductions_agree_with_row_losses(description, backend):
    case = CASES["ragged"]()
    rows, *d_rows = call(description, case, backend, "none")
    kept = (rows > 0).sum().clamp(min=1)
    for reduction, divisor in (("sum", 1), ("mean", len(rows)), ("nonzero", kept)):
        value, *gradients = call(description, case, backend, reduction)
        if description.counted and reduction == "mean":
            # A mean over what the rows count, whatever that is: a whole number of things.
            divisor = rows.sum() / value
            assert abs(divisor - divisor.round()) < 1e-9 * divisor
        assert distance(value, rows.sum() / divisor) < 1e-12
        for g, d in zip(gradients, d_rows, strict=True):
            assert distance(g, d / divisor) < 1e-12


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_dot_product(description, backend):
    try:
        description = dataclasses.replace(description, similarity="dot")
    except ValueError as refused:
        pytest.skip(str(refused))
    case = CASES["ragged"]()
    case = dataclasses.replace(case, x=case.x / 8)
    try:
        found = call(description, case, backend)
    except ValueError as refused:
        assert str(refused).startswith("backend: ")
        pytest.skip(str(refused))
    for t, f in zip(call(description, case, "dense"), found):
        assert distance(f, t) < 1e-11


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("description", EXAMPLES)
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_the_gradients_asked_for(description, backend, wanted):
    """Each alone equals what both together give; without any the value is the same."""
    given = inputs(description, CASES["reference"]())
    value, *gradients = call(description, given, backend)
    leaves = dict(zip(("anchors", "candidates"), given.leaves().values()))
    for leaf, w in zip(leaves.values(), wanted):
        leaf.requires_grad_(w)
    alone = given.loss(description, backend, **leaves)
    assert torch.equal(alone.detach(), value)
    assert alone.requires_grad == any(wanted)
    if any(wanted):
        alone.backward()
    for leaf, w, g in zip(leaves.values(), wanted, gradients):
        assert (leaf.grad is not None) == w
        assert not w or distance(leaf.grad, g) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", KINDS)
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
@pytest.mark.parametrize("description", KINDS)
def test_one_column_of_a_transposed_matrix(description, backend):
    """A [B, 1] tensor may count as contiguous with any stride of its second dimension."""
    case = CASES["one_dimension"]()
    odd = torch.cat([case.x.t(), case.x.t()]).contiguous().t()[:, :1]
    found = call(description, dataclasses.replace(case, x=odd), backend)
    for a, b in zip(call(description, case, backend), found):
        assert torch.equal(a, b)


@pytest.mark.parametrize("description", FIRST_EXAMPLES)
@pytest.mark.parametrize("mixed", [(torch.float32, torch.float64), (torch.float16, torch.float32)])
def test_anchors_and_candidates_of_different_types(description, mixed):
    case = CASES["reference"]()
    # A row of both sets would be two that are only near: the rounding of the narrower type apart.
    case.ref[4] *= torch.linspace(-1, 2, case.ref.shape[1], dtype=torch.float64)
    case = dataclasses.replace(case, x=case.x.to(mixed[0]), ref=case.ref.to(mixed[1]))
    wide = case.to(torch.float64)
    true = call(description, wide, "dense")
    torchs = call(description, case, "dense")
    with shaken():
        moved = call(description, wide, "dense")
    for backend in OTHERS:
        for t, f, d, m in zip(true, call(description, case, backend), torchs, moved):
            assert f.dtype == d.dtype
            bound = 2 * max(distance(d, t), distance(m, t)) + FLOOR + torch.finfo(f.dtype).eps
            assert distance(f, t) < bound


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", KINDS)
def test_no_gradient_is_computed_without_a_graph(description, backend, monkeypatch):
    asked = []
    executor = EXECUTORS[backend]
    execute = executor.run
    monkeypatch.setattr(executor, "run", lambda p, wanted: asked.append(wanted) or execute(p, wanted))
    given = inputs(description, CASES["ragged"]())
    with torch.no_grad():
        given.loss(description, backend, **given.leaves())
    assert len(asked) == 1 and not asked[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", KINDS)
def test_inference_mode_leaves_nothing_behind(description, backend):
    """Buffers kept from inference mode must serve training afterwards."""
    given = inputs(description, CASES["ragged"]())
    with torch.inference_mode():
        inside = given.loss(description, backend)
    assert torch.equal(inside, call(description, given, backend)[0])


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_derivatives_that_come_before_a_loss_in_inference_mode(backend):
    """The histogram loss is made of some: torch records none there, and none of what comes from there."""
    case, loss = CASES["ragged"](), fastdml.losses.HistogramLoss(backend=backend)
    value = loss(case.x, case.y)
    with torch.inference_mode():
        copies = case.x.clone(), case.y.clone()
        assert torch.equal(loss(*copies), value)
    assert torch.equal(loss(*copies), value)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_blocks_of_every_size_agree(description, backend):
    """The smallest workspace cuts the problem into many blocks, the last of them short."""
    given = inputs(description, CASES["long"]())
    whole = call(description, given, backend)
    fastdml.set_workspace(64 << 10)
    for a, b in zip(whole, call(description, given, backend)):
        assert distance(b, a) < 1e-12
