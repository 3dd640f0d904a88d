"""Rows with candidates of their own, in one reading of these: the numbers and gradients of plain torch."""

import pytest
import torch
from conftest import COMPILED

from fastdml.engine import own_candidates
from fastdml.engine.similarity import METRICS
from fastdml.losses import InfoNCELoss

pytestmark = pytest.mark.skipif(not COMPILED, reason="the library is not compiled")


def drawn(rows, each, dim, scale=1.0):
    g = torch.Generator().manual_seed(rows + each + dim)
    a, c = torch.randn(rows, dim, generator=g), torch.randn(rows, each, dim, generator=g)
    return a.double() * scale, c.double() * scale


def found(function, *leaves, wanted=(True, True)):
    leaves = [x.detach().requires_grad_(w) for x, w in zip(leaves, wanted)]
    value = function(*leaves)
    upstream = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view(value.shape)
    return value.detach(), *torch.autograd.grad(value, [x for x in leaves if x.requires_grad], upstream)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("shape", [(5, 1, 1), (4, 3, 16), (3, 7, 37), (6, 2, 64)])
@pytest.mark.parametrize("name", METRICS)
def test_equals_plain_torch(name, shape, wanted):
    metric, (a, c) = METRICS[name], drawn(*shape)
    c[0, 0] = 0  # no direction
    ours = found(lambda a, c: own_candidates.values(metric, a, c), a, c, wanted=wanted)
    for x, true in zip(ours, found(metric.listed, a, c, wanted=wanted), strict=True):
        torch.testing.assert_close(x, true, rtol=1e-12, atol=1e-12)


FAR = [(torch.float32, s) for s in (1e-30, 1e-22, 1e18, 1e25, 1e37)]
FAR += [(torch.float64, s) for s in (1e-30, 1e160, 1e300)]


@pytest.mark.parametrize("dtype, scale", FAR)
def test_any_length_has_a_cosine(dtype, scale):
    """Also one whose square is no number of the type."""
    metric, (a, c) = METRICS["cosine"], drawn(4, 3, 20)
    a, c = a.to(dtype), c.to(dtype)
    true = found(metric.listed, a.double(), c.double())
    value, d_a, d_c = found(lambda a, c: own_candidates.values(metric, a, c), a * scale, c * scale)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
    for x, exact in zip((value, d_a.double() * scale, d_c.double() * scale), true):
        if scale >= 1e37 and x is not value:  # gradients below the normal numbers of float32
            continue
        torch.testing.assert_close(x.double(), exact, **tolerance)


def test_a_length_that_is_no_number_has_a_cosine():
    a, c = torch.ones(1, 16), torch.full((1, 2, 16), 2e38)
    c[0, 1, :4] = -2e38
    torch.testing.assert_close(own_candidates.values(METRICS["cosine"], a, c), torch.tensor([[1.0, 0.5]]))


def test_slices_of_wider_tensors_and_nan():
    metric, (a, c) = METRICS["cosine"], drawn(5, 4, 24)
    narrow = lambda f: lambda a, c: f(a[:, :9], c[:, 1:, :9])  # noqa: E731
    ours = found(narrow(lambda a, c: own_candidates.values(metric, a, c)), a, c)
    for x, true in zip(ours, found(narrow(metric.listed), a, c), strict=True):
        torch.testing.assert_close(x, true, rtol=1e-12, atol=1e-12)
    c[2, 1, 3] = torch.nan
    value = own_candidates.values(metric, a, c)
    assert value[2, 1].isnan() and value.isnan().sum() == 1


def test_hard_negatives_go_through_it(monkeypatch):
    """And have first derivatives only."""
    made = []
    plain = own_candidates._Products.apply
    monkeypatch.setattr(own_candidates._Products, "apply", lambda *a: made.append(a[1].shape) or plain(*a))
    hard = torch.randn(8, 5, 6).requires_grad_()
    value = InfoNCELoss()(torch.randn(8, 6), torch.randn(8, 6), hard)
    assert made == [(8, 5, 6)]
    (d,) = torch.autograd.grad(value, hard, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        d.sum().backward()
