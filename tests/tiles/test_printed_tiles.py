"""Printed tile functors against the specification in double precision."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from triton_mode import DEVICE

import fastdml
from fastdml import language as L
from fastdml.engine.executors import triton
from fastdml.engine.registry import LOSSES as LOSSES_OF_THE_LIBRARY
from fastdml.kernels import launch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "language"))
import described  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDML_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def documented():
    world, found = {}, {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/language.md").read_text(), re.S):
        exec(block, world)
        found[world["loss"].description().name] = world["loss"]
    return found


def siglip_like(p, scale, bias):
    u = scale * p.s + bias
    return described.sum(described.softplus(-u), where=p.positive) + described.sum(
        described.softplus(u), where=p.negative
    )


def nt_xent(p, scale):
    level = described.log_sum_exp(scale * p.s, where=p.negative)
    return described.sum(described.softplus(level - scale * p.s), where=p.positive)


def losses():
    made = documented()
    learnt = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in (("scale", 5.0), ("bias", -1.0))}
    made["siglip"] = fastdml.row_loss(siglip_like, parameters=learnt)
    made["nt_xent"] = fastdml.row_loss(nt_xent, parameters={"scale": 12.0})
    for name, parameters in (
        (
            "binomial_deviance",
            {"alpha": 2.0, "beta": 25.0, "base": 0.5, "max_positive": float("1e9")},
        ),
        ("circle", {"m": 0.4, "gamma": 20.0}),
        ("sup_con", {"scale": 10.0, "pull": 1.0, "push": 1.0}),
    ):
        made[name] = fastdml.row_loss(getattr(described, name), parameters=parameters)
    return made


LOSSES = losses()
# Functions of what Triton has other words for.
FUNCTIONS = {
    "conditions of the row": lambda p: L.sum(
        L.square(p.s), where=p.negative & ((p.s > 0.2) | (L.amax(p.s, where=p.negative) > 0.8))
    ),
    "negations": lambda p: L.sum(L.square(p.s), where=p.negative & ~(p.s < 0.1) & ~(p.s > 0.6)),
    "angles": lambda p: L.cos(L.amax(p.s, where=p.negative)) + L.sin(L.sum(p.s, where=p.negative)),
    "roots": lambda p: L.sum(L.sqrt(1 - 1.3 * L.square(p.s)), where=p.pair),
    "no positives": lambda p: L.sum(
        2 * L.log_sum_exp(p.s, where=p.pair) - p.s - L.log(L.count(where=p.positive)),
        where=p.positive,
    ),
}


def gradients(loss, backend, dtype, other):
    g = torch.Generator().manual_seed(4)
    x = torch.randn(37, 20, generator=g).to(DEVICE, dtype).requires_grad_()
    y = torch.randint(0, 5, (37,), generator=g).to(DEVICE)
    t = torch.randn(37, 7, generator=g).to(DEVICE, dtype)
    loss = loss.to(dtype)
    loss.backend = backend
    leaves, further = [x, *loss.parameters()], {}
    if loss.description().taught:
        further["teacher"] = t
    if other and not further:
        r = torch.randn(50, 20, generator=g).to(DEVICE, dtype).requires_grad_()
        leaves.append(r)
        value = loss(x, y, None, r, torch.arange(50, device=DEVICE) % 6)
    else:
        value = loss(x, y, **further)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize("other", [False, True], ids=["one set", "two sets"])
@pytest.mark.parametrize("name", LOSSES)
def test_printed_tiles(name, other):
    exact = gradients(LOSSES[name], "dense", torch.float64, other)
    plain = gradients(LOSSES[name], "dense", torch.float32, other)
    found = gradients(LOSSES[name], "triton", torch.float32, other)
    for a, b, c in zip(found, plain, exact):
        assert torch.isfinite(a).all()
        bound = 6 * (b - c).abs().max() + 4e-7 * c.abs().max() + 1e-9
        assert (a - c).abs().max() <= bound


@pytest.mark.parametrize("name", FUNCTIONS)
def test_printed_words(name):
    exact, found = [], []
    for backend, dtype, into in (("dense", torch.float64, exact), ("triton", torch.float32, found)):
        g = torch.Generator().manual_seed(4)
        x = torch.randn(37, 8, generator=g).to(DEVICE, dtype).requires_grad_()
        y = torch.randint(0, 9, (37,), generator=g).to(DEVICE)
        y[0] = 99
        value = fastdml.row_loss(FUNCTIONS[name], backend=backend, reduction="none")(x, y)
        into += [value.detach(), *torch.autograd.grad(value.sum(), x)]
    for a, b in zip(found, exact):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("other", [False, True], ids=["one set", "two sets"])
@pytest.mark.parametrize("similarity", triton._METRICS)
def test_a_sweep_for_weights_finds_the_rows_of_every_similarity(similarity, other):
    loss = fastdml.row_loss(siglip_like, similarity, parameters={"scale": -0.2, "bias": 2.0})
    assert loss.description().tiles.functor.rides
    exact = gradients(loss, "dense", torch.float64, other)
    for a, c in zip(gradients(loss, "triton", torch.float32, other), exact):
        assert (a - c).abs().max() <= 1e-5 * c.abs().max()


def test_mining_visits_all_pairs_once():
    """What only positives decide is found in the tiles that hold some, before and after the one sweep."""
    mined = LOSSES_OF_THE_LIBRARY["multi_similarity"](epsilon=0.1).tiles.functor
    assert [one.positives_only for one in mined.passes] == [True, False, True]
    plain = LOSSES_OF_THE_LIBRARY["multi_similarity"]().tiles.functor
    assert [one.positives_only for one in plain.passes] == [False]


def test_a_sweep_for_weights_finds_the_rows_as_well(monkeypatch):
    """Where weights read nothing of their row; the results are those of two sweeps."""

    def step():
        leaf = x.clone().requires_grad_()
        value = LOSSES["siglip"](leaf, y)
        return value.detach(), *torch.autograd.grad(value, [leaf, *LOSSES["siglip"].parameters()])

    g = torch.Generator().manual_seed(4)
    x = torch.randn(37, 20, generator=g).to(DEVICE)
    y = torch.randint(0, 5, (37,), generator=g).to(DEVICE)
    LOSSES["siglip"].float().backend = "triton"
    with monkeypatch.context() as patch:
        patch.setattr(launch, "finds_statistics", lambda *_: False)
        apart = step()
    monkeypatch.setattr(launch, "statistics", None)
    for one, other in zip(step(), apart):
        torch.testing.assert_close(one, other)


def test_what_all_rows_return_is_swept_for_once(monkeypatch):
    """The second visit, for weights that read nothing of their row, has no sweep for statistics."""
    visits = []
    sweep = launch.statistics
    monkeypatch.setattr(launch, "statistics", lambda *a, **k: (visits.append(1), sweep(*a, **k))[1])
    g = torch.Generator().manual_seed(6)
    x, y = torch.randn(37, 20, generator=g), torch.randint(0, 5, (37,), generator=g).to(DEVICE)
    found = {}
    for backend, dtype in (("triton", torch.float32), ("dense", torch.float64)):
        leaf = x.to(DEVICE, dtype).requires_grad_()
        value = fastdml.functional.contrastive(leaf, y, backend=backend)
        found[backend] = torch.autograd.grad(value, leaf)[0].double()
    assert len(visits) == 1
    torch.testing.assert_close(found["triton"], found["dense"], rtol=1e-4, atol=1e-7)


def test_weights_of_both_directions_are_one_call_where_they_are_linear():
    """In the derivatives by what the rows return, and read nothing else of them."""
    made = LOSSES_OF_THE_LIBRARY
    assert made["contrastive"]().tiles.functor.linear
    assert not made["multi_similarity"]().tiles.functor.linear
    assert not made["sup_con"]().tiles.functor.linear


def test_tiles_with_labels_and_the_one_over_the_end_are_of_one_program():
    """85 rows are six tiles of the interpreter's, two a program; the last classes lie in the last two."""
    g = torch.Generator().manual_seed(5)
    x, y = torch.randn(85, 20, generator=g), torch.arange(85) // 2
    found = {}
    for backend, dtype in (("triton", torch.float32), ("dense", torch.float64)):
        leaf = x.to(DEVICE, dtype).requires_grad_()
        loss = LOSSES["sup_con"].to(dtype)
        loss.backend = backend
        found[backend] = torch.autograd.grad(loss(leaf, y.to(DEVICE)), leaf)[0].double()
    torch.testing.assert_close(found["triton"], found["dense"], rtol=1e-4, atol=1e-7)
