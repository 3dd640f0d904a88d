"""nivMF and its family against golden values of the release and the formulas on whole matrices."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from method_tools import randn, same_state, saved
from torch.nn import functional as F

from fastdml.methods import NonIsotropicVMFLoss, non_isotropic
from fastdml.methods import von_mises_fisher as vmf

GOLDEN, FULL = ROOT / "tests" / "golden", ROOT.parent / "shared" / "golden"
CASES = {"vmf": "el-vmf", "nivmf": "nivmf", "l2": "l2", "cos": "cos"}
B, C, D, T = 11, 6, 5, 4


def load(case):
    with np.load(GOLDEN / f"nivmf_{case}.npz") as stored:
        return {name: torch.from_numpy(np.array(stored[name])) for name in stored}


@pytest.mark.skipif(not FULL.is_dir(), reason="the full set of golden values is not here")
@pytest.mark.parametrize("case", CASES)
def test_copies_equal_the_full_set(case):
    name = f"nivmf_{case}.npz"
    assert (GOLDEN / name).read_bytes() == (FULL / name).read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_golden(case, monkeypatch):
    monkeypatch.setattr(non_isotropic, "_AT_ONCE", 30)  # several blocks
    stored = load(case)
    loss = NonIsotropicVMFLoss(6, 16, CASES[case], variant="released").double()
    loss.proxies.data = stored["proxies.weight_v"]
    loss.concentrations.data = (
        stored["kappa.weight"] if case == "nivmf" else stored["proxies.weight_g"][:, 0]
    )
    loss.temperature.data = stored["temp"][0]
    x = stored["x"].clone().requires_grad_()
    value = loss(x, stored["y"])
    value.backward()
    assert value.item() == pytest.approx(stored["loss"].item(), rel=1e-9)
    assert torch.allclose(x.grad, stored["grad_x"], rtol=1e-8, atol=1e-10)


def new(metric, **kwargs):
    torch.manual_seed(0)
    settings = {"temperature": 0.3, "samples": T, "concentration": 3.0, **kwargs}
    loss = NonIsotropicVMFLoss(C, D, metric, **settings).double()
    with torch.no_grad():
        loss.concentrations.mul_(torch.rand(loss.concentrations.shape).double() * 2 + 0.01)
        loss.concentrations.view(-1)[1] = 0.04  # below the smallest that counts
    return loss


def batch():
    return randn(B, D) * 4, torch.arange(B) % (C - 1)


def dense(loss, x, y):
    """The docstring, with every matrix in full."""
    mu, kappa = F.normalize(x), x.norm(dim=1)
    v, k = F.normalize(loss.proxies), loss.concentrations.clamp(min=0.1)
    tau = loss.temperature

    def log_c(t):
        return vmf.log_normalizer(t, D)

    if "nivmf" in loss.metric:
        b = (k * v).norm(dim=1)
        a = log_c(b) + k.log().sum(1) - b.log()
    if loss.metric == "el-nivmf":
        z = vmf.sample(mu, kappa, T, generator=generator(loss), variant=loss.variant)
        s = z @ (k * v).T + a
        if loss.density == "paper":
            s = torch.stack(
                [(z * k[c]) @ (k[c] * v[c]) / (z * k[c]).norm(dim=2) + a[c] for c in range(C)], 2
            )
        s = (s / tau).logsumexp(1) - np.log(T)
        return (s.logsumexp(1) - s[torch.arange(B), y]).mean()
    if loss.metric == "nivmf":
        s = torch.stack([F.normalize(mu * k[c]) @ (k[c] * v[c]) + a[c] for c in range(C)], 1)
    elif loss.metric in ("el-vmf", "b-vmf"):
        rho = 1 if loss.metric == "el-vmf" else 0.5
        third = (x[:, None] + k[:, None] * v).norm(dim=2)
        s = rho * (log_c(kappa)[:, None] + log_c(k)) - log_c(rho * third)
    elif loss.metric == "kl-vmf":
        cosine = mu @ v.T
        if loss.variant == "released":
            fit = -0.0002662 * k - 0.0009685 * k**2
            s = -fit + kappa[:, None] - k * cosine
        else:
            mean = vmf.mean_cosine(kappa, D)[:, None]
            s = -(log_c(kappa)[:, None] - log_c(k) + mean * (kappa[:, None] - k * cosine))
    elif loss.metric == "l2":
        s = -((x[:, None] - k[:, None] * v) ** 2).sum(2)
    else:
        s = mu @ v.T
    return F.cross_entropy(s / tau, y)


def generator(loss):
    loss.draws.step = 0
    found = loss.draws.next("cpu")
    loss.draws.step = 0
    return found


@pytest.mark.parametrize(
    "metric, kwargs",
    [(m, {}) for m in non_isotropic.METRICS]
    + [("kl-vmf", {"variant": "released"}), ("el-nivmf", {"density": "paper"})],
)
def test_against_whole_matrices(metric, kwargs, monkeypatch):
    monkeypatch.setattr(non_isotropic, "_AT_ONCE", 60)
    monkeypatch.setattr(non_isotropic, "_IN_CACHE", 4)
    loss, (x, y) = new(metric, **kwargs), batch()
    leaf = x.clone().requires_grad_()
    inputs = [leaf, loss.proxies, loss.concentrations, loss.temperature]
    true = dense(loss, leaf, y)
    expected = torch.autograd.grad(true, inputs, allow_unused=True)
    found = loss(leaf, y)
    grads = torch.autograd.grad(found, inputs, allow_unused=True)
    assert found.item() == pytest.approx(true.item(), rel=1e-10)
    for mine, theirs in zip(grads, expected):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.allclose(mine, theirs, rtol=1e-8, atol=1e-9)


def test_guidance():
    """Proxy-Anchor with the proxies of all samples, duplicates and all."""
    (x, y), loss = batch(), new("cos", guidance=0.7)
    mu, v = F.normalize(x), F.normalize(loss.proxies)
    one = torch.zeros(1).double()
    pull = [
        torch.cat([-32 * (mu[y == y[i]] @ v[y[i]] - 0.1), one]).logsumexp(0) for i in range(B)
    ]
    push = [torch.cat([32 * (mu[y != c] @ v[c] + 0.1), one]).logsumexp(0) for c in range(C)]
    expected = dense(loss, x, y) + 0.7 * (torch.stack(pull).mean() + torch.stack(push).mean())
    assert loss(x, y).item() == pytest.approx(expected.item(), rel=1e-10)
    grads = [torch.autograd.grad(t, loss.proxies)[0] for t in (loss(x, y), expected)]
    assert torch.allclose(*grads, atol=1e-9)


def test_float32_at_the_released_temperature(monkeypatch):
    """D = 512, temperature 0.003: logits of thousands on top of constants of a hundred thousand."""
    torch.manual_seed(0)
    wide = NonIsotropicVMFLoss(40, 512, concentration=18.0, samples=2).double()
    with torch.no_grad():
        wide.concentrations.mul_(torch.rand(40, 512).double() * 0.2 + 0.9)
        wide.proxies.copy_(wide.proxies.float())
        wide.concentrations.copy_(wide.concentrations.float())
    narrow = NonIsotropicVMFLoss(40, 512, samples=2)
    narrow.load_state_dict(wide.state_dict())
    mean, kappa = F.normalize(randn(8, 512)), torch.full((8,), 60.0).double()
    z = vmf.sample(mean, kappa, 2, generator=torch.Generator().manual_seed(1)).float()
    y = torch.arange(8)
    monkeypatch.setattr(vmf, "sample", lambda mean, *_, **__: z.to(mean.dtype))
    values, gradients = [], []
    for loss, dtype in ((wide, torch.float64), (narrow, torch.float32)):
        values.append(loss(mean.to(dtype), y))
        gradients.append(torch.autograd.grad(values[-1], loss.proxies)[0].double())
    assert values[1].item() == pytest.approx(values[0].item(), rel=1e-5, abs=2e-2)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-4 * gradients[0].abs().max())


def test_resumes_bit_for_bit_and_warm_starts():
    x, y = batch()
    one = new("el-nivmf", seed=5)
    one(x, y)
    two = new("el-nivmf")
    two.load_state_dict(saved(one))
    assert torch.equal(one(x, y), two(x, y)) and same_state(one, two)
    with pytest.raises(ValueError, match="labels: expected a sample of every class"):
        one.warm_start(x, y)
    one.warm_start(x, torch.arange(B) % C)
    for c in range(C):
        mean = x[torch.arange(B) % C == c].mean(0)
        assert torch.allclose(F.normalize(one.proxies[c], dim=0), F.normalize(mean, dim=0))


def test_memory_is_not_that_of_the_matrix():
    """[B T, C] of 1280 x 10,000 would be 51 MB; what autograd keeps is far below."""
    torch.manual_seed(0)
    kept = []
    loss = NonIsotropicVMFLoss(10_000, 16)
    x = torch.randn(64, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss(x, torch.arange(64))
    assert max(kept) <= 10_000 * 16


@pytest.mark.parametrize("guidance", [0.0, 0.5])
@pytest.mark.parametrize("density", ["released", "paper"])
@pytest.mark.parametrize("metric", non_isotropic.METRICS)
def test_a_batch_without_rows(metric, density, guidance):
    """0, and a gradient of zeros for everything that has one otherwise."""
    loss = NonIsotropicVMFLoss(5, 8, metric, density=density, guidance=guidance).double()
    x, y = randn(7, 8), torch.arange(7) % 5
    loss(x, y).backward()
    learnt = [p.grad is not None for p in loss.parameters()]
    loss.zero_grad()
    nothing = x[:0].requires_grad_()
    value = loss(nothing, y[:0])
    value.backward()
    assert value == 0 and nothing.grad.shape == (0, 8)
    assert [p.grad is not None for p in loss.parameters()] == learnt
    assert not any(p.grad.any() for p in loss.parameters() if p.grad is not None)


def test_a_second_derivative_is_refused():
    proxies, concentrations = torch.rand(2, C, D, dtype=torch.float64) + 0.2
    leaf = proxies.requires_grad_()

    def first(create_graph):
        columns, length, logs = non_isotropic._ClassTerms.apply(leaf, concentrations)
        value = columns.square().sum() + length.sum() + logs.sum()
        return torch.autograd.grad(value, leaf, create_graph=create_graph)[0]

    kept = first(True)
    assert torch.equal(kept, first(False))
    with pytest.raises(RuntimeError, match="fastdml losses have first derivatives only"):
        kept.sum().backward()


def test_refuses():
    with pytest.raises(ValueError, match="metric: expected one of"):
        NonIsotropicVMFLoss(C, D, "nimf")
    with pytest.raises(ValueError, match="embeddings: expected 5 dimensions"):
        new("cos")(randn(B, D + 1), torch.zeros(B, dtype=torch.long))
    with pytest.raises(ValueError, match="embeddings: expected 5 dimensions, got 1"):
        new("cos").warm_start(randn(C, 1), torch.arange(C))
    groups = new("cos").parameter_groups(1e-5)
    assert [g["lr"] for g in groups] == pytest.approx([0.05, 0.2, 0.002])


@pytest.mark.parametrize("metric", non_isotropic.METRICS)
def test_autocast_leaves_no_digits_out(metric):
    """Similarities are divided by a temperature of 0.003; those of classes that are near each other."""
    torch.manual_seed(0)
    loss = NonIsotropicVMFLoss(C, D, metric).eval()  # the same draws each time
    base = F.normalize(torch.randn(1, D))
    loss.proxies.data = F.normalize(base + 0.01 * torch.randn(C, D))
    x, y = 10 * F.normalize(base + 0.01 * torch.randn(B, D)), torch.arange(B) % C
    found = {}
    for narrow in (False, True):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            value = loss(leaf, y)
        found[narrow] = value, *torch.autograd.grad(value, (leaf, loss.proxies))
    assert all(torch.equal(a, b) for a, b in zip(found[False], found[True]))


@pytest.mark.parametrize("metric", non_isotropic.METRICS)
def test_rows_of_any_length(metric):
    """A row of zeros has no direction: nothing moves it, and it spoils nothing."""
    loss = NonIsotropicVMFLoss(C, D, metric, temperature=0.1).double().eval()
    x, y = randn(B, D), torch.arange(B) % C
    x[0] = 0
    leaf = x.requires_grad_()
    grads = torch.autograd.grad(loss(leaf, y), (leaf, *loss.parameters()), allow_unused=True)
    assert all(g.isfinite().all() for g in grads if g is not None)
    assert not grads[0][0].any()
    if metric in ("nivmf", "cos"):  # which have no use for lengths
        values = [loss(x[1:] * f, y[1:]) for f in (1.0, 1e-30, 1e100)]
        assert torch.allclose(torch.stack(values), values[0], rtol=1e-12)


@pytest.mark.parametrize("density", ["released", "paper"])
@pytest.mark.parametrize("metric", non_isotropic.METRICS)
def test_a_proxy_without_a_direction(metric, density):
    """Of zeros: finite, and alike however it is computed; its own gradient is 0."""
    loss = new(metric, density=density, guidance=0.5)
    with torch.no_grad():
        loss.proxies[2] = 0
    x, y = batch()
    x.requires_grad_()
    value = loss(x, y)
    value.backward()
    assert value.isfinite() and x.grad.isfinite().all() and not loss.proxies.grad[2].any()
    assert all(p.grad is None or p.grad.isfinite().all() for p in loss.parameters())
    with torch.no_grad():
        loss.proxies[2] = torch.nn.functional.one_hot(torch.tensor(0), D) * 1e-30
    assert loss(x, y).isfinite()
