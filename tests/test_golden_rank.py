"""The published rank losses' values and gradients, by every executor. See test_golden.py."""

import pytest
import torch
from conftest import BACKENDS
from test_golden import FULL, HERE, load

from fastdml import functional as F
from fastdml.engine.similarity import SIMILARITIES
from fastdml.losses import SOPRCLoss
from fastdml.mining.choice import distance_log_weight


def without_radial(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What is left of a gradient by a unit vector once the vector is normalised inside the loss."""
    return g - (g * x).sum(1, keepdim=True) * x


# case: (loss, its arguments, tolerance of the value, of the gradient). With similarity="dot" gradients
# are compared as released; with "cosine" (what is stored along an embedding is no gradient, see below)
# without their radial part. FastAP is stored in float32.
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
    "soprc_semi_variance": (F.semi_variance, {"similarity": "dot"}, 1e-9, 1e-8),
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


def soft_bin_ap(x: torch.Tensor, y: torch.Tensor) -> float:
    """SPEC 3.5 on products, with saturated ends: beyond similarity 1 all is in the first bin."""
    s = (x @ x.t()).clamp(-1, 1)
    centre = 1 - torch.arange(20, dtype=x.dtype) / 9.5
    member = (1 - (s[:, :, None] - centre).abs() * 9.5).relu()
    own = (member * (y[:, None] == y)[:, :, None]).sum(1)
    precision = own.cumsum(1) / (member.sum(1).cumsum(1) + 1e-16)
    return float(1 - ((precision * own).sum(1) / own.sum(1)).mean())


def test_soft_bin_ap_as_stored_is_no_gradient() -> None:
    """What is stored departs, along the embedding alone, in the rows whose product with themselves rounds
    to exactly 1: two lines of the release's first bin cross there, and automatic differentiation halves
    the slope of the one that rises, not of the falling one in the next bin. On either side of 1 both
    cancel or are flat: the loss has the derivative ours has from the left and from the right.
    """
    stored = load("soft_bin_ap")
    x, y = stored["x"].double().requires_grad_(), stored["y"]
    value = F.soft_bin_ap(x, y, similarity="dot")
    assert value.item() == pytest.approx(stored["loss"].item(), rel=1e-9)
    (ours,) = torch.autograd.grad(value, x)
    x = x.detach()
    apart = stored["grad_x"] - ours
    along = (apart * x).sum(1)
    assert (apart - along[:, None] * x).abs().max() < 1e-12
    some = (along.abs() > 1e-6).nonzero()[:, 0].tolist()
    assert some and max(along.abs()) > 0.05
    step = 1e-6
    for i in some:
        for side in (-1, 1):
            moved = x.clone()
            moved[i] *= 1 + side * step
            found = (soft_bin_ap(moved, y) - soft_bin_ap(x, y)) / (side * step)
            assert found == pytest.approx((ours[i] @ x[i]).item(), abs=1e-5)
            assert abs(found - (stored["grad_x"][i] @ x[i]).item()) > 0.9 * abs(along[i])


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_soft_bin_ap_as_released(backend: str) -> None:
    """The whole stored gradient, in the rows whose product with themselves rounds to 1 here too, or
    neither there nor here: how it rounds is the matrix library's affair."""
    stored = load("soft_bin_ap")
    x, y, true = stored["x"].double().requires_grad_(), stored["y"], stored["grad_x"]

    def gradient(variant: str) -> torch.Tensor:
        value = F.soft_bin_ap(x, y, similarity="dot", variant=variant, backend=backend)
        assert value.item() == pytest.approx(stored["loss"].item(), rel=1e-9)
        return torch.autograd.grad(value, x)[0]

    plain, ours = gradient("paper"), gradient("released")
    there = ((true - plain) * x.detach()).sum(1).abs() > 1e-9
    here = ((ours - plain) * x.detach()).sum(1).abs() > 1e-9
    same = there == here
    assert (ours - true)[same].abs().max() < 1e-8 * true.abs().max()
    if not (there & here).any():
        pytest.skip("no product of a row with itself rounds to 1 as where the values were made")


@pytest.mark.parametrize("backend", BACKENDS)
def test_soprc(backend: str) -> None:
    """The table moves before it is read; the last query of a class in the batch moves it.

    The golden value starts from a table and a prior of float32.
    """
    stored = load("soprc")
    x = stored["x"].double().requires_grad_()
    loss = SOPRCLoss(6, similarity="dot", backend=backend).double()
    loss.table, loss.prior = loss.table.float().double(), loss.prior.float().double()
    value = loss(x, stored["y"])
    assert value.item() == pytest.approx(stored["loss"].item(), rel=1e-9, abs=0)
    (gradient,) = torch.autograd.grad(value, x)
    assert (gradient - stored["grad_x"]).abs().max() < 1e-8 * stored["grad_x"].abs().max()


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "native"])
def test_margin(backend: str) -> None:
    """Triplets of one positive and one negative per anchor; the port counts triplets, and holds beta in
    float32."""
    stored = load("margin")
    x, beta = (stored[k].double().requires_grad_() for k in ("x", "beta"))
    beta.data = beta.data.float().double()
    triplets = stored["triplets"].unbind(1)
    value = F.margin(
        x, stored["y"], triplets, beta=beta, normalizer="triplets", epsilon=1e-8,
        similarity="raw_distance", backend=backend,
    )  # fmt: skip
    assert value.item() == pytest.approx(stored["loss"].item(), rel=1e-9, abs=0)
    for g, name in zip(torch.autograd.grad(value, (x, beta)), ("grad_x", "grad_beta")):
        assert (g - stored[name]).abs().max() < 1e-8 * stored[name].abs().max()


def test_distance_weights() -> None:
    """Probabilities of a draw, as the original normalises them."""
    stored = load("distance_weights")
    x, y = stored["x"].double(), stored["y"]
    d = SIMILARITIES["distance"].dense(x, x, 0.0)
    eligible = (y[:, None] != y) & (d < 1.4)
    weight = distance_log_weight(d, x.shape[1], 0.5).masked_fill(~eligible, -torch.inf)
    found = weight.softmax(1)
    assert (found.isnan().any(1) == stored["weights"].isnan().any(1)).all()
    torch.testing.assert_close(found, stored["weights"], rtol=1e-9, atol=1e-15, equal_nan=True)


@pytest.mark.skipif(not FULL.is_dir(), reason="the full set of golden values is not here")
@pytest.mark.parametrize("case", [*GOLDEN, "soprc", "margin", "distance_weights"])
def test_copies_equal_the_full_set(case: str) -> None:
    assert (HERE / f"{case}.npz").read_bytes() == (FULL / f"{case}.npz").read_bytes()
