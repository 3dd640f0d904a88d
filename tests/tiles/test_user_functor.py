"""The documented examples run as printed, and their gradients are right."""

from __future__ import annotations

import importlib
import itertools
import re
from pathlib import Path

import pytest
import torch
from triton_mode import DEVICE

import fastdml
from fastdml.engine.autograd import evaluate
from fastdml.kernels.tile import TileLoss

DOCUMENT = Path(__file__).parents[2] / "docs" / "triton-functors.md"
IMPORTS = """import dataclasses
import triton, triton.language as tl
from torch.nn.functional import softplus
from fastdml.engine.autograd import evaluate
from fastdml.engine.call import Call
from fastdml.engine.loss import RowLoss
from fastdml.kernels.tile import Pass, TileLoss
"""
LIFTED, *SCALED = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Makes a module of source: Triton reads the source of its functions from a file."""

    def make(source):
        name = f"documented_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        return importlib.import_module(name)

    return make


def batch(n, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g)
    return x.to(DEVICE), torch.randint(0, 6, (n,), generator=g).to(DEVICE)


def close(found, plain, exact):
    """Errs at most twice as much as torch in the same type."""
    eps = 2 * torch.finfo(found.dtype).eps * exact.abs().max()
    assert torch.isfinite(found).all()
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max() + eps


def lifted_gradients(loss, x, labels, backend):
    loss.backend = backend
    a = x.clone().requires_grad_()
    value = loss(a, labels)
    value.backward()
    return value.detach(), a.grad


def test_a_function_with_its_tiles(module):
    loss = module(LIFTED).loss
    x, labels = batch(41, 20)
    exact = lifted_gradients(loss, x.double(), labels, "dense")
    for found, plain, true in zip(
        lifted_gradients(loss, x, labels, "triton"),
        lifted_gradients(loss, x, labels, "dense"),
        exact,
    ):
        close(found, plain, true)
    # Elsewhere its function in torch runs, and where tiles can they do.
    for dtype, device, taken in (("float64", DEVICE, "chunked"), ("float32", "cuda", "triton")):
        explained = fastdml.explain(
            loss, 41, D=20, device=device, dtype=getattr(torch, dtype), backend="auto"
        )
        assert explained.executor == taken
    a1, p, n = (torch.tensor(v, device=DEVICE) for v in ([0], [1], [2]))
    loss.backend = "auto"
    assert torch.isfinite(loss(x, indices_tuple=(a1, p, n)))


def test_tiles_that_read_more_are_refused():
    def nothing(s, positive, negative):
        return s.sum(1)

    one = TileLoss("inputs", (), None, None, 0, inputs=1)
    for tile, parameters, expected in (
        (one, (), "tile: expected a function of the row alone"),
        (nothing, (), "tile: expected a .*TileLoss"),
        (None, (1.0,), "tile_parameters: expected none"),
        (
            TileLoss("plain", (), None, None, 0),
            (float("nan"),),
            "tile_parameters: expected a finite",
        ),
    ):
        with pytest.raises(ValueError, match=expected):
            fastdml.row_loss(nothing, tile=tile, tile_parameters=parameters)


def test_a_name_of_a_tile_means_nothing():
    def siglip(s, positive, negative):
        return (s * positive).sum(1)

    x, labels = batch(12, 8)
    with pytest.raises(ValueError, match="no tile functor"):
        fastdml.row_loss(siglip, backend="triton")(x, labels)


@pytest.mark.parametrize("one_set", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_values_of_rows_and_columns_have_gradients(module, one_set, reduction, monkeypatch):
    """Scale and bias of every row and of every column, all learnable, against float64 autograd."""
    made = module(IMPORTS + "".join(SCALED))
    monkeypatch.setattr(
        made, "evaluate", lambda call: evaluate(call.replace(reduction=reduction))
    )
    x, labels = batch(45, 20)
    y, y_labels = (x, labels) if one_set else batch(38, 20, 1)
    g = torch.Generator().manual_seed(2)
    rows = torch.randn(45, 2, generator=g).to(DEVICE) * 3
    columns = torch.randn(2, len(y), generator=g).to(DEVICE) * 2
    rows[0], columns[:, 0] = 0.0, 0.0  # a scale of 0 has a gradient as well
    upstream = torch.linspace(-1, 2, 45).to(DEVICE)

    def run(backend, dtype):
        leaves = [v.to(dtype).clone().requires_grad_() for v in (x, y, rows, columns)]
        if one_set:
            leaves[1] = leaves[0]
        a, c, r, k = leaves
        value = made.scaled(a, labels, None if one_set else c, y_labels, r, k, backend)
        (value * (upstream.to(dtype) if reduction == "none" else 1)).sum().backward()
        return [value.detach(), *(v.grad for v in leaves)]

    for found, plain, exact in zip(
        run("triton", torch.float32), run("dense", torch.float32), run("dense", torch.float64)
    ):
        close(found, plain, exact)
        assert exact.abs().max() > 0
