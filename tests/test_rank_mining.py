"""Candidates chosen inside the row: strategies, draws, what they are drawn from, and other candidates."""

import numpy as np
import pytest
import torch
from conftest import BACKENDS, needs_compiled

import fastdml
from fastdml import functional as F
from fastdml import losses, miners
from fastdml.engine.similarity import SIMILARITIES
from fastdml.mining.choice import distance_log_weight, draw
from fastdml.mining.philox import philox, uniforms
from fastdml.mixing import pairs_within, similarity_mixup
from fastdml.reducers import ClassWeightedReducer, ThresholdReducer

STRATEGIES = [
    ("hard", "hard"), ("easy", "semihard"), ("easy", "hard"), ("semihard", "hard"),
    ("hard", "easy"), ("all", "hard"), ("easy", "all"),
]  # fmt: skip


def problem(rows=48, classes=6, dim=8, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=g, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, classes, (rows,), generator=g)


def with_gradient(loss, x, *args, **kwargs):
    z = x.clone().requires_grad_()
    value = loss(z, *args, **kwargs)
    return value.detach(), *torch.autograd.grad(value, z)


def same(found, true, tolerance=1e-11):
    for f, t in zip(found, true, strict=True):
        assert (f - t).abs().max() <= tolerance * t.abs().max().clamp(min=1e-3)


# ---- strategies


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strategies", STRATEGIES)
def test_chosen_in_the_row_equals_listed(strategies, backend, monkeypatch):
    """As arguments, by a miner that is fused, and by the pairs that it lists."""
    x, y = problem()
    pos, neg = strategies
    true = with_gradient(F.triplet_margin, x, y, margin=0.2, positives=pos, negatives=neg, backend="dense")
    same(with_gradient(
        F.triplet_margin, x, y, margin=0.2, positives=pos, negatives=neg, backend=backend,
    ), true)  # fmt: skip
    loss = losses.TripletMarginLoss(margin=0.2, backend=backend if backend != "native" else "chunked")
    miner = miners.BatchEasyHardMiner(pos, neg)
    same(with_gradient(loss, x, y, tuple(miner(x, y))), true)
    monkeypatch.setattr(miners.LazyPairs, "_pairs", lambda self: pytest.fail("the pairs were listed"))
    z = x.clone().requires_grad_()
    value = losses.TripletMarginLoss(margin=0.2, backend=backend)(z, y, miner(z, y))
    same((value.detach(), *torch.autograd.grad(value, z)), true)


@pytest.mark.parametrize("strategies", STRATEGIES)
def test_strategies_of_pytorch_metric_learning(strategies):
    theirs = pytest.importorskip("pytorch_metric_learning.miners")
    for seed in range(5):
        x, y = problem(seed=seed)
        pos, neg = strategies
        ours = miners.BatchEasyHardMiner(pos, neg)(x, y)
        other = theirs.BatchEasyHardMiner(pos_strategy=pos, neg_strategy=neg)(x, y)
        for k in (0, 2):
            found, true = (
                sorted(zip(t[k].tolist(), t[k + 1].tolist())) for t in (tuple(ours), other)
            )
            if "all" not in strategies:
                assert found == true
            else:  # theirs keeps pairs of anchors that have none of the other kind
                assert set(found) <= set(true)


def test_batch_hard_are_triplets():
    theirs = pytest.importorskip("pytorch_metric_learning.miners")
    x, y = problem()
    for a, b in zip(miners.BatchHardMiner()(x, y), theirs.BatchHardMiner()(x, y), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_anchor_without_a_semi_hard_candidate_has_no_triplet(backend):
    x = torch.tensor([[1.0, 0], [0, 1], [1, 0.1], [1, 0.2]], dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 2])  # every negative is nearer than the positive
    rows = F.triplet_margin(
        x, y, positives="easy", negatives="semihard", reduction="none", backend=backend
    )
    assert (rows[[0]] == 0).all() and rows.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_passed_over(backend):
    x, y = problem(dtype=torch.float32)
    x[3] = torch.nan
    assert F.triplet_margin(x, y, positives="hard", negatives="hard", backend=backend).isnan()
    value = F.margin(x, y, triplets_per_anchor="distance_weighted", backend=backend)
    assert value.isnan()


@pytest.mark.parametrize("k", [1, 3, 7, 100])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("positives", ["all", "hard"])
@pytest.mark.parametrize("smooth", [False, True])
def test_the_k_nearest_negatives_in_the_row(backend, k, positives, smooth, monkeypatch):
    """Against triplets that are listed one by one, in rows with a negative that is there twice."""
    x, y = problem(rows=30, classes=5)
    x[7], y[7], y[8] = x[8], 3, 3
    d = torch.cdist(torch.nn.functional.normalize(x), torch.nn.functional.normalize(x))
    triplets = []
    for a in range(len(x)):
        own = [p for p in range(len(x)) if y[p] == y[a] and p != a]
        others = sorted((float(d[a, n]), n) for n in range(len(x)) if y[n] != y[a])
        if positives == "hard":
            own = [max(own, key=lambda p: round(float(d[a, p]), 12))] if own else []
        reach = others[min(k, len(others)) - 1][0] + 1e-12
        triplets += [(a, p, n) for p in own for far, n in others if far <= reach]
    expected = torch.tensor(triplets).unbind(1)
    z = x.clone().requires_grad_()
    u = torch.nn.functional.normalize(z)
    a, p, n = expected
    excess = (u[a] - u[p]).norm(dim=1) - (u[a] - u[n]).norm(dim=1) + 0.2
    cost = torch.nn.functional.softplus(excess, threshold=1e9) if smooth else excess.relu()
    value = cost.sum() / (len(cost) if smooth else (excess > 0).sum())
    true = value.detach(), *torch.autograd.grad(value, z)
    how = {"margin": 0.2, "smooth_loss": smooth, "positives": positives, "backend": backend}
    same(with_gradient(F.triplet_margin, x, y, negatives="nearest", k=k, **how), true)
    if positives == "all":
        miner = miners.NearestNegativeMiner(k)
        monkeypatch.setattr(miners.LazyPairs, "_pairs", lambda self: pytest.fail("listed"))
        z = x.clone().requires_grad_()
        value = F.triplet_margin(z, y, miner(z, y), **how)
        same((value.detach(), *torch.autograd.grad(value, z)), true)
    x[3] = torch.nan
    assert F.triplet_margin(x, y, negatives="nearest", k=k, **how).isnan()


def test_nearest_negatives():
    x, y = problem()
    a1, _, a2, n = miners.NearestNegativeMiner(3)(x, y)
    s = torch.nn.functional.normalize(x, dim=1)
    s = (s @ s.t()).masked_fill(y[:, None] == y, -9)
    expected = s.topk(3, dim=1).indices.sort(1).values
    assert torch.equal(n.reshape(-1, 3), expected)
    assert torch.equal(a2.reshape(-1, 3), torch.arange(len(x))[:, None].expand(-1, 3))
    assert len(a1) == int(((y[:, None] == y).sum(1) - 1).sum())


# ---- random numbers


def words(*values):
    return tuple(torch.tensor(v) for v in values)


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, expected):
    assert tuple(int(w) for w in philox(words(*counter), words(*key))) == expected


def test_uniform_numbers_do_not_depend_on_the_block_of_rows():
    columns, zero = torch.arange(7), torch.tensor(0)
    whole = uniforms(columns, torch.arange(5)[:, None], 6, zero + 3, zero + 1, torch.float64)
    part = uniforms(columns[2:4], torch.tensor([[4]]), 6, zero + 3, zero + 1, torch.float64)
    assert torch.equal(whole[4:, 2:4], part)
    assert (whole > 0).all() and (whole < 1).all()
    assert torch.equal(whole, whole.float().double())  # exact in both types
    assert len(whole.unique()) == whole.numel()


# ---- draws by distance


def probabilities(x, y, cutoff=0.5, farthest=1.4):
    """SPEC 2.14 in numpy: weights inverse to the density of distances on the sphere."""
    u = torch.nn.functional.normalize(x.double(), dim=1).numpy()
    d = np.sqrt(np.maximum(2 - 2 * u @ u.T, 0))
    dim = u.shape[1]
    c = np.maximum(d, cutoff)
    log_q = (dim - 2) * np.log(c) + (dim - 3) / 2 * np.log(np.maximum(1 - c * c / 4, 1e-8))
    eligible = (y[:, None] != y).numpy() & (d < farthest)
    w = np.where(eligible, np.exp(-(log_q - log_q.min())), 0)
    return w / np.maximum(w.sum(1, keepdims=True), 1e-300)


@needs_compiled
@pytest.mark.parametrize("source", ["fused", "listed"])
def test_draws_follow_the_distribution(source):
    """1e5 draws of one anchor, chi-square at 1e-4; both the compiled row and the miner's torch form.

    Positives that coincide with the anchor give it many draws in one pass. The fused draw shows in the
    gradient by the candidates: a drawn candidate's weight is the number of its draws.
    """
    stats = pytest.importorskip("scipy.stats")
    g = torch.Generator().manual_seed(5)
    dim, negatives, copies, steps = 4, 24, 200, 500
    ref = torch.randn(negatives, dim, generator=g, dtype=torch.float64)
    anchor = ref[:1] + 0.6 * torch.randn(1, dim, generator=g, dtype=torch.float64)
    ref_all = torch.cat([ref, anchor.expand(copies, -1)])
    labels = torch.cat([torch.ones(negatives), torch.zeros(copies)]).long()
    counts = np.zeros(negatives)
    one = torch.zeros(1, dtype=torch.long)
    if source == "listed":  # every row has a stream of its own
        d = SIMILARITIES["distance"].dense(
            torch.nn.functional.normalize(anchor, dim=1), torch.nn.functional.normalize(ref, dim=1), 0.0
        ).expand(steps, -1)
        number = torch.arange(steps)[:, None]
        stream = torch.cat([number, torch.tensor([[77, 3]]).expand(steps, -1)], dim=1)
        drawn, _ = draw(distance_log_weight(d, dim, 0.5), d < 1.4, copies, stream)
        counts += np.bincount(drawn.reshape(-1).numpy(), minlength=negatives)
    for step in range(steps if source == "fused" else 0):
        r = ref_all.float().requires_grad_()
        value = F.margin(
            anchor.float(), one, ref_emb=r, ref_labels=labels, margin=10.0, seed=77, step=step,
            triplets_per_anchor="distance_weighted", reduction="sum", backend="native",
        )  # fmt: skip
        (d_ref,) = torch.autograd.grad(value, r)
        # |d distance / d candidate| = sin(angle) / (distance * length)
        u = torch.nn.functional.normalize(torch.cat([anchor, ref]), dim=1)
        s = u[1:] @ u[0]
        per_draw = (1 - s * s).sqrt() / (2 - 2 * s).sqrt() / ref.norm(dim=1)
        found = (d_ref[:negatives].double().norm(dim=1) / per_draw).numpy()
        assert np.abs(found - found.round()).max() < 1e-2
        counts += found.round()
    assert counts.sum() == copies * steps == 1e5
    both = torch.cat([anchor, ref])
    p = probabilities(both, torch.tensor([0] + [1] * negatives))[0, 1:]
    assert (counts[p == 0] == 0).all() and (p > 0).sum() > 5
    kept = p > 0
    assert stats.chisquare(counts[kept], 1e5 * p[kept]).pvalue > 1e-4


@pytest.mark.parametrize("normalizer", ["pairs", "triplets"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 1e-5)])
def test_every_executor_draws_the_same(dtype, tolerance, normalizer):
    """Value and gradient; and they are those of the triplets that the miner lists."""
    x, y = problem(dtype=dtype)
    found = [
        with_gradient(
            F.margin, x, y, triplets_per_anchor="distance_weighted", seed=5, step=2, backend=backend,
            normalizer=normalizer,
        )
        for backend in BACKENDS
    ]  # fmt: skip
    for f in found[1:]:
        same(f, found[0], tolerance)
    miner = miners.DistanceWeightedMiner(seed=5)
    miner.step.fill_(2)
    a, p, n = miner(x, y)
    z = x.clone().requires_grad_()
    u = torch.nn.functional.normalize(z, dim=1)
    pull = ((u[a] - u[p]).norm(dim=1) - 1).relu()
    push = (1.4 - (u[a] - u[n]).norm(dim=1)).relu()
    near, far = pull > 0, push > 0
    count = (near | far).sum() if normalizer == "triplets" else near.sum() + far.sum()
    value = (pull + push).sum() / count
    same(found[0], (value.detach(), *torch.autograd.grad(value, z)), max(tolerance, 1e-9))


@needs_compiled
def test_draws_do_not_depend_on_blocks_or_threads():
    x, y = problem(rows=301, classes=40, dtype=torch.float32)
    options = {"triplets_per_anchor": "distance_weighted", "seed": 9, "backend": "native"}
    whole = with_gradient(F.margin, x, y, **options)
    fastdml.set_workspace(64 << 10)
    torch.set_num_threads(2)
    same(with_gradient(F.margin, x, y, **options), whole, 1e-5)
    assert torch.equal(*(with_gradient(F.margin, x, y, **options)[1] for _ in range(2)))


def test_the_module_takes_the_next_draws_and_its_state_repeats_them():
    x, y = problem()
    loss = losses.MarginLoss(triplets_per_anchor="distance_weighted", seed=3)
    state = {k: v.clone() for k, v in loss.state_dict().items()}
    first, second = loss(x, y), loss(x, y)
    assert first != second
    loss.load_state_dict(state)
    assert loss(x, y) == first and loss(x, y) == second
    loss.eval()
    assert loss(x, y) == loss(x, y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_anchor_without_an_admissible_negative_has_no_triplet(backend):
    """Rows without negatives, without positives, and with negatives that are all too far."""
    x = torch.tensor([[1.0, 0], [1, 0.1], [-1, 0], [-1, 0.1]], dtype=torch.float64, requires_grad=True)
    for y in ([0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 2, 3]):
        value = F.margin(
            x, torch.tensor(y), triplets_per_anchor="distance_weighted", margin=5.0, backend=backend
        )
        (g,) = torch.autograd.grad(value, x)
        assert value == 0 and not g.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reference", [False, True])
def test_margins_of_miners_are_applied_inside_the_loss(backend, reference, monkeypatch):
    """Stricter and looser than the loss's own; and it is the listed pairs that count."""
    x, y = problem()
    ref = problem(rows=70, seed=1) if reference else (None, None)
    cosine = fastdml.distances.CosineSimilarity
    for made, miner in (
        (lambda b: losses.ContrastiveLoss(backend=b), miners.PairMarginMiner(0.9, 1.2)),
        (
            lambda b: losses.ContrastiveLoss(0.4, 1.4, reduction="mean", backend=b),
            miners.PairMarginMiner(0.2, 1.6),
        ),
        (
            lambda b: losses.ContrastiveLoss(0.9, 0.1, distance=cosine(), reduction="sum", backend=b),
            miners.PairMarginMiner(0.3, 0.2, distance=cosine()),
        ),
        (lambda b: losses.TripletMarginLoss(0.2, backend=b), miners.TripletMarginMiner(0.3)),
        *(
            (
                lambda b, distance=distance, sort=sort: losses.TripletMarginLoss(
                    0.2, distance=distance, sort=sort, backend=b
                ),
                miners.TripletMarginMiner(margin, kind, distance=distance),
            )
            for margin, kind in (
                (0.1, "all"), (0.15, "semihard"), (0.3, "hard"), (0.05, "easy"), (-0.1, "hard"),
            )
            for distance, sort in ((None, None), (cosine(), True), (cosine(), False))
        ),
    ):  # fmt: skip
        expected = with_gradient(made("auto"), x, y, tuple(miner(x, y, *ref)), *ref)
        every = with_gradient(made("auto"), x, y, None, *ref)
        nothing_less = isinstance(miner, miners.TripletMarginMiner) and miner.rule() == {"at_most": 0.3}
        assert expected[0] != every[0] or nothing_less
        with monkeypatch.context() as patch:
            patch.setattr(miners.LazyPairs, "_pairs", lambda self: pytest.fail("the pairs were listed"))
            z = x.clone().requires_grad_()
            value = made(backend)(z, y, miner(z, y, *ref), *ref)
        same((value.detach(), *torch.autograd.grad(value, z)), expected)
    # A mean over all triplets, or of smooth ones, is that of a list.
    miner = miners.TripletMarginMiner(0.1)
    for options in ({"smooth_loss": True}, {"normalizer": "triplets"}):
        loss = losses.TripletMarginLoss(0.5, **options)
        assert loss(x, y, miner(x, y)) == loss(x, y, tuple(miner(x, y))) != loss(x, y)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 1e-5)])
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_miner_draws_inside_the_loss(backend, reference, dtype, tolerance, monkeypatch):
    """The same draws as those that it lists, call after call."""
    x, y = problem(dtype=dtype)
    ref, ref_y = problem(rows=70, seed=1, dtype=dtype) if reference else (None, None)
    lister, fuser = (miners.DistanceWeightedMiner(0.6, 1.3, seed=11) for _ in range(2))
    loss, plain = losses.MarginLoss(backend=backend), losses.MarginLoss()
    for _ in range(3):
        triplets = tuple(lister(x, y, ref, ref_y))
        expected = with_gradient(plain, x, y, triplets, ref, ref_y)
        with monkeypatch.context() as patch:
            patch.setattr(miners.LazyPairs, "_pairs", lambda self: pytest.fail("triplets were listed"))
            z = x.clone().requires_grad_()
            value = loss(z, y, fuser(z, y, ref, ref_y), ref, ref_y)
        same((value.detach(), *torch.autograd.grad(value, z)), expected, tolerance)


def test_a_miner_draws_anew_with_every_call():
    """... and another one with its seed draws the same."""
    x, y = problem(rows=120)
    miner, other = (miners.DistanceWeightedMiner(seed=3) for _ in range(2))
    calls = [tuple(miner(x, y)) for _ in range(3)]
    assert all(torch.equal(calls[0][k], call[k]) for call in calls for k in (0, 1))  # all positive pairs
    assert not any(torch.equal(calls[a][2], calls[b][2]) for a, b in ((0, 1), (0, 2), (1, 2)))
    for call in calls:
        assert all(map(torch.equal, call, tuple(other(x, y))))


def test_the_miner_lists_where_the_loss_measures_otherwise():
    """With an epsilon inside the distances other negatives could be drawn."""
    x, y = problem()
    miner = miners.DistanceWeightedMiner(seed=11)
    pairs = miner(x, y)
    assert losses.MarginLoss(epsilon=0.1)(x, y, pairs) == losses.MarginLoss(epsilon=0.1)(x, y, tuple(pairs))
    assert losses.TripletMarginLoss()(x, y, pairs) == losses.TripletMarginLoss()(x, y, tuple(pairs))


# ---- margin loss over all triplets


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("num_classes", [None, 6])
def test_margin_of_pytorch_metric_learning(num_classes, learn):
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    for seed in range(5):
        x, y = problem(seed=seed)
        kind = {"num_classes": num_classes, "learn_beta": learn}
        ours, other = losses.MarginLoss(**kind).double(), theirs.MarginLoss(**kind).double()
        if learn:
            ours.load_state_dict(other.state_dict())
        elif num_classes is None:
            other.beta = other.beta.double()
        found = []
        for loss in (ours, other):
            z = x.clone().requires_grad_()
            value = loss(z, y)
            leaves = [z, loss.beta] if learn else [z]
            found.append([value.detach(), *torch.autograd.grad(value, leaves)])
        same(found[0], found[1], 1e-6 if not learn else 1e-9)


def test_margin_regularises_the_betas_of_classes_per_triplet():
    x, y = problem()
    kind = {"learn_beta": True, "num_classes": 6, "reduction": "sum"}
    plain, heavy = (losses.MarginLoss(nu=nu, **kind).double() for nu in (0, 0.5))
    per_row = (y[:, None] == y).sum(1)
    triplets = ((per_row - 1) * (len(y) - per_row)).sum()
    gap = heavy(x, y) - plain(x, y)
    assert gap.item() == pytest.approx(0.5 * 1.2 * triplets.item(), rel=1e-9)


# ---- virtual samples, subsets of queries, memories


def test_mixtures_of_every_pair_of_a_class():
    x, y = problem(rows=10, classes=3)
    i, j = pairs_within(y)
    expected = {(a, b) for a in range(10) for b in range(a + 1, 10) if y[a] == y[b]}
    assert set(zip(i.tolist(), j.tolist())) == expected and len(i) == len(expected)
    share = torch.linspace(0, 1, len(i), dtype=torch.float64)
    mixed, labels = similarity_mixup(x, y, share=share)
    u = torch.nn.functional.normalize(x, dim=1)
    assert torch.equal(labels, torch.cat([y, y[i]]))
    s = mixed @ mixed.t()  # similarities to mixtures are mixtures of similarities
    su = u @ u.t()
    torch.testing.assert_close(s[:10, 10:], share * su[:, i] + (1 - share) * su[:, j])
    with pytest.raises(ValueError, match=r"^share: expected"):
        similarity_mixup(x, y, share=share[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_recall_with_mixtures(backend):
    x, y = problem(rows=20, classes=5)
    loss = losses.RecallAtKLoss(simix=True, backend=backend)
    torch.manual_seed(1)
    found = with_gradient(loss, x, y)
    torch.manual_seed(1)

    def by_hand(z):
        mixed, labels = similarity_mixup(z, y)
        return F.recall_at_k(mixed, labels, similarity="dot", backend="dense")

    same(found, with_gradient(by_hand, x), 1e-9)
    assert loss.eval()(x, y) == losses.RecallAtKLoss(backend=backend)(x, y)
    for similarity, expected in (("dot", "'cosine' with simix"), ("distance", "'cosine' or 'dot'")):
        with pytest.raises(ValueError, match=f"^similarity: expected {expected}"):
            losses.RecallAtKLoss(simix=True, similarity=similarity)


RANKS = ["smooth_ap", "sup_ap", "recall_at_k", "fast_ap", "soft_bin_ap", "auc", "triplet_margin", "pnp"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RANKS)
def test_a_subset_of_queries_against_all(name, backend):
    """Queries that are some of the candidates: every pair counts, and rows are those of the whole."""
    x, y = problem()
    loss = getattr(F, name)
    options = {"ref_emb": x.clone(), "ref_labels": y, "reduction": "none", "backend": backend}
    whole = loss(x, y, **options)
    torch.testing.assert_close(loss(x[5:17], y[5:17], **options), whole[5:17], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", RANKS)
def test_a_memory_of_past_embeddings_takes_no_gradient(name, backend):
    x, y = problem()
    past, past_y = problem(rows=70, seed=1)
    z = x.clone().requires_grad_()
    candidates = torch.cat([z, past])
    value = getattr(F, name)(
        z, y, ref_emb=candidates, ref_labels=torch.cat([y, past_y]), backend=backend
    )
    (g,) = torch.autograd.grad(value, z)
    true = with_gradient(
        lambda q: getattr(F, name)(
            q, y, ref_emb=torch.cat([q, past]), ref_labels=torch.cat([y, past_y]), backend="dense"
        ),
        x,
    )
    same((value.detach(), g), true, 1e-10)


def margin_of(labels=None, **options):
    return F.margin(torch.eye(3), torch.arange(3) if labels is None else labels, **options)


def one_triplet(negatives=1):
    return torch.tensor([0]), torch.tensor([1]), torch.full((negatives,), 2)


@pytest.mark.parametrize(
    "make, argument",
    [
        (lambda: losses.MarginLoss(normalizer="rows"), "normalizer"),
        (lambda: losses.MarginLoss(seed=-1), "seed"),
        (lambda: F.margin(torch.eye(3), torch.arange(3), triplets_per_anchor="some"), "triplets_per_anchor"),
        (lambda: F.margin(torch.eye(3), torch.arange(3), similarity="manhattan"), "similarity"),
        (lambda: losses.TripletMarginLoss(positives="best"), "positives"),
        (lambda: losses.TripletMarginLoss(positives="all", negatives="semihard"), "negatives"),
        (lambda: miners.BatchEasyHardMiner("semihard", "semihard"), "neg_strategy"),
        (lambda: losses.TripletMarginLoss(positives="nearest"), "positives"),
        (lambda: losses.TripletMarginLoss(positives="semihard", negatives="nearest"), "positives"),
        (lambda: losses.TripletMarginLoss(negatives="nearest", k=0), "k"),
        (lambda: miners.NearestNegativeMiner(0), "k"),
        (lambda: miners.DistanceWeightedMiner(seed=1 << 24), "seed"),
        (lambda: margin_of(seed=1 << 24), "seed"),
        (lambda: margin_of(seed=torch.tensor(-1)), "seed"),
        (lambda: margin_of(step=1 << 24), "step"),
        (lambda: margin_of(seed=0.5), "seed"),
        (lambda: margin_of(beta=torch.ones(2)), "labels"),
        (lambda: margin_of(beta=torch.ones(4), labels=torch.tensor([0, -1, 2])), "labels"),
        (lambda: margin_of(beta=torch.ones(0)), "beta"),
        (lambda: margin_of(beta=torch.ones(3, 1)), "beta"),
        (lambda: margin_of(beta=float("nan")), "beta"),
        (lambda: losses.MarginLoss(num_classes=2)(torch.eye(3), torch.arange(3)), "labels"),
        (lambda: losses.MarginLoss(triplets_per_anchor=0), "triplets_per_anchor"),
        (lambda: losses.TripletMarginLoss(triplets_per_anchor="distance_weighted"), "triplets_per_anchor"),
        (lambda: losses.TripletMarginLoss(triplets_per_anchor=True), "triplets_per_anchor"),
        (lambda: losses.TripletMarginLoss(swap=True, positives="hard"), "positives"),
        (lambda: losses.TripletMarginLoss(triplets_per_anchor=3, negatives="nearest"), "negatives"),
        (lambda: losses.TripletMarginLoss(swap=True, similarity="projection"), "similarity"),
        (lambda: losses.TripletMarginLoss(positives="hard")(torch.eye(3), None, one_triplet()), "positives"),
        (lambda: losses.TripletMarginLoss()(torch.eye(3), None, one_triplet(2)), "indices_tuple"),
        (lambda: losses.TripletMarginLoss()(torch.eye(2), None, one_triplet()), "indices_tuple"),
        (lambda: F.triplet_margin(torch.eye(3), swap=True), "labels"),
        (lambda: F.triplet_margin(torch.eye(3), None, one_triplet(), reduction="all"), "reduction"),
        (lambda: F.triplet_margin(torch.eye(3), None, one_triplet(), backend="best"), "backend"),
        (
            lambda: F.triplet_margin(torch.eye(3), None, one_triplet(), similarity="projection"),
            "ref_emb",
        ),
    ],
)
def test_bad_arguments_are_named(make, argument):
    with pytest.raises(ValueError, match=rf"^{argument}: expected"):
        make()


def test_a_reducer_object_takes_the_rows_of_mixtures_too():
    x, y = torch.randn(12, 6, generator=torch.Generator().manual_seed(1)), torch.arange(12) // 4
    weights, found = torch.tensor([1.0, 2.0, 4.0]), []
    for options in ({"reducer": ClassWeightedReducer(weights)}, {"reduction": "none"}):
        torch.manual_seed(3)
        found.append(losses.RecallAtKLoss(simix=True, **options)(x, y))
    rows = found[1]
    _, labels = similarity_mixup(x, y)
    torch.testing.assert_close(found[0], (rows * weights[labels]).mean())
    kept = losses.RecallAtKLoss(simix=True, reducer=ThresholdReducer(low=-1))
    torch.manual_seed(3)
    torch.testing.assert_close(kept(x, y), rows.mean())
