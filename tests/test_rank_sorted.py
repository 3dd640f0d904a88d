"""Sorted rows give what lists of thresholds give, and are chosen where they cost less."""

import pytest
import torch
from conftest import distance, needs_compiled

from fastdml import functional as F

LOSSES = {
    "smooth_ap": {},
    "sup_ap": {},
    "recall_at_k": {"exclude_self": True},
    "pnp": {"variant": "Ds"},
    "auc": {"kind": "logistic", "temperature": 0.02},
    "triplet_margin": {},
    "soprc": {"tau1": 0.02},
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


# What the cut of a sigmoid at +-L temperatures costs. A pair outside of the window is taken for a step:
# its height is off by less than e^-L, its slope by less than e^-L / temperature. A row's gradient is a
# sum of slopes with factors c_k that add up to at most 1, over at most N pairs, and a mean over N rows:
# off by less than 4 e^-L / temperature over the shortest embedding. L is 30 (float32: 4e-11 at a
# temperature of 0.01) and 45 (float64: 2e-17): below the rounding of the terms, which are of the size of
# 1 / temperature and cancel where classes are separated. `distance` measures against 1e-3 there.
@needs_compiled
@pytest.mark.parametrize(
    "dtype, bound, spread",
    [(torch.float64, 1e-12, 0.2), (torch.float64, 1e-12, 4.0), (torch.float32, 2e-5, 1.0)],
)
@pytest.mark.parametrize("name", LOSSES)
def test_the_form_of_a_row_does_not_matter(name, dtype, bound, spread):
    x, y = problem([150, 3, 220, 97, 1, 29], spread, dtype)
    with_list = run(name, x, y, sort=False)
    for sort in (True, None):
        for a, b in zip(with_list, run(name, x, y, sort=sort), strict=True):
            assert distance(b, a) <= bound


@needs_compiled
@pytest.mark.parametrize("name", LOSSES)
def test_other_candidates(name):
    x, y = problem([60, 60, 60], 1.0, torch.float64)
    ref, ref_y = problem([80, 40], 1.0, torch.float64, seed=1)
    found = [run(name, x, y, ref_emb=ref, ref_labels=ref_y, sort=sort) for sort in (True, False)]
    for a, b in zip(*found):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-14)


@needs_compiled
@pytest.mark.parametrize("dtype, cut", [(torch.float32, 30), (torch.float64, 45)])
def test_what_the_cut_costs(dtype, cut):
    """One query, its positives at 0, everything else just outside of the window or just inside of it."""
    temperature = 0.01
    for place in (-1.001, -0.999, 0.999, 1.001):
        s = torch.cat([torch.zeros(40), torch.full((200,), place * cut * temperature)]).double()
        x = torch.stack([s, torch.zeros(240, dtype=torch.float64)], 1).to(dtype)
        query, y = torch.tensor([[1.0, 0.0]], dtype=dtype), torch.tensor([0])
        labels = (torch.arange(240) >= 40).long()
        true, found = (
            F.smooth_ap(
                q, y, ref_emb=r, ref_labels=labels, similarity="dot", backend=b, sort=True,
            ).double()
            for q, r, b in ((query.double(), x.double(), "dense"), (query, x, "native"))
        )
        eps = 16 * torch.finfo(dtype).eps
        assert (true - found).abs() <= 240 * torch.exp(torch.tensor(-float(cut))) + eps


@needs_compiled
@pytest.mark.parametrize("backend", ["native"])
@pytest.mark.parametrize("name", LOSSES)
def test_nan_and_infinity_are_never_sorted_away(name, backend):
    x, y = problem([40, 30, 20], 1.0, torch.float32)
    for bad in (torch.nan, torch.inf):
        broken = x.clone()
        broken[7, 3] = bad
        value = getattr(F, name)(broken, y, backend=backend, sort=True, **LOSSES[name])
        assert value.isnan(), (name, bad)


@needs_compiled
@pytest.mark.parametrize("name", LOSSES)
def test_two_runs_agree_bit_for_bit(name):
    x, y = problem([150, 3, 220, 97, 1, 29], 1.0, torch.float32)
    first = run(name, x, y, sort=True)
    assert all(torch.equal(a, b) for a, b in zip(first, run(name, x, y, sort=True), strict=True))


@needs_compiled
def test_sorting_is_chosen_where_windows_are_narrow():
    """Bits tell the two forms apart: the order of a sum is another. (Positives among themselves, whose
    windows are full, are not sorted either way unless told to.)"""
    for spread, sorted_rows in ((0.4, True), (50.0, False)):
        x, y = problem([120] * 5, spread, torch.float32, dim=256)
        auto, never = (run("smooth_ap", x, y, sort=sort) for sort in (None, False))
        assert torch.equal(auto[1], never[1]) != sorted_rows


def test_sort_is_a_switch():
    F.smooth_ap(torch.eye(3), torch.arange(3), sort=True)  # kept, and 1 equals True
    with pytest.raises(ValueError, match=r"^sort: expected"):
        F.smooth_ap(torch.eye(3), torch.arange(3), sort=1)
