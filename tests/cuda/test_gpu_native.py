"""The executors on a CUDA device: what only a GPU can show. `make gpu-check` runs this file."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from conftest import CASES, EXAMPLES, call, distance, inputs, long_rows, scales
from test_engine_executors import shaken

import fastdml
import fastdml.functional as F
from fastdml.engine import library
from fastdml.engine.autograd import evaluate
from fastdml.engine.call import Call
from fastdml.engine.dispatch import EXECUTORS
from fastdml.engine.executors import Wanted
from fastdml.engine.problem import Problem

# Thousands of tests: not even collected where none of them can run.
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
if not library.runs_on(torch.device("cuda")):
    pytest.skip("compiled without CUDA", allow_module_level=True)
pytestmark = pytest.mark.gpu
EXAMPLES = [p for p in EXAMPLES if p.values[0].name in library.functors()]
ON_GPU = [b for b in EXECUTORS if b in ("dense", "chunked", "native")]
REGISTERED = [pytest.param(p.values[0], id=p.id) for p in EXAMPLES]
LISTS = [p for p in EXAMPLES if p.values[0].threshold_list]
# One example a loss, for what need not be seen with all parameters.
FIRST = list({p.values[0].name: p for p in reversed(EXAMPLES)}.values())
# Those whose rows are sorted because they ask for it.
SORTED = [p for p in EXAMPLES if getattr(p.values[0], "sort", None)]


def on_gpu(case, dtype):
    moved = {
        f.name: None if (x := getattr(case, f.name)) is None else x.cuda()
        for f in dataclasses.fields(case)
    }
    return type(case)(**moved).to(dtype)


def given_on_gpu(description, case):
    """The inputs of a call, drawn on the CPU so that they are the same ones."""
    given = inputs(description, case)

    def move(x):
        if isinstance(x, list):
            return [move(t) for t in x]
        return x.cuda() if isinstance(x, torch.Tensor) else x

    return dataclasses.replace(
        given, **{f.name: move(getattr(given, f.name)) for f in dataclasses.fields(given)}
    )


def cpu(tensors):
    return [t.cpu() for t in tensors]


def batch(n, d, dtype, per_class=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator).to("cuda", dtype)
    y = (torch.arange(n) // per_class)[torch.randperm(n, generator=generator)].cuda()
    return x, y


@pytest.mark.parametrize("name", [n for n in CASES if n != "long"])
@pytest.mark.parametrize("backend", ON_GPU)
@pytest.mark.parametrize("description", REGISTERED)
def test_float64_is_the_dense_form(description, backend, name):
    case = CASES[name]()
    true = call(description, case, "dense")
    found = cpu(call(description, given_on_gpu(description, case), backend))
    for f, t, scale in zip(found, true, scales(description, case), strict=True):
        assert distance(f, t, scale) <= 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["ragged", "wide", "reference", "zeros"])
@pytest.mark.parametrize("description", REGISTERED)
def test_narrow_types_err_at_most_twice_as_torch(description, name, dtype):
    narrow = CASES[name]().to(dtype)
    wide = narrow.to(torch.float64)
    true = call(description, wide, "dense")
    on = given_on_gpu(description, narrow)
    with shaken():  # sharp losses are badly conditioned
        moved = call(description, wide, "dense")
    plain, found = cpu(call(description, on, "dense")), cpu(call(description, on, "native"))
    # bfloat16 weights: one rounding of every weight, and one of the result.
    floor = 16 * torch.finfo(torch.float32).eps + 2 * torch.finfo(dtype).eps
    for f, p, m, t, scale in zip(found, plain, moved, true, scales(description, wide), strict=True):
        assert (
            distance(f, t, scale) <= 2 * max(distance(p, t, scale), distance(m, t, scale)) + floor
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [301, 4099, 16389])
@pytest.mark.parametrize("description", list(dict.fromkeys([*FIRST, *SORTED])))
def test_bits_repeat(description, columns, dtype):
    """Rows of one warp and of eight: threads of several warps are in no order."""
    case = CASES["long"]() if columns == 301 else long_rows(columns, 40 if columns < 10000 else 12)
    on = given_on_gpu(description, case.to(dtype))
    first = call(description, on, "native")
    for _ in range(100 if columns == 301 else 30):
        again = call(description, on, "native")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("columns", [4099, 16389])
@pytest.mark.parametrize("description", FIRST)
def test_rows_of_several_warps(description, columns):
    """... hold what the CPU finds; every loss."""
    case = long_rows(columns, 40 if columns < 10000 else 12)
    true = call(description, case, "native")
    found = cpu(call(description, given_on_gpu(description, case), "native"))
    for f, t in zip(found, true, strict=True):
        assert distance(f, t) <= 1e-9


@pytest.mark.parametrize("columns", [1, 3, 31, 32, 33, 1023, 1024, 1025, 4096, 4099, 16385, 33000])
@pytest.mark.parametrize("name", ["multi_similarity", "smooth_ap"])
def test_every_block_size(name, columns):
    """Rows of every length class, whole vectors or not, against the CPU."""
    description = next(p.values[0] for p in EXAMPLES if p.values[0].name == name)
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(40, 16, generator=generator, dtype=torch.float64)
    ref = torch.randn(columns, 16, generator=generator, dtype=torch.float64)
    y, ref_y = (torch.randint(0, 9 + n // 64, (n,), generator=generator) for n in (40, columns))
    case = type(CASES["ragged"]())(x, y, ref, ref_y)
    true = call(description, case, "native")
    found = cpu(call(description, given_on_gpu(description, case), "native"))
    for f, t in zip(found, true, strict=True):
        assert distance(f, t) <= 1e-9


@pytest.mark.parametrize("per_class", [200, 256, 257, 300, 2000])
@pytest.mark.parametrize("description", [p for p in LISTS if p in FIRST])
def test_long_lists(description, per_class):
    """Classes that fit shared memory, just do, just do not, and by far do not."""
    generator = torch.Generator().manual_seed(per_class)
    n = per_class + 60
    y = torch.cat([torch.zeros(per_class), torch.arange(60) // 3 + 1]).long()
    x = torch.randn(n, 8, generator=generator, dtype=torch.float64)
    case = type(CASES["ragged"]())(x, y)
    true = call(description, case, "native")
    found = cpu(call(description, given_on_gpu(description, case), "native"))
    for f, t in zip(found, true, strict=True):
        assert distance(f, t) <= 1e-9


@pytest.mark.parametrize("per_class", [3, 64, 300, 1100])
@pytest.mark.parametrize("columns", [1000, 5001])
@pytest.mark.parametrize("description", SORTED)
def test_sorted_rows_are_as_others(description, columns, per_class):
    """Both forms and the choice between them, against float64 on the CPU, where rows are not sorted."""
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(24, 16, generator=generator, dtype=torch.float64)
    ref = torch.randn(columns, 16, generator=generator, dtype=torch.float64)
    classes = torch.arange(columns) // per_class
    case = type(CASES["ragged"]())(x, classes[:24], ref, classes)
    plain = dataclasses.replace(description, sort=False)
    true = call(plain, case, "native")
    for one in (description, plain, dataclasses.replace(description, sort=None)):
        found = cpu(call(one, given_on_gpu(one, case), "native"))
        narrow = cpu(call(one, given_on_gpu(one, case.to(torch.float32)), "native"))
        for f, s, t in zip(found, narrow, true, strict=True):
            assert distance(f, t) <= 1e-9
            assert distance(s, t) <= 1e-3  # sharp losses are badly conditioned


@pytest.mark.parametrize("description", list(dict.fromkeys([*FIRST, *SORTED])))
def test_nothing_waits_for_the_device(description):
    on = given_on_gpu(description, CASES["ragged"]().to(torch.float32))
    call(description, on, "native")  # loads modules, makes handles
    leaves = on.leaves()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = on.loss(description, "native", **leaves)
        torch.autograd.grad(value, list(leaves.values()))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def refused(name, backend):
    """Whether an executor does not have this loss here."""
    x, y = batch(64, 64, torch.bfloat16)
    try:
        getattr(F, name)(x, y, backend=backend)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name, options",
    [
        ("multi_similarity", {"backend": "native"}),
        ("multi_similarity", {"backend": "triton"}),
        ("smooth_ap", {"backend": "native"}),
        ("smooth_ap", {"backend": "native", "sort": True}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values())),
)
def test_cuda_graph(name, options, dtype):
    """A captured step computes the loss of whatever the inputs hold at replay, labels included."""
    if refused(name, options["backend"]):
        pytest.skip(f"{options['backend']} is not there")

    def loss(a, c):
        return getattr(F, name)(a, c, **options)

    x, y = batch(512, 64, dtype)
    # A class of 400 at replay: its rows are sorted because their lists are long, which nobody could know.
    other, labels = torch.flip(x, [0]) * 2, (torch.arange(512, device="cuda") >= 400).long()

    def step(a, c):
        leaf = a.detach().requires_grad_()
        value = loss(leaf, c)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    expected = step(other, labels)
    held_x, held_y = x.clone(), y.clone()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(held_x, held_y)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(held_x, held_y)
    held_x.copy_(other)
    held_y.copy_(labels)
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["multi_similarity", "smooth_ap"])
def test_compiled_whole(name):
    x, y = batch(515, 64, torch.float32)

    def loss(a):
        return getattr(F, name)(a, y, backend="native")

    eager, compiled = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss(eager).backward()
    torch.compile(loss, fullgraph=True)(compiled).backward()
    torch.testing.assert_close(compiled.grad, eager.grad)


@pytest.mark.parametrize(
    "name, options",
    [("multi_similarity", {}), ("smooth_ap", {}), ("smooth_ap", {"sort": True})],
    ids=str,
)
def test_memory_is_bounded(name, options):
    """65,536 rows: 256 MiB of workspace beyond inputs, gradients and vectors. The matrix is 16 GiB."""
    x, y = batch(65536, 128, torch.bfloat16)
    x.requires_grad_()
    loss = functools.partial(getattr(F, name), **options)
    loss(x, y, backend="native").backward()  # handles and their workspaces
    x.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss(x, y, backend="native").backward()
    torch.cuda.synchronize()
    used = torch.cuda.max_memory_allocated() - before
    gradients = 65536 * 128 * (4 + 2 + 2)  # accumulated, converted, kept by autograd
    vectors = 65536 * 8 * 24
    assert torch.isfinite(x.grad).all()
    assert used <= (256 << 20) + gradients + vectors


def test_workspace_is_kept():
    """A smaller workspace changes the blocks, not the result beyond rounding."""
    x, y = batch(4096, 64, torch.float32)

    def gradient():
        a = x.clone().requires_grad_()
        F.smooth_ap(a, y, backend="native").backward()
        return a.grad

    whole = gradient()
    fastdml.set_workspace(1 << 20, "cuda")
    try:
        torch.testing.assert_close(gradient(), whole, rtol=1e-3, atol=1e-7)
    finally:
        fastdml.set_workspace(None, "cuda")


def test_another_stream():
    x, y = batch(2048, 64, torch.float32)
    true = F.multi_similarity(x, y, backend="native")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = F.multi_similarity(x, y, backend="native")
    stream.synchronize()
    assert torch.equal(found, true)


def test_remove_radial_of_every_type():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(77, 45, device="cuda").to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scale = torch.linalg.vector_norm(x, dim=1, dtype=wide).reciprocal()
        g = torch.randn(77, 45, device="cuda", dtype=wide)
        true = g.double() - (g.double() * x).sum(1, keepdim=True) * scale[:, None] ** 2 * x.double()
        torch.ops.fastdml_native.remove_radial_(g, x, scale)
        assert distance(g.cpu(), true.cpu()) <= (1e-12 if wide == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [4099, 100_000])
def test_candidates_stored_by_columns(dtype, classes):
    """A classifier's weight [D, C] comes as its transpose: small ones are copied, large ones are not."""
    description = next(p.values[0] for p in EXAMPLES if p.values[0].name == "softmax_cross_entropy")
    x, _ = batch(64, 96, dtype)
    weight = torch.randn(96, classes, device="cuda").to(dtype)
    y, columns = torch.arange(64, device="cuda") * 7, torch.arange(classes, device="cuda")
    found = []
    for d in (dtype, torch.float64):
        a, w = x.to(d).requires_grad_(), weight.to(d).requires_grad_()
        kind = torch.float64 if d == torch.float64 else torch.float32
        values = description.example_values(64, classes)
        values = {name: v.to("cuda", kind) for name, v in values.items()}
        backend = "native" if d == dtype else "dense"
        value = evaluate(Call(description, a, w.t(), y, columns, backend=backend, **values))
        found.append([value.detach(), *torch.autograd.grad(value, (a, w))])
    bound = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    for mine, true in zip(*found, strict=True):
        assert distance(mine.cpu(), true.cpu()) <= bound


def test_the_current_device_is_kept():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    x, y = batch(64, 16, torch.float32)
    true = F.multi_similarity(x, y, backend="native")
    with torch.cuda.device(0):
        found = F.multi_similarity(x.to("cuda:1"), y.to("cuda:1"), backend="native")
        assert torch.cuda.current_device() == 0
    assert torch.equal(found.cpu(), true.cpu())


def test_executors_are_what_was_asked_for():
    x, y = batch(64, 16, torch.float32)
    from fastdml.engine.relation import LabelRelation

    description = next(p.values[0] for p in EXAMPLES if p.values[0].name == "smooth_ap")
    problem = Problem(description, x, x, LabelRelation(y, y), torch.float32)
    assert EXECUTORS["native"].refuses(problem) is None
    out = EXECUTORS["native"].run(problem, Wanted(anchors=True))
    assert out.d_anchors is not None and out.d_anchors.is_cuda
