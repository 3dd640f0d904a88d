"""The distribution against exact Bessel functions, and the sampler against its mean and its derivative."""

import math

import numpy as np
import pytest
import torch
from method_tools import randn
from scipy.integrate import quad
from scipy.special import ive

from fastdml.methods.von_mises_fisher import log_normalizer, log_sphere, mean_cosine, sample

GRID = [(d, k) for d in (16, 128, 512) for k in (5.0, 30.0, 200.0, 2000.0)]


def exact_log_c(kappa, d):
    """For orders at which double precision does not underflow."""
    v = d / 2 - 1
    return v * math.log(kappa) - d / 2 * math.log(2 * math.pi) - math.log(ive(v, kappa)) - kappa


def exact_mean(kappa, d):
    """A continued fraction: I_(v+1) / I_v of order v = D/2 - 1."""
    ratio = 0.0
    for order in range(4000, 0, -1):
        ratio = kappa / (d + 2 * (order - 1) + kappa * ratio)
    return ratio


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2e-6), (torch.float64, 1.5e-6)])
@pytest.mark.parametrize("d", [2, 3, 8, 16, 33, 34, 64, 128])
def test_log_normalizer_and_its_derivative(d, dtype, bound):
    for k in (0.5, 2.0, 20.0, 100.0, 1000.0):
        kappa = torch.tensor(k, dtype=dtype, requires_grad=True)
        found = log_normalizer(kappa, d)
        slope, = torch.autograd.grad(found, kappa)
        true = exact_log_c(k, d) - log_sphere(d)
        assert abs(found.item() - true) < bound * abs(true) + 1e-8 + 1e-13 * abs(exact_log_c(k, d))
        assert slope.item() == pytest.approx(-exact_mean(k, d), rel=bound)
        assert mean_cosine(kappa, d).item() == pytest.approx(exact_mean(k, d), rel=bound)


def test_small_and_large_concentrations_in_float32():
    for d in (2, 16, 128, 512, 2048):
        kappa = torch.tensor([0.0, 1e-6, 1e-3, 1e4, 1e5], requires_grad=True)
        found = log_normalizer(kappa, d)
        slope, = torch.autograd.grad(found.sum(), kappa)
        assert abs(found[0]) < 1e-8 and slope[0] == 0
        assert (found[1:3].abs() < 1e-6).all()
        assert torch.allclose(-slope, mean_cosine(kappa, d), rtol=1e-6)
        assert torch.allclose(-slope[1:3], kappa[1:3] / d, rtol=1e-5)
        for k, a in zip((1e4, 1e5), slope[3:]):
            assert -a.item() == pytest.approx(exact_mean(k, d), rel=1e-6)


@pytest.mark.parametrize("d, kappa", GRID)
def test_mean_cosine_of_draws(d, kappa):
    mean = torch.nn.functional.normalize(randn(2, d))
    z = sample(mean, torch.full((2,), kappa).double(), 4000, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(z.norm(dim=2), torch.ones(2, 4000).double())
    w = (z * mean[:, None]).sum(2)
    error = (w.mean() - exact_mean(kappa, d)) / (w.std() / w.numel() ** 0.5)
    assert abs(error) < 4
    spread = 1 - exact_mean(kappa, d) ** 2 - (d - 1) / kappa * exact_mean(kappa, d)
    assert w.var().item() == pytest.approx(spread, rel=0.08)
    # What is not along the mean has no direction of its own.
    across = (z - w[:, :, None] * mean[:, None]).mean(1).norm(dim=1)
    assert (across < 2 * ((1 - w.square().mean()) / 4000).sqrt()).all()


@pytest.mark.parametrize("d", [3, 16, 128])
def test_float32_extremes(d):
    kappa = torch.tensor([0.0, 1e-3, 1e6], requires_grad=True)
    mean = torch.eye(d)[[0, 1, 2]].requires_grad_()  # poles
    z = sample(mean, kappa, 50, generator=torch.Generator().manual_seed(0))
    z.sum().backward()
    assert torch.isfinite(z).all() and torch.isfinite(mean.grad).all()
    assert torch.isfinite(kappa.grad).all()
    assert ((z * mean[:, None]).sum(2)[2] > 0.99).all()


@pytest.mark.parametrize("d, kappa", GRID)
def test_gradient_is_the_derivative_of_the_mean(d, kappa):
    """Finite differences of A_D, and the variance, which is its derivative."""
    h = 1e-4 * kappa
    true = (exact_mean(kappa + h, d) - exact_mean(kappa - h, d)) / (2 * h)
    mean = torch.nn.functional.normalize(randn(1, d)).expand(2, d)
    leaf = torch.full((2,), kappa, dtype=torch.float64, requires_grad=True)
    z = sample(mean, leaf, 4000, generator=torch.Generator().manual_seed(2))
    w = (z * mean[:, None]).sum(2)
    grad, = torch.autograd.grad(w.mean(1).sum(), leaf)
    # 8,000 derivatives; their spread is at most 0.38 of their mean.
    assert grad.mean().item() == pytest.approx(true, rel=0.017)


def test_gradient_keeps_the_distribution_function():
    """Of one draw: finite differences of F(w; kappa) by numerical integration."""
    d, kappa = 7, 4.0
    leaf = torch.full((1,), kappa, dtype=torch.float64, requires_grad=True)
    mean = torch.nn.functional.normalize(randn(1, d))
    w = (sample(mean, leaf, 6, generator=torch.Generator().manual_seed(3)) * mean[:, None]).sum(2)[0]

    def density(u, k):
        return math.exp(k * u + (d - 3) / 2 * math.log1p(-u * u) + exact_log_c(k, d) - log_sphere(d - 1))

    def below(at, k):
        return quad(density, -1, at, args=(k,), epsabs=1e-12)[0]

    h = 1e-4
    for cosine in w:
        slope, = torch.autograd.grad(cosine, leaf, retain_graph=True)
        u = cosine.item()
        true = -(below(u, kappa + h) - below(u, kappa - h)) / (2 * h) / density(u, kappa)
        assert slope.item() == pytest.approx(true, rel=1e-5)


def test_gradient_of_the_transformation_by_differences():
    """The released gradient: the accepted proposals held fixed."""
    d, kappa = 9, torch.tensor([3.0, 40.0], dtype=torch.float64)
    mean = torch.nn.functional.normalize(randn(2, d))

    def drawn(k, m=mean):
        g = torch.Generator().manual_seed(4)
        return sample(torch.nn.functional.normalize(m), k, 3, generator=g, gradient="transform")

    assert torch.autograd.gradcheck(drawn, kappa.requires_grad_())
    assert torch.autograd.gradcheck(lambda m: drawn(kappa.detach(), m), mean.requires_grad_())


def test_the_released_sampler_is_biased():
    mean = torch.nn.functional.normalize(randn(2, 128))
    for kappa, released in ((30.0, -0.028), (200.0, 0.723), (5.0, exact_mean(5.0, 128))):
        z = sample(
            mean, torch.full((2,), kappa).double(), 10000, generator=torch.Generator().manual_seed(5),
            variant="released",
        )
        w = (z * mean[:, None]).sum(2)
        assert w.mean().item() == pytest.approx(released, abs=4e-3)


def test_refuses():
    mean = torch.nn.functional.normalize(randn(2, 5))
    with pytest.raises(ValueError, match="kappa: expected finite numbers"):
        sample(mean, torch.tensor([1.0, np.nan]).double(), 2)
    with pytest.raises(ValueError, match="kappa: expected shape"):
        sample(mean, torch.ones(3).double(), 2)
    with pytest.raises(ValueError, match="gradient: expected"):
        sample(mean, torch.ones(2).double(), 2, gradient="none")
    with pytest.raises(ValueError, match="dimension: expected an integer from 3"):
        sample(mean[:, :2], torch.ones(2).double(), 2)
