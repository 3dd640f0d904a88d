"""Every tile loss against its float64 dense form: in the interpreter here, on the device elsewhere."""

from __future__ import annotations

import importlib

import pytest
import torch
from reference import CASES, Case

from fastdml.kernels import launch
from fastdml.kernels.rows import tile_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# In the interpreter float32 and float16 only: its bfloat16 products are wrong.
TYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])
# M, N, D: ragged against every tile size, one beyond a block of D.
SIZES = [(37, 53, 24), (16, 16, 16), (70, 45, 72)]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Buffers start as NaN, so that an element nobody wrote is seen."""
    empty = torch.empty

    def full_of_nan(*args, **kwargs):
        x = empty(*args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(launch.torch, "empty", full_of_nan)


def problem(case: Case, m: int, n: int, d: int, seed: int = 0):
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


def unit(x):
    return x / x.norm(dim=1, keepdim=True)


def similarities(case: Case, tile, a, c):
    if tile.metric == "distance":
        return (a[:, None] - c[None]).square().sum(2)
    return unit(a) @ unit(c).t()


def dense(case: Case, tile, x, y, la, lc, weight, col_weight, dtype):
    """Losses and gradients of the dense form in `dtype`, as plain torch would compute them."""
    a = x.detach().to(dtype).requires_grad_()
    c = a if y is x else y.detach().to(dtype).requires_grad_()
    s = similarities(case, tile, a, c)
    if dtype != torch.float64:
        s = s.float()
    positive = la[:, None] == lc[None]
    pair = torch.ones_like(positive)
    if y is x:
        pair.fill_diagonal_(False)
    losses = case.spec(s, positive, pair, None, case.loss)
    total = (losses * weight).sum()
    if case.rows == "towers":
        total = (
            total + (case.spec(s.t(), positive.t(), pair.t(), None, case.loss) * col_weight).sum()
        )
    inputs = [a] if y is x else [a, c]
    return losses.detach(), torch.autograd.grad(total, inputs)


def without_radial(gradient, x):
    x = x.to(gradient.dtype)
    return gradient - (gradient * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x


def inverse_norm(x):
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).reciprocal()


def close(found, truth, plain, dtype, what):
    """Error at most twice that of torch in the same type, and two units in the last place."""
    scale = truth.abs().max().item()
    error = (found.double() - truth).abs().max().item()
    allowed = 2 * (plain.double() - truth).abs().max().item() + 2 * torch.finfo(dtype).eps * scale
    assert torch.isfinite(found).all(), what
    assert error <= allowed, f"{what}: error {error:.3e}, allowed {allowed:.3e} at {scale:.3e}"


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_matches_float64(name, size, dtype):
    case = CASES[name]
    m, n, d = size
    if case.rows == "towers":
        n = m
    x, y, la, lc = problem(case, m, n, d)
    if y is x:
        x = y = x.to(dtype).to(DEVICE)
    else:
        x, y = x.to(dtype).to(DEVICE), y.to(dtype).to(DEVICE)
    la, lc = la.to(DEVICE), lc.to(DEVICE)
    g = torch.Generator().manual_seed(1)
    weight = (torch.rand(x.shape[0], generator=g) * 1e-3).to(DEVICE)
    col_weight = (torch.rand(y.shape[0], generator=g) * 1e-3).to(DEVICE)
    module = importlib.import_module(f"fastdml.kernels.tiles.{case.tile}")
    tile = module.tile(case.loss)
    cosine = tile.metric == "similarity"
    found = tile_rows(
        tile,
        x,
        y,
        la,
        lc,
        parameters=(*module.parameters(case.loss), *case.extra),
        row_scale=inverse_norm(x) if cosine else None,
        col_scale=inverse_norm(y) if cosine else None,
        exclude_self=y is x,
        row_weight=weight,
        columns=case.rows == "towers",
        column_weight=col_weight if case.rows == "towers" else None,
    )
    truth, gradients = dense(case, tile, x, y, la, lc, weight.double(), col_weight.double(),
                             torch.float64)  # fmt: skip
    plain, plain_gradients = dense(case, tile, x, y, la, lc, weight, col_weight, dtype)
    close(found.losses, truth, plain, torch.float32 if dtype == torch.float32 else dtype, "losses")
    ours = [found.d_anchors] if y is x else [found.d_anchors, found.d_candidates]
    for mine, exact, theirs, z in zip(ours, gradients, plain_gradients, (x, y)):
        mine = without_radial(mine, z) if cosine else mine
        close(mine, exact, theirs, dtype, "gradient")
