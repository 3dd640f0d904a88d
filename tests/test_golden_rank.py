"""The published rank losses' values and gradients, by every executor. See test_golden.py."""

import pytest
import torch
from conftest import BACKENDS
from test_golden import FULL, HERE, load

from fastdml import functional as F


def without_radial(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What is left of a gradient by a unit vector once the vector is normalised inside the loss."""
    return g - (g * x).sum(1, keepdim=True) * x


# case: (loss, its arguments, tolerance of the value, of the gradient). With similarity="dot" gradients
# are compared as released; with "cosine" (bins that the released code cuts off at s = 1, where ours go
# on) without their radial part. FastAP is stored in float32.
GOLDEN = {
    "sup_ap": (F.sup_ap, {"similarity": "dot"}, 1e-9, 1e-8),
    "sup_ap_inat": (F.sup_ap, {"similarity": "dot", "start": 0.0, "offset": 1.0}, 1e-9, 1e-8),
    "recall_at_k": (F.recall_at_k, {"similarity": "dot"}, 1e-9, 1e-8),
    "auc_huber": (F.auc, {"similarity": "dot"}, 1e-9, 1e-8),
    "triplet_all_sum": (
        F.triplet_margin,
        {"similarity": "dot", "margin": 0.1, "normalizer": "anchors"},
        1e-9,
        1e-8,
    ),
    "calibration": (F.calibration, {}, 1e-9, 1e-8),
    "roadmap": (F.roadmap, {"similarity": "dot"}, 1e-9, 1e-8),
    "roadmap_pair": (F.xbm_pair, {"similarity": "dot", "variant": "released"}, 1e-9, 1e-8),
    "fast_ap": (F.fast_ap, {"similarity": "dot", "reference_scale": True}, 5e-7, 1e-6),
    "soft_bin_ap": (F.soft_bin_ap, {"similarity": "cosine"}, 1e-9, 1e-8),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GOLDEN)
def test_golden(case: str, backend: str) -> None:
    loss, arguments, value_tolerance, gradient_tolerance = GOLDEN[case]
    stored = load(case)
    x = stored["x"].double().requires_grad_()
    value = loss(x, stored["y"], backend=backend, **arguments)
    assert value.item() == pytest.approx(stored["loss"].item(), rel=value_tolerance, abs=0)
    (gradient,) = torch.autograd.grad(value, x)
    true = stored["grad_x"]
    if arguments.get("similarity") == "cosine":
        true = without_radial(true, x.detach())
    assert (gradient - true).abs().max() < gradient_tolerance * true.abs().max()


@pytest.mark.skipif(not FULL.is_dir(), reason="the full set of golden values is not here")
@pytest.mark.parametrize("case", GOLDEN)
def test_copies_equal_the_full_set(case: str) -> None:
    assert (HERE / f"{case}.npz").read_bytes() == (FULL / f"{case}.npz").read_bytes()
