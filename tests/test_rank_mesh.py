"""Rows of float32 whose classes are large are compared on a mesh: the same sums for less."""

import pytest
import torch
from conftest import distance, needs_compiled

from fastdml import functional as F
from fastdml import losses

SMOOTH = {
    "smooth_ap": {},
    "smooth_ap, wide": {"temperature": 1.0},
    "recall_at_k": {"exclude_self": True},
    "pnp": {"variant": "Ds"},
    "auc": {"kind": "logistic", "temperature": 0.01},
    "auc, sigmoid": {"kind": "sigmoid", "temperature": 0.02},
}


def run(name, x, y, scale=1.0, **options):
    """Value and gradient of similarities x, of a query that is a unit vector with candidates (x_j, 0)."""
    x = x.clone().requires_grad_()
    function = getattr(F, name.split(",")[0])
    query = torch.tensor([[scale, 0.0]], dtype=x.dtype)
    options = SMOOTH[name] | {"similarity": "dot", "backend": "native"} | options
    value = function(
        query, torch.tensor([0]), ref_emb=torch.stack([x, torch.zeros_like(x)], 1), ref_labels=y, **options
    )
    return value.detach(), *torch.autograd.grad(value, x)


def row(n, classes, spread, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = spread * torch.randn(n, generator=g, dtype=torch.float64) + 0.5 * spread * (y == 0)
    return x.float(), y


def error(found, true):
    return max(distance(a, b) for a, b in zip(found, true, strict=True))


@needs_compiled
@pytest.mark.parametrize("n, classes, spread", [(1500, 2, 0.1), (2100, 4, 0.4), (900, 1, 0.1)])
@pytest.mark.parametrize("name", SMOOTH)
def test_a_mesh_is_as_exact_as_pairs(name, n, classes, spread):
    """Spread wider than the windows, too: beyond them a sigmoid is 1 and a softplus a straight line."""
    x, y = row(n, classes, spread)
    true = run(name, x.double(), y, backend="dense")
    pairs, ordered, found = (run(name, x, y, sort=sort) for sort in (False, True, None))
    assert error(found, true) <= 2 * error(pairs, true) + 1e-6
    if classes > 1:  # the order of a sum tells the forms apart, and a class alone has a loss of 0
        assert not torch.equal(found[1], pairs[1]) and not torch.equal(found[1], ordered[1])
    assert all(torch.equal(a, b) for a, b in zip(found, run(name, x, y), strict=True))


@needs_compiled
@pytest.mark.parametrize("name", ["smooth_ap", "recall_at_k"])
def test_places_of_values_are_exact(name):
    """Similarities far from 0 and a few temperatures apart: what counts is where they lie to each other."""
    x, y = row(1200, 2, 0.02)
    x = x + 1  # of which float keeps 2^-23
    true = run(name, x.double(), y, backend="dense")
    assert error(run(name, x, y), true) <= 2 * error(run(name, x, y, sort=False), true) + 1e-6


@needs_compiled
def test_a_samples_own_pair_lays_no_nodes():
    """Without it all similarities are close together; with it the nodes were too many for a mesh."""
    x, y = torch.randn(700, 64, generator=torch.Generator().manual_seed(0)) + 3, torch.arange(700) % 2
    x = torch.cat([x / 100, torch.eye(700) * 20], 1)
    options = {"k": (100, 300), "recall_temperature": 50, "exclude_self": True, "similarity": "dot"}
    found = []
    for z, sort in ((x.double(), False), (x, False), (x, True), (x, None)):
        z = z.clone().requires_grad_()
        value = losses.RecallAtKLoss(sort=sort, **options)(z, y)
        found.append([value.detach(), *torch.autograd.grad(value, z)])
    true, pairs, ordered, mesh = found
    assert error(mesh, true) <= 2 * error(pairs, true) + 1e-6
    assert not torch.equal(mesh[1], pairs[1]) and not torch.equal(mesh[1], ordered[1])


@needs_compiled
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_never_laid_on_a_mesh(bad):
    x, y = row(1500, 2, 0.1)
    for at in (0, 701, 1499):
        broken = x.clone()
        broken[at] = bad
        found, pairs = run("smooth_ap", broken, y), run("smooth_ap", broken, y, sort=False)
        assert all(torch.equal(a.isnan(), b.isnan()) for a, b in zip(found, pairs, strict=True))
        torch.testing.assert_close(found[0], pairs[0], equal_nan=True)


@needs_compiled
def test_one_value_far_away_is_no_reason_to_fail():
    x, y = row(1500, 2, 0.1)
    for far in (5.0, 1e4, 1e30):
        x[3] = far
        true = run("smooth_ap", x.double(), y, backend="dense")
        assert error(run("smooth_ap", x, y), true) <= 2e-6


@needs_compiled
def test_batches_of_two_classes():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(2, (1100,), generator=g)
    x = torch.randn(2, 32, generator=g)[y] + 2 * torch.randn(1100, 32, generator=g)
    for name in ("smooth_ap", "recall_at_k", "pnp"):
        function = getattr(F, name)
        found, true = [], []
        for into, z in ((found, x), (true, x.double())):  # in double, by pairs or sorted
            z = z.clone().requires_grad_()
            value = function(z, y, backend="native")
            into += [value.detach(), *torch.autograd.grad(value, z)]
        assert error(found, true) <= 2e-5
