"""Losses over proxies against values of the published implementations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdml import functional as F
from fastdml.engine import library

HERE = Path(__file__).parent / "golden"
BACKENDS = ["dense", "chunked"] + (["native"] if library.load() is not None else [])

# case -> (inputs that want a gradient, call)
CASES: dict[str, tuple[tuple[str, ...], Callable[..., Tensor]]] = {
    "proxy_anchor": (("x", "proxies"), F.proxy_anchor),
    "proxy_anchor_a16": (
        ("x", "proxies"),
        lambda x, y, p, **o: F.proxy_anchor(x, y, p, alpha=16.0, margin=0.05, **o),
    ),
    "proxy_nca_smooth": (
        ("x", "proxies"),
        lambda x, y, p, **o: F.proxy_nca(x, y, p, softmax_scale=9.0, smoothing=0.1, **o),
    ),
    "proxy_nca_classic": (
        ("x", "proxies"),
        lambda x, y, p, **o: F.proxy_nca(
            x, y, p, softmax_scale=9.0, positive_in_denominator=False, **o
        ),
    ),
    "proxy_nca_pp": (("x", "proxies"), F.proxy_nca_plus_plus),
    "smoothed_ce": (("x", "weight"), F.smoothed_cross_entropy),
    # The release takes embeddings as they are (normalised by the network): no radial part is removed.
    "soft_triple": (
        ("x", "centers"),
        lambda x, y, w, **o: F.soft_triple(
            x, y, w.t(), centers_per_class=3, tau=0.2, similarity="projection", **o
        ),
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case: str, backend: str) -> None:
    found = np.load(HERE / f"{case}.npz")
    names, call = CASES[case]
    x, w = (torch.from_numpy(found[name]).requires_grad_() for name in names)
    loss = call(x, torch.from_numpy(found["y"]), w, backend=backend)
    assert loss.item() == pytest.approx(float(found["loss"]), rel=1e-9)
    for name, gradient in zip(names, torch.autograd.grad(loss, (x, w))):
        true = torch.from_numpy(found[f"grad_{name}"])
        assert (gradient - true).abs().max() <= 1e-8 * true.abs().max(), name
