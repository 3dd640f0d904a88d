"""Sorted rows give what lists of thresholds give, and are chosen where they cost less."""

import pytest
import torch
from conftest import needs_compiled

from fastdml import functional as F

LOSSES = {
    "smooth_ap": {},
    "sup_ap": {},
    "recall_at_k": {"exclude_self": True},
    "pnp": {"variant": "Ds"},
    "auc": {"kind": "logistic", "temperature": 0.02},
    "triplet_margin": {},
}


def problem(sizes, spread, dtype, dim=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    y = y[torch.randperm(len(y), generator=g)]
    centres = torch.randn(len(sizes), dim, generator=g, dtype=torch.float64)
    x = centres[y] + spread * torch.randn(len(y), dim, generator=g, dtype=torch.float64)
    return x.to(dtype), y


def run(name, x, y, **options):
    x = x.clone().requires_grad_()
    value = getattr(F, name)(x, y, backend="native", **LOSSES[name], **options)
    return value.detach(), *torch.autograd.grad(value, x)


# A rank of N candidates is cut off by at most N times 1e-13 (float), 3e-20 (double): with 500 that is
# far below the rounding of the type.
@needs_compiled
@pytest.mark.parametrize("spread", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("name", LOSSES)
def test_the_form_of_a_row_does_not_matter(name, dtype, bound, spread):
    x, y = problem([150, 3, 220, 97, 1, 29], spread, dtype)
    with_list = run(name, x, y, sort=False)
    for sort in (True, None):
        for a, b in zip(with_list, run(name, x, y, sort=sort)):
            assert (a - b).abs().max() <= bound * a.abs().max()


@needs_compiled
@pytest.mark.parametrize("name", LOSSES)
def test_other_candidates(name):
    x, y = problem([60, 60, 60], 1.0, torch.float64)
    ref, ref_y = problem([80, 40], 1.0, torch.float64, seed=1)
    found = [run(name, x, y, ref_emb=ref, ref_labels=ref_y, sort=sort) for sort in (True, False)]
    for a, b in zip(*found):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-14)


@needs_compiled
def test_sorting_is_chosen_where_windows_are_narrow():
    """Bits tell the two forms apart: the order of a sum is another."""
    for spread, expected in ((0.4, True), (50.0, False)):
        x, y = problem([120] * 5, spread, torch.float32, dim=256)
        auto, chosen = (run("smooth_ap", x, y, sort=sort) for sort in (None, expected))
        assert all(torch.equal(a, b) for a, b in zip(auto, chosen))
        other = run("smooth_ap", x, y, sort=not expected)
        assert not torch.equal(auto[1], other[1])


def test_sort_is_a_switch():
    with pytest.raises(ValueError, match=r"^sort: expected"):
        F.smooth_ap(torch.eye(3), torch.arange(3), sort=1)
