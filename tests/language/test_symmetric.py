"""The symmetric schedule: one set, each pair visited once for both its ends."""

import re

import pytest
import torch
from described import binomial_deviance, circle, contrastive, multi_similarity, sup_con
from test_row_loss import LOSSES, hinge

import fastdml
from fastdml.engine import library
from fastdml.language import amax, amin, count, log_sum_exp, softplus, sum, where

pytestmark = pytest.mark.skipif(library.load() is None, reason="no compiled library")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTDML_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def workspace():
    yield fastdml.set_workspace
    fastdml.set_workspace(None)


def two_passes(p, scale):
    """The second reads statistics of the first, and positives only."""
    level = log_sum_exp(scale * p.s, where=p.negative)
    spread = amax(p.s, where=p.pair) - amin(p.s, where=p.pair)
    return sum(softplus(level - scale * p.s), where=p.positive) + where(
        count(where=p.pair) > 0, spread, 0.0
    )


MINED = {"alpha": 2.0, "beta": 30.0, "base": 0.5, "max_positive": 0.999, "epsilon": 0.1}
LEARNT = torch.nn.Parameter(torch.tensor(9.0))
MADE = {
    "multi_similarity": (multi_similarity, "cosine", MINED),
    "binomial_deviance": (
        binomial_deviance,
        "cosine",
        {"alpha": 2.0, "beta": 5.0, "base": 0.5, "max_positive": 9.0},
    ),
    "sup_con": (sup_con, "cosine", {"scale": LEARNT, "pull": 1.0, "push": 1.0}),
    "two_passes": (two_passes, "cosine", {"scale": 8.0}),
    "hinge": (hinge, "dot", {"margin": 1.1}),
    # Exponents too far apart for a bound, in double precision too: the row's largest is found first.
    "circle": (circle, "cosine", {"m": 0.4, "gamma": 200.0}),
}


def made(name):
    function, similarity, parameters = MADE[name]
    return fastdml.row_loss(function, similarity, parameters=parameters).double()


def gradients(loss, backend, n, reduction="mean", dtype=torch.float64):
    g = torch.Generator().manual_seed(n)
    x = torch.randn(n, 9, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    y = torch.randint(0, max(1, n // 5), (n,), generator=g)
    if n > 4:
        y[0] = 10_000  # a row without positives
        with torch.no_grad():
            x[2] = 0.0  # no direction
            x[4] = x[3]
    loss.backend, loss.reduction = backend, reduction
    value = loss(x, y)
    weight = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)
    leaves = [x, *loss.parameters()]
    return [value.detach(), *torch.autograd.grad((value * (weight + 3)).sum(), leaves)]


@pytest.mark.parametrize("name", MADE)
def test_equals_the_dense_specification(name, workspace):
    workspace(64 << 10)  # many trapezoids
    loss = made(name)
    for n in (1, 2, 5, 16, 67, 300):
        for reduction in ("mean", "none") if n in (5, 300) else ("sum",):
            found = gradients(loss, "symmetric", n, reduction)
            for a, b in zip(found, gradients(loss, "dense", n, reduction)):
                assert torch.isfinite(a).all()
                size = max(1.0, float(b.abs().max()))
                assert float((a - b).abs().max()) <= 2e-10 * size, f"{n} {reduction}"


def test_in_single_precision_it_is_as_exact_as_rows():
    loss = fastdml.row_loss(multi_similarity, parameters=MINED)
    exact = gradients(loss, "dense", 700)
    rows = gradients(loss, "native", 700, dtype=torch.float32)
    found = gradients(loss, "symmetric", 700, dtype=torch.float32)
    for a, b, c in zip(found, rows, exact):
        assert (a - c).abs().max() <= 3 * (b - c).abs().max() + 1e-6 * c.abs().max()


def test_the_same_bits_at_every_run_and_thread():
    loss = fastdml.row_loss(multi_similarity, parameters=MINED)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            first, second = (
                gradients(loss, "symmetric", 333, dtype=torch.float32) for _ in range(2)
            )
            assert all(torch.equal(a, b) for a, b in zip(first, second))
            exact = gradients(loss, "dense", 333)
            assert (first[1] - exact[1]).abs().max() < 1e-5 * exact[1].abs().max()
    finally:
        torch.set_num_threads(before)


def test_chosen_by_size_and_explained():
    loss = fastdml.row_loss(hinge, parameters={"margin": 0.2})
    for n, taken in ((4096, "symmetric"), (256, "native")):
        x, y = torch.randn(n, 8), torch.arange(n) // 4
        assert re.search(rf"runs on\s+{taken}", str(fastdml.explain(loss, x, y)))
    text = str(fastdml.explain(loss, torch.randn(900, 8), torch.arange(900) // 4))
    assert "each pair once for both its ends: 1 sweep for statistics" in text


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda: LOSSES["distilled"], "a teacher"),
        (lambda: fastdml.losses.MultiSimilarityLoss(), "has no streamed form"),
        (lambda: fastdml.row_loss(hinge, "raw_distance", parameters={"margin": 1.0}), "raw_distance"),
    ],
)  # fmt: skip
def test_says_why_not(loss, expected):
    x, y = torch.randn(20, 6), torch.arange(20) // 4
    built = loss()
    built.backend = "symmetric"
    further = {"teacher": x} if built is LOSSES["distilled"] else {}
    with pytest.raises(ValueError, match=expected):
        built.float()(x, y, **further)


def test_not_of_two_sets():
    loss = fastdml.row_loss(hinge, parameters={"margin": 0.1}, backend="symmetric")
    x, y = torch.randn(20, 6), torch.arange(20) // 4
    with pytest.raises(ValueError, match="two sets"):
        loss(x, y, None, torch.randn(9, 6), torch.arange(9))


def test_contrastive_of_several_outputs_is_combined():
    """Weights of several outputs come through the rows' numbers: the engine's own combined loss."""
    from fastdml.language.program import program
    from fastdml.language.row import trace
    from fastdml.language.stream import StreamPrinter

    made = trace(contrastive, ("pos_margin", "neg_margin", "sign"))
    text = StreamPrinter(program(made, reference="bound"), "contrastive").text
    assert "row.weight(0, 4)" in text and "reads(Pass<1>) { return 2; }" in text
