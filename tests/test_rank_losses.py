"""What rank losses must hold beyond what every loss must: SPEC 4.2, limits, ranges, other libraries."""

import numpy as np
import pytest
import torch
from conftest import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdml import functional as F
from fastdml import losses

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def problem(sizes, dim=8, seed=0, spread=1.0):
    """Noisy classes of the given sizes, shuffled, in float64."""
    g = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    y = y[torch.randperm(len(y), generator=g)]
    centres = torch.randn(len(sizes), dim, generator=g, dtype=torch.float64)
    noise = torch.randn(len(y), dim, generator=g, dtype=torch.float64)
    return centres[y] + spread * noise, y


def average_precision(x, y, own):
    """Mean over queries of scikit-learn's average precision; own: a query is a candidate of its own."""
    s = torch.nn.functional.normalize(x, dim=1)
    s = (s @ s.t()).fill_diagonal_(2.0).numpy()
    found = []
    for i in range(len(y)):
        others = np.ones(len(y), dtype=bool) if own else np.arange(len(y)) != i
        relevant = (y == y[i]).numpy()[others]
        if relevant.any():
            found.append(sklearn_metrics.average_precision_score(relevant, s[i][others]))
    return float(np.mean(found))


SMOOTH = {
    "smooth_ap": lambda x, y, t, **o: F.smooth_ap(x, y, temperature=t, **o),
    "sup_ap": lambda x, y, t, **o: F.sup_ap(
        x, y, temperature=t, rho=0.0, offset=1.0, start=0.0, delta=0.0, **o
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_ap_tends_to_average_precision(name, backend):
    x, y = problem([2, 3, 5, 7, 1], spread=1.5)
    value = SMOOTH[name](x, y, 1e-7, backend=backend)
    assert value.item() == pytest.approx(1 - average_precision(x, y, own=True), abs=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fast_ap_tends_to_average_precision(backend):
    """With bins much finer than the gaps between distances, but for half a bin's own pairs."""
    x, y = problem([2, 3, 5, 7], dim=3, spread=1.5)
    value = F.fast_ap(x, y, num_bins=256, backend=backend)
    assert value.item() == pytest.approx(1 - average_precision(x, y, own=False), abs=0.05)


@pytest.mark.parametrize("backend", BACKENDS)
def test_recall_tends_to_recall(backend):
    x, y = problem([2, 3, 5, 7], spread=1.5)
    s = torch.nn.functional.normalize(x, dim=1)
    s = (s @ s.t()).fill_diagonal_(-2.0)
    order = s.argsort(1, descending=True)
    hit = y[order] == y[:, None]
    ks = (1, 2, 4)
    sizes = (y[:, None] == y).sum(1) - 1
    # A positive at a rank of exactly k is half within k.
    weight = [torch.tensor([1.0] * (k - 1) + [0.5]) for k in ks]
    recall = [(hit[:, :k] * w).sum(1) / sizes.clamp(max=k) for k, w in zip(ks, weight)]
    value = F.recall_at_k(
        x, y, k=ks, rank_temperature=1e-8, recall_temperature=1e-3, exclude_self=True,
        backend=backend, reduction="none",
    )
    assert torch.allclose(value, 1 - torch.stack(recall).mean(0).double(), atol=1e-4)


AP_LOSSES = {
    "soprc": F.soprc,
    "smooth_ap": F.smooth_ap,
    "fast_ap": F.fast_ap,
    "soft_bin_ap": F.soft_bin_ap,
    "recall_at_k": F.recall_at_k,
    "sup_ap": F.sup_ap,
}


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
    spread=st.floats(0.01, 5),
    name=st.sampled_from(sorted(AP_LOSSES)),
)
def test_average_precision_is_in_range_and_blind_to_order(sizes, seed, spread, name):
    x, y = problem(sizes, seed=seed, spread=spread)
    value = AP_LOSSES[name](x, y)
    assert -1e-12 <= value <= 1 + 1e-12
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    again = AP_LOSSES[name](x[order], 1000 - 7 * y[order])
    assert again.item() == pytest.approx(value.item(), abs=1e-10)


# Rows without positives or negatives: SPEC 4.2.
def row_losses(name, x, y, **options):
    return getattr(F, name)(x, y, reduction="none", **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["recall_at_k", "fast_ap"])
def test_queries_without_positives_are_left_out_of_the_mean(name, backend):
    x, y = problem([3, 4, 1, 1, 1])
    rows = row_losses(name, x, y, backend=backend)
    single = torch.bincount(y)[y] == 1
    assert (rows[single] == 0).all() and (rows[~single] > 0).any()
    value = getattr(F, name)(x, y, backend=backend)
    assert value.item() == pytest.approx(rows[~single].mean().item(), rel=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["sup_ap", "smooth_ap"])
def test_a_query_alone_still_has_itself(name, backend):
    """Perfectly ranked: the query is nearest to itself, and Smooth-AP's half steps are far away."""
    x = torch.eye(4, dtype=torch.float64)
    rows = row_losses(name, x, torch.arange(4), backend=backend)
    assert rows.abs().max() < 1e-12
    # A stranger at the query's own place ties with it.
    x[1] = x[0]
    rows = row_losses(name, x, torch.arange(4), backend=backend)
    assert rows[:2].tolist() == pytest.approx([1 / 3] * 2, abs=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_alone_does_not_count_in_pnp(backend):
    """Without another positive it has no loss even where a stranger ties with it, nor a part in the mean.
    Beside a second set, one positive is enough."""
    x = torch.eye(5, dtype=torch.float64)
    x[1] = x[2] = x[0]
    y = torch.tensor([0, 1, 0, 2, 3])
    rows = row_losses("pnp", x, y, backend=backend)
    assert rows.tolist() == pytest.approx([0.5, 0, 0.5, 0, 0], abs=1e-9)
    loss = losses.PNPLoss(backend=backend)
    assert loss(x, y).item() == pytest.approx(0.5, abs=1e-9)
    assert loss(x[:2], y[:2], ref_emb=x[:2].clone(), ref_labels=y[:2]).item() == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name", ["sup_ap", "pnp", "auc", "triplet_margin", "tuplet_margin", "fast_ap", "soft_bin_ap"]
)
def test_without_negatives_there_is_nothing_to_lose(name, backend):
    x, _ = problem([6])
    x.requires_grad_()
    value = getattr(F, name)(x, torch.zeros(6, dtype=torch.long), backend=backend)
    (gradient,) = torch.autograd.grad(value, x)
    assert abs(value.item()) < 1e-12 and gradient.abs().max() < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["recall_at_k", "fast_ap", "triplet_margin", "tuplet_margin"])
def test_no_pair_at_all_gives_zero_and_a_zero_gradient(name, backend):
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    value = getattr(F, name)(x, torch.arange(5), backend=backend)
    (gradient,) = torch.autograd.grad(value, x)
    assert value.item() == 0 and not gradient.any()


def test_triplets_without_an_active_one():
    x = torch.eye(3, dtype=torch.float64).repeat(2, 1).requires_grad_()
    value = F.triplet_margin(x, torch.arange(3).repeat(2))
    (gradient,) = torch.autograd.grad(value, x)
    assert value.item() == 0 and not gradient.any()


def test_triplet_normalizers():
    x, y = problem([3, 4, 2], spread=3.0)
    d = torch.cdist(*(torch.nn.functional.normalize(x, dim=1),) * 2)
    same = y[:, None] == y
    positive = same & ~torch.eye(len(y), dtype=torch.bool)
    wanted = positive[:, :, None] & ~same[:, None, :]
    hinge = (d[:, :, None] - d[:, None, :] + 0.05).relu()[wanted]
    sums = {
        "active": hinge.sum() / (hinge > 0).sum(),
        "triplets": hinge.mean(),
        "anchors": hinge.sum() / len(y),
    }
    for normalizer, expected in sums.items():
        found = F.triplet_margin(x, y, normalizer=normalizer)
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_query_takes_no_place_in_its_own_ranking_if_excluded(backend):
    x, y = problem([3, 3, 3], spread=0.3)
    released = F.recall_at_k(x, y, backend=backend)
    clean = F.recall_at_k(x, y, exclude_self=True, backend=backend)
    assert clean < released  # each rank is smaller by about one
    # Other candidates: there is no self to speak of.
    a = F.recall_at_k(x, y, ref_emb=x.clone(), ref_labels=y, backend=backend)
    b = F.recall_at_k(x, y, ref_emb=x.clone(), ref_labels=y, exclude_self=True, backend=backend)
    assert torch.equal(a, b)


def test_the_released_scale_of_fast_ap():
    x, y = problem([4, 4, 4])
    plain = x.clone().requires_grad_()
    scaled = x.clone().requires_grad_()
    a, b = F.fast_ap(plain, y), F.fast_ap(scaled, y, reference_scale=True)
    a.backward()
    b.backward()
    assert a.item() == pytest.approx(b.item(), rel=1e-12)
    assert torch.allclose(scaled.grad, plain.grad * len(y) / 2, rtol=1e-12)


# pytorch-metric-learning, where it is right.
PML = {
    "triplet": (lambda p: p.TripletMarginLoss(), lambda: losses.TripletMarginLoss()),
    "triplet smooth": (
        lambda p: p.TripletMarginLoss(margin=0.2, smooth_loss=True),
        lambda: losses.TripletMarginLoss(margin=0.2, smooth_loss=True),
    ),
    "fast_ap": (lambda p: p.FastAPLoss(), lambda: losses.FastAPLoss()),
    "tuplet": (lambda p: p.TupletMarginLoss(), lambda: losses.TupletMarginLoss()),
    "ranked list": (
        lambda p: p.RankedListLoss(margin=0.5, Tn=3, Tp=1),
        lambda: losses.RankedListLoss(margin=0.5, Tn=3, Tp=1, detach_weights=False),
    ),
    **{
        f"pnp {v}": (
            lambda p, v=v: p.PNPLoss(variant=v), lambda v=v: losses.PNPLoss(variant=v)
        )
        for v in ("Ds", "Dq", "Iu", "Ib", "O")
    },
}


@pytest.mark.parametrize("name", PML)
def test_parity_with_pytorch_metric_learning(name):
    pml = pytest.importorskip("pytorch_metric_learning.losses")
    theirs, ours = PML[name]
    for seed in range(5):
        alone = [1, 1] if "pnp" in name else []  # in a class of their own
        x, y = problem([3, 4, 5, 2, *alone], seed=seed, spread=1.5)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected, found = theirs(pml)(a, y), ours()(b, y)
        expected.backward()
        found.backward()
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)
        assert (a.grad - b.grad).abs().max() < 1e-7 * a.grad.abs().max()


@pytest.mark.parametrize(
    "make, argument",
    [
        (lambda: losses.SupAPLoss(temperature=0), "temperature"),
        (lambda: losses.SupAPLoss(rho=-1), "rho"),
        (lambda: losses.RecallAtKLoss(k=()), "k"),
        (lambda: losses.RecallAtKLoss(k=(0,)), "k"),
        (lambda: losses.RecallAtKLoss(k=range(1, 14)), "k"),
        (lambda: losses.AUCLoss(kind="hinge"), "kind"),
        (lambda: losses.TripletMarginLoss(normalizer="rows"), "normalizer"),
        (lambda: losses.FastAPLoss(num_bins=0), "num_bins"),
        (lambda: losses.FastAPLoss(num_bins=257), "num_bins"),
        (lambda: losses.FastAPLoss(reference_scale=True, reduction="none"), "reference_scale"),
        (lambda: losses.SoftBinAPLoss(num_bins=1), "num_bins"),
        (lambda: losses.PNPLoss(variant="X"), "variant"),
        (lambda: losses.PNPLoss(anneal=0), "anneal"),
        (lambda: losses.TupletMarginLoss(similarity="dot"), "similarity"),
        (lambda: losses.RankedListLoss(0.4, 10, imbalance=2), "imbalance"),
        (lambda: losses.RankedListLoss(0.4, 10, similarity="cosine"), "similarity"),
    ],
)
def test_bad_arguments_are_named(make, argument):
    with pytest.raises(ValueError, match=rf"^{argument}: expected"):
        make()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["smooth_ap", "sup_ap", "recall_at_k", "pnp"])
def test_nan_is_never_hidden_by_flat_sigmoids(name, backend):
    """A NaN among similarities that are all far from every threshold: no exponential is needed there."""
    x = torch.eye(32, dtype=torch.float32).repeat_interleave(2, 0)
    y = torch.arange(32).repeat_interleave(2)
    x[63] = torch.nan
    assert getattr(F, name)(x, y, backend=backend).isnan()
