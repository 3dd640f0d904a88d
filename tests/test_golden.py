"""The published implementations' values and gradients, by every executor.

A case is one line of GOLDEN: how the loss is built and which stored inputs it is called with.
Files are read from tests/golden; where the full set lies beside the repository, copies must equal it.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import BACKENDS, ROOT

from fastdml import functional as F

HERE = ROOT / "tests" / "golden"
FULL = ROOT.parent / "shared" / "golden"

# case: (call on the stored inputs and a backend, relative tolerance of the value, of the gradient).
# similarity="dot": the released code multiplies the rows it is given, and the gradient is theirs.
# The released Smooth-AP accumulates its value (not its gradient) in float32: a few units of 1.2e-7.
Golden = tuple[Callable[..., torch.Tensor], float, float]
GOLDEN: dict[str, Golden] = {
    "multi_similarity": (
        lambda x, y, **o: F.multi_similarity(
            x, y, alpha=2, beta=40, base=0.5, epsilon=0.1, variant="released", similarity="dot", **o
        ),
        1e-9,
        1e-8,
    ),
    "multi_similarity_b": (
        lambda x, y, **o: F.multi_similarity(
            x, y, alpha=5, beta=20, base=0.3, epsilon=0.3, variant="released", similarity="dot", **o
        ),
        1e-9,
        1e-8,
    ),
    "proxy_anchor": (
        lambda x, y, proxies, **o: F.proxy_anchor(x, y, proxies, alpha=32, margin=0.1, **o),
        1e-9,
        1e-8,
    ),
    "proxy_anchor_a16": (
        lambda x, y, proxies, **o: F.proxy_anchor(x, y, proxies, alpha=16, margin=0.05, **o),
        1e-9,
        1e-8,
    ),
    "smooth_ap": (
        lambda x, y, **o: F.smooth_ap(x, y, temperature=0.01, similarity="dot", **o), 5e-7, 1e-8,
    ),
    "smooth_ap_t05": (
        lambda x, y, **o: F.smooth_ap(x, y, temperature=0.05, similarity="dot", **o), 5e-7, 1e-8,
    ),
}


def load(case: str) -> dict[str, torch.Tensor]:
    with np.load(HERE / f"{case}.npz") as stored:
        return {name: torch.from_numpy(np.array(stored[name])) for name in stored}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GOLDEN)
def test_golden(case: str, backend: str) -> None:
    loss, value_tolerance, gradient_tolerance = GOLDEN[case]
    stored = load(case)
    inputs = {k: v for k, v in stored.items() if k != "loss" and not k.startswith("grad_")}
    wanted = [k.removeprefix("grad_") for k in stored if k.startswith("grad_")]
    for name in wanted:
        inputs[name].requires_grad_()
    value = loss(**inputs, backend=backend)
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(stored["loss"].item(), rel=value_tolerance, abs=0)
    gradients = torch.autograd.grad(value, [inputs[name] for name in wanted])
    assert wanted
    for name, gradient in zip(wanted, gradients):
        true = stored[f"grad_{name}"]
        error = ((gradient - true).abs().max() / true.abs().max()).item()
        assert error < gradient_tolerance, f"gradient of {name}"


def smooth_ap(x: torch.Tensor, y: torch.Tensor, temperature: float) -> float:
    """The loss number by number, in float64. A query is one of its own positives."""
    s = (x @ x.t()).tolist()
    label, n = y.tolist(), len(s)

    def above(q: int, j: int, k: int) -> float:
        return 1 / (1 + math.exp(max(-50.0, min(50.0, (s[q][k] - s[q][j]) / temperature))))

    total = 0.0
    for q in range(n):
        own = [j for j in range(n) if label[j] == label[q]]
        for k in own:
            place = 1 + sum(above(q, j, k) for j in own if j != k)
            rank = 1 + sum(above(q, j, k) for j in range(n) if j != k)
            total += place / rank / len(own)
    return 1 - total / n


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case, temperature", [("smooth_ap", 0.01), ("smooth_ap_t05", 0.05)])
def test_smooth_ap_against_a_loop(case: str, temperature: float, backend: str) -> None:
    """The stored values are sums of the release in float32 (2.4e-7 away from this loop)."""
    stored = load(case)
    found = F.smooth_ap(
        stored["x"], stored["y"], temperature=temperature, similarity="dot", backend=backend
    )
    true = smooth_ap(stored["x"], stored["y"], temperature)
    assert found.item() == pytest.approx(true, rel=1e-12, abs=0)
    assert 0 < abs(stored["loss"].item() - true) < 5e-7 * true


@pytest.mark.skipif(not FULL.is_dir(), reason="the full set of golden values is not here")
@pytest.mark.parametrize("case", GOLDEN)
def test_copies_equal_the_full_set(case: str) -> None:
    assert (HERE / f"{case}.npz").read_bytes() == (FULL / f"{case}.npz").read_bytes()
