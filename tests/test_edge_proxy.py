"""Edges of losses over proxies: classes, weights, extremes of numbers, errors, memory."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastdml
from fastdml import functional as F
from fastdml import losses
from fastdml.engine import library
from fastdml.reducers import ClassWeightedReducer

BACKENDS = ["dense", "chunked"] + (["native"] if library.load() is not None else [])
MODULES: dict[str, dict] = {
    "ProxyAnchorLoss": {},
    "ProxyNCALoss": {},
    "ProxyNCAPlusPlusLoss": {},
    "NormalizedSoftmaxLoss": {},
    "SmoothedCrossEntropyLoss": {},
    "CosFaceLoss": {},
    "ArcFaceLoss": {},
    "SubCenterArcFaceLoss": {},
    "SphereFaceLoss": {},
    "LargeMarginSoftmaxLoss": {},
    "SoftTripleLoss": {"centers_per_class": 3},
    "MultiProxyAnchorLoss": {"proxies_per_class": 2},
}
CLASSES, DIM = 7, 12
every = pytest.mark.parametrize("name", MODULES)


def build(name: str, classes: int = CLASSES, **arguments) -> losses.ProxyAnchorLoss:
    torch.manual_seed(5)
    loss = getattr(losses, name)(classes, DIM, **MODULES[name], **arguments)
    if name == "SmoothedCrossEntropyLoss":  # starts at 0
        torch.nn.init.normal_(loss.weight)
    return loss


def batch(size: int = 20, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(6)
    return torch.randn(size, DIM, generator=g), torch.randint(0, classes, (size,), generator=g)


def run(loss, x: Tensor, y: Tensor, *rest) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and the gradients of embeddings and proxies."""
    loss.zero_grad()
    leaf = x.clone().requires_grad_()
    value = loss(leaf, y, *rest)
    value.backward()
    weight = getattr(loss, loss.parameter_name)
    return value.detach(), leaf.grad, weight.grad


@every
def test_one_class_has_nothing_to_be_told_from(name: str) -> None:
    loss = build(name, classes=1)
    x, y = batch(classes=1)
    value, d_x, d_w = run(loss, x, y)
    assert torch.isfinite(value) and torch.isfinite(d_x).all() and torch.isfinite(d_w).all()
    if "Anchor" not in name:  # whose own class pulls by itself
        assert value == 0 and not d_x.any() and not d_w.any()


@every
def test_classes_that_the_batch_lacks(name: str) -> None:
    """They push all the same; in Proxy-Anchor they have no positive term."""
    loss = build(name)
    x, _ = batch()
    value, d_x, d_w = run(loss, x, torch.full((20,), 2))
    assert torch.isfinite(value) and torch.isfinite(d_x).all()
    assert (d_w.abs().sum() > 0) and torch.isfinite(d_w).all()


@every
def test_zero_embeddings_and_zero_proxies(name: str) -> None:
    loss = build(name)
    x, y = batch()
    x[3] = 0
    with torch.no_grad():
        loss.all_proxies[1] = 0
    for found in run(loss, x, y):
        assert torch.isfinite(found).all()


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_embeddings(name: str, dtype: torch.dtype) -> None:
    """As good as the same numbers in float32; proxies keep their type."""
    loss = build(name)
    x, y = batch()
    value, d_x, d_w = run(loss, x.to(dtype), y)
    true, true_x, true_w = run(loss, x.to(dtype).float(), y)
    assert value.dtype == torch.float32 and d_x.dtype == dtype and d_w.dtype == torch.float32
    assert torch.allclose(value, true, rtol=1e-5)
    assert torch.allclose(d_w, true_w, rtol=1e-3, atol=1e-5 * true_w.abs().max().item())
    largest = true_x.abs().max().item()
    assert torch.allclose(d_x.float(), true_x, rtol=1e-2, atol=1e-2 * largest)


# Extremes: the hardest similarities, scales and temperatures, against float64.

EXTREMES: dict[str, Callable[..., Tensor]] = {
    "proxy_anchor 1000": lambda *a, **o: F.proxy_anchor(*a, alpha=1000.0, **o),
    "proxy_nca 1000": lambda *a, **o: F.proxy_nca(*a, softmax_scale=1000.0, **o),
    "proxy_nca classic": lambda *a, **o: F.proxy_nca(
        *a, softmax_scale=1000.0, positive_in_denominator=False, **o
    ),
    "normalized_softmax 0.001": lambda *a, **o: F.normalized_softmax(*a, temperature=1e-3, **o),
    "cos_face 1000": lambda *a, **o: F.cos_face(*a, scale=1000.0, **o),
    "arc_face 1000": lambda *a, **o: F.arc_face(*a, scale=1000.0, **o),
    "sub-center 1000": lambda *a, **o: F.sub_center_arc_face(*a, scale=1000.0, sub_centers=2, **o),
    "sphere_face 1000": lambda *a, **o: F.sphere_face(*a, scale=1000.0, **o),
    "large_margin 1000": lambda *a, **o: F.large_margin_softmax(*a, scale=1000.0, **o),
    "soft_triple 1000": lambda *a, **o: F.soft_triple(*a, centers_per_class=2, la=1000.0, **o),
    "soft_triple 0.001": lambda *a, **o: F.soft_triple(*a, centers_per_class=2, gamma=1e-3, **o),
    "multi_proxy 1000": lambda *a, **o: F.multi_proxy_anchor(*a, proxies_per_class=2, alpha=1000.0, **o),
    "proxy_nca++ 1000": lambda *a, **o: F.proxy_nca(*a, softmax_scale=1000.0, smoothing=0.1, **o),
    "smoothed_ce": lambda x, y, p, **o: F.smoothed_cross_entropy(30 * x, y, 30 * p, **o),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", EXTREMES)
def test_extremes(name: str, backend: str) -> None:
    """Embeddings equal to their proxy, to another one, and opposite to either: s = 1 and -1 exactly."""
    basis = torch.eye(8, dtype=torch.float64)
    proxies = torch.cat([basis[:4], -basis[:2]])
    x = torch.stack([basis[0], basis[1], -basis[2], basis[3], -basis[0], basis[6]])
    if name.startswith(("sub", "soft", "multi")):
        y = torch.tensor([0, 1, 1, 0, 2, 2])
    else:
        y = torch.tensor([0, 0, 2, 3, 0, 5])
    results = []
    for dtype, how in ((torch.float64, "dense"), (torch.float32, backend)):
        leaves = [t.to(dtype).requires_grad_() for t in (x, proxies)]
        value = EXTREMES[name](leaves[0], y, leaves[1], backend=how)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for found, true in zip(results[1], results[0]):
        assert torch.isfinite(found).all() and torch.isfinite(true).all()
        assert (found - true).abs().max() <= 1e-5 * true.abs().max().clamp(min=1e-2)


def test_a_gap_of_many_digits_keeps_its_small_loss() -> None:
    """log(1 + 1e-20) is 0 in any type; the loss is 1e-20 and its gradient is not lost."""
    proxies = torch.eye(2)
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = F.cos_face(x, torch.tensor([0]), proxies, margin=0.0, scale=46.0)
    assert loss.item() == pytest.approx(math.exp(-46), rel=1e-4)


# Weights from index tuples.


@every
def test_index_tuples_weigh_samples(name: str) -> None:
    if name == "MultiProxyAnchorLoss":
        with pytest.raises(ValueError, match="indices_tuple: multi-proxies anchor has no such form"):
            build(name)(*batch(), (torch.tensor([0]),) * 4)
        return
    loss = build(name, reduction="sum")
    x, y = batch()
    tuples = (torch.tensor([0, 0, 1]), torch.tensor([2, 3, 3]), torch.tensor([0]), torch.tensor([5]))
    value, d_x, _ = run(loss, x, y, tuples)
    if name == "ProxyAnchorLoss":
        assert (value - run(loss, x, y)[0]).abs() > 1e-3 and d_x.any(1).all()
        return
    named = tuples[::2] if "NCA" in name else tuples
    count = torch.bincount(torch.cat(named), minlength=len(x))
    weight = count / count.max()
    parts = build(name, reduction="none")(x, y)
    assert torch.allclose(value, (weight * parts).sum(), rtol=1e-5)
    assert (d_x[weight == 0] == 0).all() and d_x[weight > 0].any(1).all()
    weighted = build(name, reduction="none")
    leaf = x.clone().requires_grad_()
    rows = weighted(leaf, y, tuples)
    assert torch.allclose(rows, weight * parts, rtol=1e-5, atol=1e-7)
    rows.sum().backward()
    assert torch.allclose(leaf.grad, d_x, rtol=1e-4, atol=1e-6)


def test_weighted_proxy_anchor_on_every_backend() -> None:
    x, y = batch()
    proxies = torch.randn(CLASSES, DIM)
    tuples = tuple(torch.randint(0, 20, (30,)) for _ in range(3))
    results = []
    for backend in BACKENDS:
        leaves = [t.double().requires_grad_() for t in (x, proxies)]
        value = F.proxy_anchor(leaves[0], y, leaves[1], tuples, backend=backend)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for result in results[1:]:
        for found, true in zip(result, results[0]):
            assert torch.allclose(found, true, rtol=1e-11, atol=1e-13)


# Several proxies per class.


def test_equal_sub_centers_share_nothing_twice() -> None:
    """Of equal proxies the first one is the nearest, on every backend."""
    x, y = batch()
    proxies = torch.randn(CLASSES, DIM).repeat_interleave(2, dim=0)
    for backend in BACKENDS:
        leaf = proxies.clone().requires_grad_()
        F.sub_center_arc_face(x, y, leaf, sub_centers=2, backend=backend).backward()
        assert not leaf.grad[1::2].any() and leaf.grad[::2].any(1).all()


def test_one_center_is_the_softmax() -> None:
    x, y = batch()
    proxies = torch.randn(CLASSES, DIM)
    for backend in BACKENDS:
        one = F.soft_triple(x, y, proxies, centers_per_class=1, backend=backend)
        assert torch.allclose(one, F.cos_face(x, y, proxies, margin=0.01, scale=20), rtol=1e-6)
        one = F.multi_proxy_anchor(x, y, proxies, proxies_per_class=1)
        assert torch.allclose(one, F.proxy_anchor(x, y, proxies), rtol=1e-6)


def test_multi_proxies_stay_together_in_small_blocks() -> None:
    x, y = batch(600)
    proxies = torch.randn(CLASSES * 3, DIM)
    arguments = (x.double(), y, proxies.double())
    whole = F.multi_proxy_anchor(*arguments, proxies_per_class=3)
    each = F.multi_proxy_anchor(*arguments, proxies_per_class=3, reduction="none")
    fastdml.set_workspace(64 << 10)
    try:
        cut = F.multi_proxy_anchor(*arguments, proxies_per_class=3)
    finally:
        fastdml.set_workspace(None)
    assert each.shape == (CLASSES,)
    assert torch.allclose(whole, cut, rtol=1e-12) and torch.allclose(each.mean(), whole, rtol=1e-12)


@pytest.mark.skipif("native" not in BACKENDS, reason="the compiled library is not installed")
def test_multi_proxies_stay_together_on_every_thread() -> None:
    """Threads share out rows in numbers that are no multiple of the proxies of a class."""
    torch.manual_seed(0)
    x, proxies = torch.randn(40, DIM), torch.randn(701 * 7, DIM)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaves = x.clone().requires_grad_(), proxies.clone().requires_grad_()
        loss = F.multi_proxy_anchor(
            leaves[0], torch.arange(40), leaves[1], proxies_per_class=7, backend="native"
        )
        found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0])
        for a, b in zip(found[0][1:], other[1:], strict=True):  # products of any number of threads
            assert (a - b).abs().max() <= 1e-5 * a.abs().max()


# What a caller can get wrong.


@every
def test_errors(name: str) -> None:
    loss = build(name)
    x, y = batch()
    for arguments, message in (
        ((x, y + CLASSES), rf"labels: expected values in \[0, {CLASSES}\)"),
        ((x, y - 1), "labels: expected values in"),
        ((x, y[:-1]), r"labels: expected shape \[20\]"),
        ((x, None), "labels: expected one label per row"),
        ((x[:, :-1], y), "expected embeddings of dimension 11"),
        ((x, y, None, x), "ref_emb: a proxy loss"),
        ((x, y, None, None, y), "ref_labels: a proxy loss"),
        ((x, y, (y,)), "indices_tuple:"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(*arguments)
    for arguments, message in (
        ({"num_classes": 0}, "num_classes: expected a positive integer"),
        ({"embedding_size": 2.5}, "embedding_size: expected a positive integer"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(losses, name)(**{"num_classes": 3, "embedding_size": 4, **arguments})
    with pytest.raises(ValueError, match="reduction: regularizers need a scalar loss"):
        build(name, reduction="none", weight_regularizer=lambda w: w.sum())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: losses.ArcFaceLoss(3, 4, margin=180), "margin: expected an angle"),
        (lambda: losses.ArcFaceLoss(3, 4, similarity="dot"), "similarity: expected 'cosine'"),
        (lambda: losses.ArcFaceLoss(3, 4, scale=0), "scale: expected a positive number"),
        (lambda: losses.SphereFaceLoss(3, 4, margin=0), "margin: expected an integer from 1 to 64"),
        (lambda: losses.SphereFaceLoss(3, 4, similarity="dot"), "similarity: expected 'projection'"),
        (lambda: losses.NormalizedSoftmaxLoss(3, 4, temperature=0), "temperature: expected"),
        (lambda: losses.ProxyNCALoss(3, 4, smoothing=1.0), r"smoothing: expected a number in \[0, 1\)"),
        (lambda: losses.ProxyNCALoss(3, 4, softmax_scale=-1), "softmax_scale: expected"),
        (lambda: losses.SoftTripleLoss(3, 4, tau=-1), "tau: expected a number of at least 0"),
        (lambda: losses.SoftTripleLoss(3, 4, gamma=0), "gamma: expected a positive number"),
        (
            lambda: losses.SmoothedCrossEntropyLoss(3, 4, similarity="cosine"),
            "bias: expected None with similarity 'cosine'",
        ),
        (
            lambda: F.soft_triple(torch.ones(2, 4), torch.zeros(2).long(), torch.ones(7, 4)),
            "proxies: expected 10 rows for every class, got 7",
        ),
        (
            lambda: F.smoothed_cross_entropy(
                torch.ones(2, 4), torch.zeros(2).long(), torch.ones(7, 4), torch.ones(6)
            ),
            r"bias: expected shape \[7\]",
        ),
    ],
)
def test_arguments_of_losses(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# Many classes.


@pytest.mark.unpoisoned
def test_a_hundred_thousand_classes_by_columns() -> None:
    """A classifier's weight is used where it is; its gradient is stored as it is stored."""
    classes = 100_000
    loss = losses.NormalizedSoftmaxLoss(classes, 16)
    x, y = torch.randn(8, 16), torch.randint(0, classes, (8,))
    value, _, d_w = run(loss, x, y)
    logits = loss.get_logits(x.double())
    true = torch.nn.functional.cross_entropy(logits, y)
    assert value.item() == pytest.approx(true.item(), rel=1e-5)
    assert d_w.shape == (16, classes) and d_w.is_contiguous()
    weight = loss.W.detach().double().requires_grad_()
    unit = torch.nn.functional.normalize(weight, dim=0)
    z = torch.nn.functional.normalize(x.double(), dim=1) @ unit / 0.05
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z, y), weight)
    assert (d_w - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_reducers_take_rows_that_are_proxies_in_the_order_of_the_classes():
    """More classes than samples, and a class's weight times its own row."""
    x, y = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([4, 4, 2])
    weights = torch.linspace(0.5, 2, 5)
    rows = losses.MultiProxyAnchorLoss(5, 4, reduction="none")
    loss = losses.MultiProxyAnchorLoss(5, 4, reducer=ClassWeightedReducer(weights))
    loss.load_state_dict(rows.state_dict())
    torch.testing.assert_close(loss(x, y), (rows(x, y) * weights).mean())


def test_a_users_reducer_takes_proxies_in_the_order_of_the_classes():
    """Its lists name classes, of which there are more than samples."""

    class Mine(ClassWeightedReducer):
        pass

    x, y = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([4, 4, 2])
    weights = torch.linspace(0.5, 2, 5)
    loss = losses.ProxyAnchorLoss(5, 4, reducer=ClassWeightedReducer(weights))
    true = loss(x, y)
    loss.reducer = Mine(weights)
    torch.testing.assert_close(loss(x, y), true)


@pytest.mark.parametrize("margin", [1, 3])
@pytest.mark.parametrize("name", ["SphereFaceLoss", "LargeMarginSoftmaxLoss"])
def test_a_sample_without_an_angle(name, margin):
    """Of length 0: no pull from its class, whatever runs; a margin of 1 is plain softmax."""
    x, y = (t[:4] for t in batch())
    x = x.double()
    x[1] = 0
    found = []
    for backend in BACKENDS:
        loss = build(name, margin=margin, backend=backend).double()
        leaf = x.clone().requires_grad_()
        loss(leaf, y).backward()
        found.append((leaf.grad, loss.W.grad))
    for other in found[1:]:
        assert all(map(torch.allclose, other, found[0]))
    w = loss.W.detach()
    w = w if name[0] == "L" else torch.nn.functional.normalize(w, dim=0)
    leaf = x.clone().requires_grad_()
    logits = leaf @ w
    if margin > 1:
        logits = logits - torch.eye(CLASSES, dtype=logits.dtype)[y] * logits  # the own class's stays 0
    torch.nn.functional.cross_entropy(logits, y).backward()
    assert torch.allclose(found[0][0][1], leaf.grad[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_proxies_of_a_class_and_many_samples(backend: str) -> None:
    """Of more pairs than a row otherwise has room for: in one block and in several."""
    for proxies, samples in ((64, 1024), (64, 3000)):
        torch.manual_seed(3)
        x, y = torch.randn(samples, 4), torch.arange(samples) % 40
        found = []
        for kind in (backend, "chunked"):
            torch.manual_seed(4)
            loss = losses.MultiProxyAnchorLoss(40, 4, proxies_per_class=proxies, backend=kind)
            found.append(run(loss, x, y))
        for f, t in zip(*found, strict=True):
            torch.testing.assert_close(f, t, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("similarity", ["distance", "raw_squared_distance"])
@pytest.mark.parametrize(
    "make",
    [
        lambda s: losses.SoftTripleLoss(4, 5, similarity=s),
        lambda s: losses.SmoothedCrossEntropyLoss(4, 5, bias=False, similarity=s),
        lambda s: losses.SigLIPLoss(similarity=s),
    ],
)
def test_distances_would_draw_apart_what_is_alike(make, similarity: str) -> None:
    with pytest.raises(
        ValueError, match=r"^similarity: expected one that is larger for what is more alike"
    ):
        make(similarity)


def test_rows_that_may_be_below_0_have_no_mean_over_those_above() -> None:
    with pytest.raises(ValueError, match=r"^reduction: expected another than 'nonzero'"):
        losses.ProxyNCALoss(4, 5, positive_in_denominator=False, reduction="nonzero")


def test_logits_of_distances_that_are_no_products() -> None:
    x = torch.randn(6, 5)
    loss = losses.ProxyNCALoss(
        4, 5, distance=fastdml.distances.LpDistance(p=1, normalize_embeddings=False)
    )
    torch.testing.assert_close(loss.get_logits(x), torch.cdist(x, loss.proxies, 1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_counts_may_be_floats_without_a_fraction(backend: str) -> None:
    x, y = torch.randn(12, 5), torch.arange(12) // 3
    for name, arguments in (
        ("FastAPLoss", {"num_bins": 10}),
        ("SoftBinAPLoss", {"num_bins": 20}),
        ("HistogramLoss", {"n_bins": 20}),
        ("SoftTripleLoss", {"num_classes": 4, "embedding_size": 5, "centers_per_class": 3}),
        ("SOPRCLoss", {"num_classes": 4, "table_size": 50}),
    ):
        found = []
        for kind in (int, float):
            torch.manual_seed(0)
            loss = getattr(losses, name)(
                **{k: kind(v) for k, v in arguments.items()}, backend=backend
            )
            found.append(loss(x, y).item())
        assert found[0] == found[1]
