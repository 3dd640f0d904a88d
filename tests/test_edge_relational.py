"""Edges of losses over relations: definitions, degenerate batches, errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from conftest import Stretched
from torch import Tensor

from fastdml import functional as F
from fastdml import losses
from fastdml.engine import library

BACKENDS = ["dense", "chunked"] + (["native"] if library.load() is not None else [])
# name -> loss of (embeddings, teacher)
LOSSES: dict[str, Callable[..., Tensor]] = {
    "relaxed_contrastive": F.relaxed_contrastive,
    "rkd_distance": F.rkd_distance,
    "rkd_angle": F.rkd_angle,
    "pkt": F.pkt,
    "listwise": F.listwise_self_distillation,
    "dark_rank": F.dark_rank,
    "log_ratio": lambda x, t, **o: F.log_ratio(x, labels=t, **o),
    "dense_triplet": lambda x, t, **o: F.dense_triplet(x, labels=t, **o),
}
every = pytest.mark.parametrize("name", LOSSES)
backends = pytest.mark.parametrize("backend", BACKENDS)


def batch(size: int = 14, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    x = torch.randn(size, 6, generator=g, dtype=torch.float64)
    return x.to(dtype), torch.randn(size, 9, generator=g, dtype=torch.float64).to(dtype)


def run(name: str, x: Tensor, t: Tensor, **options) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = LOSSES[name](leaf, t, **options)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


# The definitions, written as sums over samples.


def cosines(x: Tensor) -> Tensor:
    x = torch.nn.functional.normalize(x, dim=1)
    return x @ x.t()


def distances(x: Tensor) -> Tensor:
    return (x[:, None] - x[None]).square().sum(2).clamp(min=1e-40).sqrt() * (1 - torch.eye(len(x)))


def angles(x: Tensor) -> Tensor:
    """[j, i, k] cosine of the angle at j."""
    e = torch.nn.functional.normalize(x[None] - x[:, None], dim=2)
    return e @ e.transpose(1, 2)


def huber(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1, x * x / 2, x.abs() - 0.5)


def log_ratios(x: Tensor, t: Tensor) -> Tensor:
    """The paper's sum over pairs, of every anchor."""
    n, dim = x.shape
    d = ((x[:, None] - x[None]).square().sum(2) + 1e-4 / dim).sqrt()
    u = (d + 1e-6).log() - (torch.cdist(t, t) + 1e-6).log()
    total = 0
    for a in range(n):
        mine = torch.cat([u[a, :a], u[a, a + 1 :]])
        pairs = (mine[:, None] - mine).square().triu(1).sum()
        total = total + pairs * 2 / ((n - 1) * (n - 2)) / n
    return total


def dense_triplets(x: Tensor, t: Tensor) -> Tensor:
    n = len(x)
    d, y = 2 - 2 * cosines(x), torch.cdist(t, t)
    total = 0
    for a in range(n):
        others = [j for j in range(n) if j != a]
        terms = [
            (d[a, j] - d[a, k] + 0.03).relu()
            for j in others
            for k in others
            if y[a, j] < y[a, k]
        ]
        total = total + torch.stack(terms).mean() / n
    return total


def dark_ranks(x: Tensor, t: Tensor) -> Tensor:
    n = len(x)
    score = -3 * (2 - 2 * cosines(x)).clamp(min=0) ** 1.5
    total = 0
    for a in range(n):
        near = cosines(t)[a].index_fill(0, torch.tensor(a), -9).argsort(descending=True)[:4]
        s = score[a, near]
        total = total - sum(s[k] - s[k:].logsumexp(0) for k in range(4)) / n
    return total


def relaxed(x: Tensor, t: Tensor) -> Tensor:
    d, w = distances(x), (-(2 - 2 * cosines(t))).exp()
    r = d / d.mean(1, keepdim=True)
    terms = w * r**2 + (1 - w) * (1 - r).relu() ** 2
    return (terms * (1 - torch.eye(len(x)))).sum() / len(x)


def scaled(x: Tensor) -> Tensor:
    d = distances(x)
    return d / d[d > 1e-12].mean()


def affinities(x: Tensor) -> Tensor:
    k = (cosines(x) + 1) / 2
    return k / k.sum(1, keepdim=True)


TRUTH: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relaxed_contrastive": relaxed,
    "rkd_distance": lambda x, t: huber(scaled(x) - scaled(t)).mean(),
    "rkd_angle": lambda x, t: huber(angles(x) - angles(t)).mean(),
    "pkt": lambda x, t: (
        affinities(t) * ((affinities(t) + 1e-7) / (affinities(x) + 1e-7)).log()
    ).mean(),
    "listwise": lambda x, t: torch.nn.functional.kl_div(
        (x @ x.t()).log_softmax(1), (t @ t.t()).softmax(1), reduction="batchmean"
    ),
    "dark_rank": dark_ranks,
    "log_ratio": log_ratios,
    "dense_triplet": dense_triplets,
}


@every
@backends
def test_definition(name: str, backend: str) -> None:
    x, t = batch()
    value, gradient = run(name, x, t, backend=backend)
    leaf = x.clone().requires_grad_()
    true = TRUTH[name](leaf, t)
    (expected,) = torch.autograd.grad(true, leaf)
    assert value.item() == pytest.approx(true.item(), rel=1e-9)
    assert (gradient - expected).abs().max() <= 1e-8 * expected.abs().max()


@every
def test_draws_in_float32(name: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        size = int(torch.randint(3, 40, ()))
        x, t = torch.randn(size, 5), torch.randn(size, 7)
        value, gradient = run(name, x, t, backend="auto")
        true, expected = run(name, x.double(), t.double(), backend="dense")
        assert value.item() == pytest.approx(true.item(), rel=1e-4, abs=1e-6)
        assert (gradient - expected).abs().max() <= 1e-3 * expected.abs().max() + 1e-5


@every
@backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["equal", "two equal", "zeros", "one", "two", "opposite", "scale"])
def test_degenerate_batches_are_finite(
    name: str, backend: str, dtype: torch.dtype, kind: str
) -> None:
    x, t = batch()
    if kind == "equal":
        x, t = x[:1].repeat(5, 1), t[:1].repeat(5, 1)
    elif kind == "two equal":
        x[1], t[2] = x[0], t[0]
    elif kind == "zeros":
        x[:3], t[1:4] = 0, 0
    elif kind in ("one", "two"):
        count = 1 if kind == "one" else 2
        x, t = x[:count], t[:count]
    elif kind == "opposite":
        x[1], t[1] = -x[0], -t[0]
    elif kind == "scale":
        x, t = x * 50, t * 50
    for found in run(name, x.to(dtype), t.to(dtype), backend=backend):
        assert torch.isfinite(found).all()


# Numbers at the ends of what is sensible, in the loss itself.
EXTREME: dict[str, Callable[..., Tensor]] = {
    "cold": lambda x, t, **o: F.listwise_self_distillation(
        x, t, temperature=1e-3, similarity="cosine", **o
    ),
    "steep": lambda x, t, **o: F.dark_rank(x, t, alpha=1e3, **o),
    "narrow": lambda x, t, **o: F.relaxed_contrastive(x, t, sigma=1e-3, **o),
    "wide": lambda x, t, **o: F.relaxed_contrastive(x, t, sigma=1e3, delta=1e3, **o),
    "no epsilon": lambda x, t, **o: F.pkt(x, t, epsilon=1e-12, **o),
}


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", EXTREME)
def test_extremes_are_right(name: str, dtype: torch.dtype, backend: str) -> None:
    """To the rounding of float32 similarities times the scale: the inputs themselves are rounded first."""
    x, t = batch(dtype=dtype)
    if name == "cold":
        # Else each sample is nearest itself, for the teacher too, and the loss is 0.
        x[1::2] = x[::2] + 0.03 * x[1::2]
    found = []
    for kind, how in ((torch.float64, "dense"), (dtype, backend)):
        leaf = x.to(kind).requires_grad_()
        value = EXTREME[name](leaf, t.to(kind), backend=how)
        (gradient,) = torch.autograd.grad(value, leaf)
        found.append((value.double(), gradient.double()))
    (value, gradient), (ours, slope) = found
    assert gradient.abs().max() > 0
    assert abs(ours - value) <= 1e-3 * abs(value)
    # A gradient in half precision is rounded to it.
    assert (slope - gradient).abs().max() <= 1e-2 * gradient.abs().max()


@backends
@pytest.mark.parametrize("name", ["relaxed_contrastive", "log_ratio"])
def test_equal_embeddings_do_not_pull(name: str, backend: str) -> None:
    """A distance of 0 has no direction; beside a third sample there is a gradient, and it is finite."""
    x, t = batch()
    x, t = x[[0, 0, 1]], t[:3]
    _, gradient = run(name, x, t, backend=backend)
    assert gradient.isfinite().all() and gradient[2].norm() > 0
    x, t = x[:2], t[:2]
    _, gradient = run(name, x, t, backend=backend)
    assert (gradient == 0).all()


@every
def test_the_teacher_has_no_gradient(name: str) -> None:
    x, t = batch()
    t.requires_grad_()
    LOSSES[name](x.requires_grad_(), t, backend="chunked").backward()
    assert t.grad is None and x.grad.any()


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle", "pkt", "listwise"])
def test_a_student_like_its_teacher_has_no_loss(name: str) -> None:
    x, _ = batch()
    value, gradient = run(name, x, x.clone(), backend="auto")
    # PKT's epsilon of 1e-7 stands beside the probabilities, so that its minimum is as far from here.
    flat = 1e-7 if name == "pkt" else 1e-9
    assert abs(value.item()) < 1e-12 and gradient.abs().max() < flat


def test_one_anchor_is_a_row_of_all_anchors() -> None:
    x, t = batch()
    y = torch.cdist(t, t)[0, 1:]
    rows = F.log_ratio(x, labels=t, reduction="none")
    assert F.log_ratio(x, label_distance=y).item() == pytest.approx(rows[0].item(), rel=1e-12)
    rows = F.dense_triplet(x, labels=t, reduction="none")
    assert F.dense_triplet(x, label_distance=y).item() == pytest.approx(rows[0].item(), rel=1e-12)


@pytest.mark.skipif(library.load() is None, reason="the compiled library is not installed")
@pytest.mark.parametrize("size", [2, 3, 16, 17, 31, 63, 64, 65, 66, 129, 270, 1100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dense_triplets_of_any_number_with_ties(size: int, dtype: torch.dtype) -> None:
    """Every pair compared, at lengths around those of a vector and of a grid's cells."""
    g = torch.Generator().manual_seed(size)
    # Whole numbers: their squared distances are exact, and many are equal.
    x = torch.randint(-2, 3, (size, 3), generator=g).to(dtype)
    y = torch.randint(0, max(2, size // 4), (size - 1,), generator=g).to(dtype)
    for margin in (0.5, -2.5, 100.0):
        leaf, true = x.clone().requires_grad_(), x.double().requires_grad_()
        loss = F.dense_triplet(
            leaf, label_distance=y, margin=margin, normalize=False, backend="native"
        )
        d = (true[1:] - true[0]).square().sum(1) + 1e-4 / 3
        ordered = y[:, None] < y
        terms = torch.where(ordered, (d[:, None] - d + margin).relu(), 0.0)
        expected = terms.sum() / ordered.sum().clamp(min=1)
        assert loss.item() == pytest.approx(expected.item(), rel=2e-6, abs=1e-6)
        (found,), (gradient,) = torch.autograd.grad(loss, leaf), torch.autograd.grad(expected, true)
        assert (found - gradient).abs().max() <= 2e-5 * gradient.abs().max() + 1e-12


@backends
@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("neighbors", [1, 3, 13, 50])
def test_dark_rank_of_any_list_and_power(backend: str, beta: float, neighbors: int) -> None:
    x, t = batch()
    leaf = x.clone().requires_grad_()
    value, found = run("dark_rank", x, t, backend=backend, beta=beta, neighbors=neighbors)
    score = -3 * (2 - 2 * cosines(leaf)).clamp(min=1e-30) ** (beta / 2)
    order = cosines(t).fill_diagonal_(-9).argsort(1, descending=True)[:, : min(neighbors, 13)]
    z = score.gather(1, order)
    true = sum(z[:, k:].logsumexp(1) - z[:, k] for k in range(z.shape[1])).mean()
    (gradient,) = torch.autograd.grad(true, leaf)
    assert value.item() == pytest.approx(true.item(), rel=1e-9, abs=1e-12)
    assert (found - gradient).abs().max() <= 1e-8 * gradient.abs().max() + 1e-12


def test_squares_of_both_distances_multiply_the_log_ratio_by_four() -> None:
    torch.manual_seed(0)
    x, t = torch.randn(9, 200, dtype=torch.float64) * 30, torch.randn(9, 3, dtype=torch.float64) * 30
    plain = F.log_ratio(x, labels=t)
    both = F.log_ratio(x, labels=t, squared_embedding=True, squared_label=True)
    assert both.item() == pytest.approx(4 * plain.item(), rel=1e-5)


def test_labels_may_be_numbers() -> None:
    x, _ = batch()
    y = torch.arange(14)
    assert torch.equal(F.log_ratio(x, labels=y), F.log_ratio(x, labels=y.double()[:, None]))


def test_modules_are_the_functions() -> None:
    x, t = batch()
    for module, function in (
        (losses.RelaxedContrastiveLoss(0.5, 1.2), lambda: F.relaxed_contrastive(x, t, sigma=0.5, delta=1.2)),
        (losses.RKDDistanceLoss(weight=2), lambda: 2 * F.rkd_distance(x, t)),
        (losses.RKDAngleLoss(), lambda: F.rkd_angle(x, t)),
        (losses.PKTLoss(), lambda: F.pkt(x, t)),
        (losses.DarkRankLoss(neighbors=2), lambda: F.dark_rank(x, t, neighbors=2)),
        (
            losses.ListwiseSelfDistillationLoss(2.0, weight=3),
            lambda: 3 * F.listwise_self_distillation(x, t, temperature=2.0),
        ),
        (losses.LogRatioLoss(normalize=True), lambda: F.log_ratio(x, t, normalize=True)),
        (losses.DenseTripletLoss(0.2), lambda: F.dense_triplet(x, t, margin=0.2)),
    ):  # fmt: skip
        assert torch.equal(module(x, t), function())
        repr(module)


def test_the_published_schedule_of_weights() -> None:
    loss = losses.ListwiseSelfDistillationLoss(2.0)
    assert loss.scheduled_weight(0, 150) == 0
    assert math.isclose(loss.scheduled_weight(75, 150, 50), 100)


def test_rkd_angle_twice_through_one_graph() -> None:
    x, t = batch()
    x.requires_grad_()
    loss = 3 * F.rkd_angle(x, t)
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    loss.backward()
    assert torch.equal(x.grad, 2 * once)
    (first,) = torch.autograd.grad(F.rkd_angle(x, t), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        first.sum().backward()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, t: F.pkt(x, t[:-1]), "teacher: expected 14 rows"),
        (lambda x, t: F.pkt(x, t[0]), r"teacher: expected shape \[batch, dim\]"),
        (lambda x, t: F.pkt(x, t.long()), "teacher: expected a floating-point tensor"),
        (lambda x, t: F.rkd_angle(x, t, reduction="sum"), "reduction: expected 'mean'"),
        (lambda x, t: F.relaxed_contrastive(x, t, sigma=0), "sigma: expected a positive number"),
        (lambda x, t: F.listwise_self_distillation(x, t, temperature=-1), "temperature: expected"),
        (lambda x, t: F.dark_rank(x, t, neighbors=0), "neighbors: expected a positive integer"),
        (lambda x, t: F.dark_rank(x, t, beta=0.5), "beta: expected a number of at least 1"),
        (lambda x, t: F.log_ratio(x), "labels: expected either labels or label_distance"),
        (lambda x, t: F.log_ratio(x, t, t[0]), "labels: expected either labels or label_distance"),
        (lambda x, t: F.log_ratio(x, label_distance=t[0]), r"label_distance: expected shape \[13\]"),
        (lambda x, t: F.dense_triplet(x, t[:5]), "labels: expected 14 rows"),
    ],
)
def test_errors(call: Callable[[Tensor, Tensor], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*batch())


@pytest.mark.parametrize("backend", BACKENDS)
def test_projections_of_samples_and_of_their_teacher(backend):
    """Each taken as it is as an anchor, and at length 1 as a candidate."""
    g = torch.Generator().manual_seed(2)
    x, teacher = (torch.randn(9, d, generator=g, dtype=torch.float64) for d in (5, 7))
    loss = losses.ListwiseSelfDistillationLoss(similarity="projection", backend=backend)
    leaf, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = loss(leaf, teacher)
    mine, theirs = (t @ torch.nn.functional.normalize(t, dim=1).t() for t in (plain, teacher))
    p = theirs.softmax(1)
    true = (p * (p.log() - mine.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(found, true, rtol=1e-11, atol=0)
    got, expected = torch.autograd.grad(found, leaf)[0], torch.autograd.grad(true, plain)[0]
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_lists_are_of_what_is_nearest_on_distances_too():
    """Also on a user's, whose own parameters get no gradient by the teacher's."""
    x, t = batch()
    distance = Stretched()
    s = -distances(x)
    far = -distances(t)
    true = torch.nn.functional.kl_div(
        (1.5 * s).log_softmax(1), (1.5 * far).log_softmax(1), log_target=True, reduction="batchmean"
    )
    value = losses.ListwiseSelfDistillationLoss(distance=distance)(x, t)
    torch.testing.assert_close(value, true)
    step = 1e-6
    with torch.no_grad():
        teacher = (1.5 * far).log_softmax(1)
        ends = [
            torch.nn.functional.kl_div(
                (k * s).log_softmax(1), teacher, log_target=True, reduction="batchmean"
            )
            for k in (1.5 + step, 1.5 - step)
        ]
    (slope,) = torch.autograd.grad(value, distance.scale)
    assert slope.item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), rel=1e-5)
    raw = F.listwise_self_distillation(x, t, similarity="raw_distance", temperature=1 / 1.5)
    torch.testing.assert_close(raw, true)
