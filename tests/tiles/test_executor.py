"""The triton executor behind the public losses: against the dense executor."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import CASES as BATCHES
from conftest import inputs
from triton_mode import DEVICE

import fastdml
import fastdml.functional as F
from fastdml import losses
from fastdml.engine import problem
from fastdml.engine.executors.triton import Triton
from fastdml.engine.registry import LOSSES
from fastdml.kernels import configs


def batch(n=37, d=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g)
    return x.to(DEVICE), torch.randint(0, 9, (n,), generator=g).to(DEVICE)


CALLS = {
    "multi_similarity": lambda x, y, p, **k: F.multi_similarity(x, y, **k),
    "multi_similarity_mined": lambda x, y, p, **k: F.multi_similarity(x, y, epsilon=0.1, **k),
    "multi_similarity_memory": lambda x, y, p, **k: F.multi_similarity(
        x, y, ref_emb=p, ref_labels=torch.arange(p.shape[0], device=p.device) % 5, **k
    ),
    "proxy_anchor": lambda x, y, p, **k: F.proxy_anchor(x, y, p, **k),
    "contrastive": lambda x, y, p, **k: F.contrastive(x, y, **k),
}


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", CALLS)
def test_matches_dense(name, reduction):
    if name == "contrastive" and reduction == "none":
        pytest.skip("has no row losses")
    x, y = batch()
    found = {}
    for backend in ("dense", "triton"):
        a = x.clone().requires_grad_()
        p = batch(13, seed=1)[0].requires_grad_()
        value = CALLS[name](a, y, p, backend=backend, reduction=reduction)
        g = torch.Generator().manual_seed(2)
        value.backward(torch.rand(value.shape, generator=g).to(DEVICE))
        found[backend] = [value.detach(), a.grad, p.grad]
    for mine, theirs in zip(found["triton"], found["dense"]):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            # Errors go with the weights of a row, not with the size of one element.
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_learnable_scalars():
    x, _ = batch()
    r, _ = batch(seed=3)
    grads = []
    for backend in ("dense", "triton"):
        scale = torch.tensor(7.0, device=DEVICE, requires_grad=True)
        bias = torch.tensor(-3.0, device=DEVICE, requires_grad=True)
        F.siglip(x, r, scale, bias, backend=backend).backward()
        grads.append(torch.stack([scale.grad, bias.grad]))
    torch.testing.assert_close(grads[1], grads[0], rtol=2e-5, atol=1e-6)


def test_bits_repeat():
    x, y = batch(70)
    runs = []
    for _ in range(2):
        a = x.clone().requires_grad_()
        F.multi_similarity(a, y, epsilon=0.1, backend="triton").backward()
        runs.append(a.grad)
    assert torch.equal(*runs)


def test_refuses_what_it_cannot_run():
    x, y = batch()
    with pytest.raises(ValueError, match=r"backend.*fast_ap"):
        losses.FastAPLoss(backend="triton")(x, y)
    with pytest.raises(ValueError, match="up to 16 candidates"):
        losses.SmoothAPLoss(backend="triton")(x, torch.zeros_like(y))
    with pytest.raises(ValueError, match="float64"):
        F.multi_similarity(x.double(), y, backend="triton")


@pytest.mark.parametrize("centres", [17, 40])
def test_many_centres_of_a_class(centres):
    """More than the tiles of the interpreter are wide."""
    x, y = batch(12)
    found = []
    for backend in ("dense", "triton"):
        torch.manual_seed(0)
        a = x.clone().requires_grad_()
        loss = losses.SoftTripleLoss(
            num_classes=9, embedding_size=24, centers_per_class=centres, backend=backend
        ).to(DEVICE)
        value = loss(a, y)
        value.backward()
        found.append((value.detach(), a.grad, loss.fc.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def on_cuda(description) -> str | None:
    """Why tiles would not run there."""
    given = inputs(description, BATCHES["ragged"]().to(torch.float32)).call(description, "triton")
    return Triton().refuses(problem.Problem.of(given, torch.device("cuda")))


def test_refuses_more_centres_than_a_tile_holds():
    x, y = batch(12)
    loss = losses.SoftTripleLoss(
        num_classes=9, embedding_size=24, centers_per_class=65, backend="triton"
    ).to(DEVICE)
    with pytest.raises(ValueError, match="up to 64 centres of a class, not 65"):
        loss(x, y)


def test_refuses_devices_that_its_sizes_are_not_for(monkeypatch):
    description = LOSSES["multi_similarity"].examples()[0]
    assert on_cuda(description) is None
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "ROCm" in on_cuda(description)


@pytest.mark.parametrize(
    ("arch", "version", "wrong"),
    [(90, (3, 7, 0), True), (90, (3, 7, 1), False), (80, (3, 7, 0), False)],
)
def test_refuses_what_triton_multiplies_wrongly(arch, version, wrong, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(configs, "architecture", lambda device: arch)
    monkeypatch.setattr(configs, "triton_version", lambda: version)
    assert ("3.7.1" in (on_cuda(LOSSES["soft_triple"].examples()[0]) or "")) == wrong
    assert on_cuda(LOSSES["proxy_anchor"].examples()[0]) is None


def test_large_weights_of_a_classifier(monkeypatch):
    """[D, C] comes in as its transpose, which is not copied where it is large."""
    monkeypatch.setattr(problem, "_COPIED", 0)
    x, y = batch()
    found = []
    for backend in ("dense", "triton"):
        torch.manual_seed(0)
        loss = losses.ArcFaceLoss(num_classes=9, embedding_size=24, backend=backend).to(DEVICE)
        value = loss(x, y)
        value.backward()
        found.append((value.detach(), loss.W.grad))
    torch.testing.assert_close(found[1], found[0])


def test_import_does_not_load_triton():
    code = "import sys, fastdml; assert 'triton' not in sys.modules, 'triton was imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_typo_in_a_tile_functor_is_an_error():
    """It is not taken for a form that the functor does not know, which sends `auto` elsewhere."""

    class Mistyped:
        @staticmethod
        def parameters(loss):
            return (loss.tempreature,)

    class Loss(LOSSES["sup_con"]):
        tiles = Mistyped

    with pytest.raises(AttributeError, match="tempreature"):
        fastdml.explain(Loss(), 8, backend="triton", device=DEVICE)
