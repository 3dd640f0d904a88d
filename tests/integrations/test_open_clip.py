"""The drop-ins of open_clip beside its own losses, in one process and over ranks."""

import inspect
import sys

import checks_gathered
import others
import pytest
import torch
from conftest import ROOT

from fastdml.demo.data import load_icons
from fastdml.integrations import open_clip as ours

sys.path.insert(0, str(ROOT / "tests" / "distributed"))
import ranks

theirs = others.Lazy("open_clip.loss")
pytestmark = pytest.mark.usefixtures("open_clip")


@pytest.fixture(scope="module")
def open_clip():
    others.open_clip()


def values(loss, *, bias, dtype=torch.float64):
    """Value and gradients of images, texts, scale and bias; a model without a bias hands in None."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(9, 6, generator=g, dtype=dtype).requires_grad_() for _ in range(2))
    numbers = [torch.tensor(v, dtype=dtype, requires_grad=True) for v in ((3.0, -2.0) if bias else (3.0,))]
    found = loss(x, y, *numbers, *[None] * (not bias), output_dict=True)["contrastive_loss"]
    return [found.detach(), *torch.autograd.grad(found, [x, y, *numbers])]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_one_process(name, bias):
    """Of features that are not normalised, so that products are told from cosines."""
    found, expected = (values(getattr(m, name)(), bias=bias) for m in (ours, theirs))
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_numbers_that_are_not_learnt(name):
    x, y = torch.randn(2, 5, 4)
    loss = getattr(ours, name)()
    torch.testing.assert_close(loss(x, y, 3.0, -2.0), loss(x, y, torch.tensor(3.0), torch.tensor(-2.0)))


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_signatures_are_theirs(name):
    mine, other = getattr(ours, name), getattr(theirs, name)
    for function in ("__init__", "forward"):
        told = [inspect.signature(getattr(kind, function)).parameters.values() for kind in (mine, other)]
        assert [(p.name, p.default) for p in told[0]] == [(p.name, p.default) for p in told[1]]
    assert not list(mine().parameters())  # as theirs: nothing to be trained or saved


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ours.ClipLoss(use_horovod=True), "use_horovod: expected False"),
        (lambda: ours.SigLipLoss(dist_impl="ring"), "dist_impl: expected one of"),
        (lambda: ours.ClipLoss()(*torch.ones(2, 3, 4), None), "logit_scale: expected one number"),
        (lambda: ours.SigLipLoss()(*torch.ones(2, 3, 4), None, None), "logit_scale: expected one number"),
        (lambda: values(ours.ClipLoss(world_size=2), bias=False), "world_size: expected 1, as torch"),
        (lambda: values(ours.SigLipLoss(rank=1, world_size=2), bias=True), "rank: expected 0, as"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def trained(loss):
    """Its model of icons and their names: the losses of a few steps, and the weights."""
    from train_clip import network

    torch.manual_seed(0)
    model, (icons, _) = network(), load_icons(max_classes=24)
    images = icons.pixels[torch.arange(24) * 6].expand(-1, 3, -1, -1)
    tokens = torch.randint(1, 1000, (24, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    curve = []
    for _ in range(8):
        value = loss(*model(images, tokens))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        curve.append(value.item())
    return curve


def test_the_same_curve():
    found, expected = (trained(m.ClipLoss()) for m in (ours, theirs))
    assert found == pytest.approx(expected, abs=1e-4) and found[0] - found[-1] > 0.1


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return ranks.run([(3, ["checks_gathered"])], tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", checks_gathered.CHECKS(3))
def test_over_ranks(found, name):
    assert not found.get("3"), found["3"]
    key = f"3 checks_gathered {name}"
    assert key in found and not found[key], found.get(key)
