"""Tile losses against their formulas in float64: in the interpreter here, on the device elsewhere."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from tile_reference import CASES
from triton_mode import DEVICE

from fastdml.engine.executors.triton import functor_of
from fastdml.kernels import launch
from fastdml.kernels.rows import tile_rows

# M, N, D: ragged against every tile size, the second beyond a block of D.
SIZES = [(37, 53, 24), (70, 45, 72)]
# The interpreter is slow, and its bfloat16 products are wrong: one size in float32 there. test_half.py has
# every loss in float16, test_public_losses.py smaller dimensions.
TRIED = [(SIZES[1], torch.float32)]
if DEVICE == "cuda":
    TRIED = [(s, t) for s in SIZES for t in (torch.float32, torch.float16, torch.bfloat16)]
# Many blocks of D in both products, the last one ragged.
LONG = (35, 41, 700)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Buffers start as NaN, so that an element nobody wrote is seen."""
    empty = torch.empty

    def full_of_nan(*args, **kwargs):
        x = empty(*args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(launch.torch, "empty", full_of_nan)


def problem(case, m: int, n: int, d: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    spread = 0.2 + 3 * torch.rand(max(m, n), 1, generator=g)
    if case.rows == "samples":
        x = torch.randn(m, d, generator=g) * spread[:m]
        labels = torch.randint(-3, 9, (m,), generator=g) * 10**12
        labels[-1] = 77  # a row without positives
        x[m // 2] = x[m // 2 - 1]  # duplicates
        labels[m // 2] = labels[m // 2 - 1]
        return x, x, labels, labels
    y = torch.randn(n, d, generator=g) * spread[:n]
    x = torch.randn(m, d, generator=g) * spread[:m]
    if case.rows == "proxies":
        return x, y, torch.arange(m), torch.randint(0, max(2, m // 2), (n,), generator=g)
    if case.rows == "classes":
        return x, y, torch.randint(0, n, (m,), generator=g), torch.arange(n)
    return x, y, torch.arange(m), torch.arange(n)


def numbers(a, c, metric, epsilon=0.0):
    """The matrix that a loss reads, by the definition of each metric."""
    if metric in ("cosine", "distance", "squared_distance"):
        a, c = (x / x.norm(dim=1, keepdim=True) for x in (a, c))
    if metric in ("cosine", "dot"):
        return a @ c.t()
    total = a.square().sum(1)[:, None] + c.square().sum(1)
    d2 = total - 2 * a @ c.t()
    d2 = torch.where(d2 < 1e-6 * total, torch.zeros_like(d2), d2) + epsilon
    if metric.endswith("squared_distance"):
        return d2
    return torch.where(d2 > 0, torch.where(d2 > 0, d2, 1.0).sqrt(), torch.zeros_like(d2))


def dense(case, x, y, la, lc, teacher, weight, dtype):
    """Outputs, scalars' and embeddings' gradients of the dense form, as plain torch in `dtype`."""
    a = x.detach().to(dtype).requires_grad_()
    c = a if y is x else y.detach().to(dtype).requires_grad_()
    s = numbers(a, c, case.loss.similarity)
    kind = case.loss.teacher_similarity
    t = None if teacher is None else numbers(*(u.to(dtype) for u in teacher), kind or case.loss.similarity)
    if dtype != torch.float64:
        s, t = s.float(), None if t is None else t.float()
    positive = la[:, None] == lc[None]
    pair = torch.ones_like(positive)
    if y is x and case.loss.self_pair == "exclude":
        pair.fill_diagonal_(False)
    scalars = torch.tensor(case.extra, dtype=s.dtype, device=s.device, requires_grad=True)
    fields = {f.name: getattr(case.loss, f.name) for f in dataclasses.fields(case.loss)}
    losses = case.spec(s, positive, pair, t, SimpleNamespace(**fields, scalars=scalars))
    inputs = [a] if y is x else [a, c]
    gradients = torch.autograd.grad((losses * weight).sum(), [*inputs, scalars], allow_unused=True)
    return losses.detach(), gradients[-1], gradients[:-1]


def finished(gradient, x, metric, sums):
    """What the engine does with accumulated products."""
    x = x.to(gradient.dtype)
    if metric.startswith("raw"):
        gradient = gradient - sums[0][:, None] * x
    elif metric != "dot":
        along = (gradient * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True)
        gradient = gradient - along * x
    return gradient


def close(found, truth, plain, dtype, what, exponent=0.0, unit=None):
    """Error at most twice that of torch in the same type, and two units in the last place."""
    scale = truth.abs().max().item()
    error = (found.double() - truth).abs().max().item()
    allowed = 2 * (plain.double() - truth).abs().max().item() + 2 * torch.finfo(dtype).eps * scale
    allowed += exponent * torch.finfo(torch.float32).eps / 2 * (unit or scale)
    assert torch.isfinite(found).all(), what
    assert error <= allowed, f"{what}: error {error:.3e}, allowed {allowed:.3e} at {scale:.3e}"


def move(x, dtype=None):
    return x.to(dtype or x.dtype).to(DEVICE)


def run(name, size, dtype, **options):
    """Kernels, float64 and torch in the same type: each (outputs, scalars' gradient, gradients)."""
    case = CASES[name]
    m, n, d = size
    loss, functor = case.loss, functor_of(case.loss)
    if case.rows == "pairs":
        n = m
    centres, metric = loss.columns_per_class, loss.similarity
    x, y, la, lc = problem(case, m, n * centres, d)
    lc = lc[:n]
    g = torch.Generator().manual_seed(1)
    if y is x:
        x = y = move(x, dtype)
    else:
        x, y = move(x, dtype), move(y, dtype)
    la, lc = move(la), (move(la) if y is x else move(lc))
    if case.rows == "classes":
        la = la % n
    teacher = None
    if loss.teacher_similarity is not None:
        u = move(torch.randn(x.shape[0], 20, generator=g), dtype)
        teacher = (u, u)
    tile = functor.tile(loss)
    shape = (x.shape[0], tile.outputs) if tile.outputs > 1 else (x.shape[0],)
    weight = move(torch.rand(shape, generator=g) * 1e-3)
    apart = y is x and loss.self_pair == "exclude"
    own = (float(apart),) if getattr(functor, "COUNTS_OWN", False) else ()
    found = tile_rows(
        tile,
        x,
        y,
        la,
        lc,
        parameters=(*functor.parameters(loss), *own, *case.extra),
        pair=launch.Numbers(metric, 0.0, loss.teacher_similarity or "dot"),
        exclude_self=apart,
        row_weight=weight,
        teacher=teacher,
        centres=centres,
        **options,
    )
    scalars = (found.scalar_rows * weight[:, None]).sum(0) if tile.scalars else None
    products = [(found.d_anchors, x, found.anchor_sums)]
    if y is not x:
        products.append((found.d_candidates, y, found.candidate_sums))
    gradients = [finished(p, z, metric, sums) for p, z, sums in products]
    outputs = found.outputs if tile.outputs > 1 else found.outputs[:, 0]
    truth = dense(case, x, y, la, lc, teacher, weight.double(), torch.float64)
    plain = dense(case, x, y, la, lc, teacher, weight, dtype)
    return (outputs, scalars, gradients), truth, plain


def compare(found, truth, plain, dtype, exponent=0.0):
    close(found[0], truth[0], plain[0], dtype, "outputs", exponent, 1.0)
    if found[1] is not None:
        close(found[1], truth[1], plain[1], dtype, "scalars")
    assert len(found[2]) == len(truth[2])
    for mine, exact, theirs in zip(found[2], truth[2], plain[2]):
        close(mine, exact, theirs, dtype, "gradient", exponent)


@pytest.mark.parametrize(("size", "dtype"), TRIED, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_matches_float64(name, size, dtype):
    compare(*run(name, size, dtype), dtype, CASES[name].exponent)


@pytest.mark.parametrize("name", ["multi_similarity_mined", "contrastive_cosine", "proxy_anchor"])
def test_order_of_labels_does_not_show(name):
    """Without the reordered copy every tile is treated as one that may hold positives."""
    compare(*run(name, SIZES[0], torch.float32, order=False), torch.float32)


@pytest.mark.parametrize("name", ["multi_similarity_mined", "contrastive_raw_distance"])
def test_any_dimension(name):
    compare(*run(name, LONG, torch.float32), torch.float32, CASES[name].exponent)
