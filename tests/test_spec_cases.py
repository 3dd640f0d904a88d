"""Cases of SPEC 4.2 with their defined results: no positives, no negatives, a class that is absent, no
active hinge, identical rows."""

import math

import pytest
import torch
from conftest import BACKENDS

from fastdml import functional as F

backends = pytest.mark.parametrize("backend", BACKENDS)


def circle(*angles):
    """Points of the unit circle: similarities are cosines of differences."""
    a = torch.tensor(angles, dtype=torch.float64)
    return torch.stack([a.cos(), a.sin()], 1)


def chord(a, b):
    return 2 * abs(math.sin((a - b) / 2))


def with_gradient(loss, x, *arguments, **options):
    x = x.clone().requires_grad_()
    value = loss(x, *arguments, **options)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def lse0(*z):
    return math.log(1 + sum(math.exp(v) for v in z))


ANGLES = (0.0, 0.4, 1.0, 2.5)
SINGLE, ONE_CLASS = torch.arange(4), torch.zeros(4, dtype=torch.long)


def weighted_mean(excess, temperature, candidates):
    active = [e for e in excess if e > 0]
    if not active:
        return 0.0
    w = [math.exp(temperature * e) for e in active]
    return sum(a * e for a, e in zip(w, active)) / (sum(w) + 1e-5 * candidates)


# ---- a row without positives


@backends
def test_ranked_list_without_positives_only_pushes(backend):
    """Half of the weighted mean of what negatives lack to alpha = 1.2, in every row."""
    rows = F.ranked_list(
        circle(*ANGLES), SINGLE, margin=0.4, Tn=10, reduction="none", backend=backend
    )
    for a, found in zip(ANGLES, rows.tolist()):
        lacking = [1.2 - chord(a, b) for b in ANGLES if b != a]
        assert found == pytest.approx(0.5 * weighted_mean(lacking, 10, 4), rel=1e-9)
    assert rows[0] > 0 and rows[3] == 0


@backends
def test_margin_without_positives_has_no_triplet(backend):
    value, gradient = with_gradient(F.margin, circle(*ANGLES), SINGLE, backend=backend)
    assert value == 0 and not gradient.any()
    # Beside a pair, the anchors without one add nothing to the sum nor to the count.
    y = torch.tensor([0, 0, 1, 2])
    pull = [chord(0, 0.4) - 1.0] * 2
    push = [[1.4 - chord(a, b) for b in (1.0, 2.5)] for a in (0.0, 0.4)]
    terms = [max(0, p) for p in pull for _ in range(2)] + [max(0, n) for row in push for n in row]
    value = F.margin(circle(*ANGLES), y, backend=backend)
    assert value.item() == pytest.approx(sum(terms) / sum(t > 0 for t in terms), rel=1e-9)


@backends
def test_soft_bin_ap_of_a_query_alone_is_that_of_itself(backend):
    """It is the first of its ranking unless a stranger is at the same place, and then it shares it."""
    x = torch.eye(4, dtype=torch.float64)
    assert F.soft_bin_ap(x, SINGLE, reduction="none", backend=backend).abs().max() < 1e-12
    x[1] = x[0]
    rows = F.soft_bin_ap(x, SINGLE, reduction="none", backend=backend)
    assert rows.tolist() == pytest.approx([0.5, 0.5, 0, 0], abs=1e-12)


@backends
def test_intra_pair_variance_of_one_kind_of_pairs(backend):
    """The other kind's term is 0."""
    x = circle(*ANGLES)
    s = [math.cos(a - b) for a in ANGLES for b in ANGLES if a != b]
    mean = sum(s) / len(s)
    high = sum(max(0.0, v - 1.01 * mean) ** 2 for v in s) / len(s)
    low = sum(max(0.0, 0.99 * mean - v) ** 2 for v in s) / len(s)
    for y, expected in ((SINGLE, high), (ONE_CLASS, low)):
        value, gradient = with_gradient(F.intra_pair_variance, x, y, backend=backend)
        assert value.item() == pytest.approx(expected, rel=1e-9) and gradient.any()


@backends
def test_signal_to_noise_of_one_kind_of_pairs(backend):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 7, generator=g, dtype=torch.float64)
    u = torch.nn.functional.normalize(x, dim=1)
    d = [
        ((u[i] - u[j]).var(correction=0) / u[i].var(correction=0)).item()
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    push = [1.5 - v for v in d if v < 1.5]
    for y, terms in ((SINGLE, push), (ONE_CLASS, d)):
        value = F.signal_to_noise_contrastive(x, y, neg_margin=1.5, backend=backend)
        expected = sum(terms) / max(1, len(terms))
        assert value.item() == pytest.approx(expected, rel=1e-9)


# ---- a row without negatives


@backends
def test_recall_without_negatives(backend):
    """Only other positives, and the query itself, take places."""
    rows = F.recall_at_k(
        circle(*ANGLES), ONE_CLASS, k=(1, 2), rank_temperature=0.3, reduction="none", backend=backend
    )

    def above(query, j, i):
        z = (math.cos(query - j) - math.cos(query - i)) / 0.3
        return 1 / (1 + math.exp(-z))

    for q, found in zip(ANGLES, rows.tolist()):
        recall = 0.0
        for k in (1, 2):
            hits = 0.0
            for i in ANGLES:
                if i != q:
                    rank = 1 + sum(above(q, j, i) for j in ANGLES if j != i)
                    hits += 1 / (1 + math.exp(rank - k))
            recall += min(hits, k) / min(k, 3)
        assert found == pytest.approx(1 - recall / 2, rel=1e-9)


@backends
def test_ranked_list_without_negatives_only_pulls(backend):
    rows = F.ranked_list(
        circle(*ANGLES), ONE_CLASS, margin=0.4, Tn=10, Tp=2, reduction="none", backend=backend
    )
    for a, found in zip(ANGLES, rows.tolist()):
        beyond = [chord(a, b) - 0.8 for b in ANGLES if b != a]
        assert found == pytest.approx(0.5 * weighted_mean(beyond, 2, 4), rel=1e-9)


@backends
def test_margin_without_negatives_has_no_triplet(backend):
    value, gradient = with_gradient(F.margin, circle(*ANGLES), ONE_CLASS, backend=backend)
    assert value == 0 and not gradient.any()


# ---- a class that the batch lacks


@backends
def test_weighted_proxy_anchor_of_an_absent_class(backend):
    """No positive term; a sample's weight less 1 is in its exponents; the mean is over classes."""
    x, proxies, y = circle(0.2, 1.0), circle(0, 1.5, 3.0), torch.tensor([1, 1])
    tuples = tuple(map(torch.tensor, ([0, 0], [0, 0], [1], [1])))  # weights 1 and 1/2
    rows = F.proxy_anchor(x, y, proxies, tuples, reduction="none", backend=backend)

    def push(c):
        return lse0(*(w - 1 + 32 * (math.cos(c - a) + 0.1) for a, w in ((0.2, 1), (1.0, 0.5))))

    pull = lse0(*(w - 1 - 32 * (math.cos(1.5 - a) - 0.1) for a, w in ((0.2, 1), (1.0, 0.5))))
    assert rows.tolist() == pytest.approx([push(0), 3 * pull, push(3)], rel=1e-12)


@backends
def test_multi_proxy_anchor_of_an_absent_class(backend):
    x, y = circle(0.2, 1.0), torch.tensor([1, 1])
    angles = ((0.0, 0.5), (1.5, 2.0), (3.0, 4.0))
    proxies = circle(*(a for pair in angles for a in pair))
    rows = F.multi_proxy_anchor(
        x, y, proxies, proxies_per_class=2, reduction="none", backend=backend
    )

    def pooled(pair, a):
        s = [math.cos(p - a) for p in pair]
        w = [math.exp(v / 0.1) for v in s]
        return sum(a * b for a, b in zip(w, s)) / sum(w)

    def push(pair):
        return lse0(*(32 * (pooled(pair, a) + 0.1) for a in (0.2, 1.0)))

    pull = lse0(*(-32 * (pooled(angles[1], a) - 0.1) for a in (0.2, 1.0)))
    assert rows.tolist() == pytest.approx([push(angles[0]), 3 * pull, push(angles[2])], rel=1e-9)


# ---- no active hinge


@backends
def test_hinges_of_ranked_list_and_memory_pairs(backend):
    """Two tight classes far apart. (Copies cost 1 - 1 = 0 in the memory's loss.)"""
    y = torch.arange(8) % 2
    x = torch.eye(6, dtype=torch.float64)[y]
    for loss in (
        lambda *a: F.ranked_list(*a, margin=0.4, Tn=10, backend=backend),
        lambda *a: F.xbm_pair(*a, backend=backend),
    ):
        value, gradient = with_gradient(loss, x, y)
        assert value == 0 and not gradient.any()
        value, _ = with_gradient(loss, x, torch.arange(8) // 2 % 2)
        assert value > 0


@backends
@pytest.mark.parametrize("loss", [F.semi_variance, F.intra_pair_variance], ids=lambda f: f.__name__)
def test_hinges_about_a_mean(loss, backend):
    """Two tight classes: every similarity of a kind is its mean."""
    y = torch.arange(8) % 2
    x = torch.eye(6, dtype=torch.float64)[y]
    value, gradient = with_gradient(loss, x, y, backend=backend)
    assert value == 0 and not gradient.any()
    # Of the positives a third are 1, of the negatives a half, the others 0.
    value = loss(x, torch.arange(8) // 2 % 2, backend=backend)
    if loss is F.semi_variance:
        expected = (1 / 3) ** 2 + 5 * (1 - 1 / 2) ** 2
    else:
        expected = 2 / 3 * (0.99 / 3) ** 2 + 1 / 2 * (1 - 1.01 / 2) ** 2
    assert value.item() == pytest.approx(expected, rel=1e-12)


@backends
def test_hinges_of_dense_triplets(backend):
    """Embeddings are as far apart as labels: the least gap between squared distances is 3."""
    y = (0.0, 1.0, 3.0, 7.0)
    x = torch.tensor(y, dtype=torch.float64)[:, None]
    labels = x.clone()
    options = {"normalize": False, "backend": backend}
    value, gradient = with_gradient(F.dense_triplet, x, labels, margin=2.0, **options)
    assert value == 0 and not gradient.any()
    value = F.dense_triplet(x, labels, margin=10.0, **options)
    rows = []
    for a in y:
        d = [abs(a - b) for b in y if b != a]
        rows.append([max(0, j**2 - k**2 + 10) for j in d for k in d if j < k])
    expected = sum(sum(row) / len(row) for row in rows) / 4
    assert value.item() == pytest.approx(expected, rel=1e-12)


@backends
def test_roadmap_without_an_active_hinge_is_its_ranking_alone(backend):
    x, y = circle(*ANGLES), torch.tensor([0, 1, 0, 1])
    ranking = with_gradient(F.sup_ap, x, y, backend=backend)
    assert ranking[0] > 0.1 and ranking[1].any()
    found = with_gradient(F.roadmap, x, y, pos_margin=-1.0, neg_margin=1.0, backend=backend)
    for a, b in zip(found, ranking):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    # With margins that all pairs miss, the means of what they lack are added.
    pull = [3 - math.cos(a - b) for a, b in ((0.0, 1.0), (0.4, 2.5))]
    push = [math.cos(a - b) + 3 for a in (0.0, 1.0) for b in (0.4, 2.5)]
    value = F.roadmap(x, y, pos_margin=3.0, neg_margin=-3.0, backend=backend)
    expected = ranking[0].item() + sum(pull) / 2 + sum(push) / 4
    assert value.item() == pytest.approx(expected, rel=1e-12)


# ---- identical rows


@backends
@pytest.mark.parametrize("similarity", ["distance", "raw_distance"])
def test_identical_rows_have_no_gradient(similarity, backend):
    """At a distance of 0 there is no direction to push in: the value is that of the hinge, and nothing moves.
    A distance's derivative is 0 / 0 there."""
    x = torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64).expand(4, 3)
    y = torch.tensor([0, 0, 1, 1])
    options = {"similarity": similarity, "backend": backend}
    expected = {
        F.margin: 1.4,  # active negatives alone
        F.triplet_margin: 0.05,
        F.ranked_list: 0.5 * 1.2 * 2 / (2 + 1e-5 * 4 * math.exp(-12)),
        F.balanced_contrastive: 0.5 * 1.0,  # the negatives' half
    }
    for loss, value in expected.items():
        own = {"margin": 0.4, "Tn": 10} if loss is F.ranked_list else {}
        found, gradient = with_gradient(loss, x, y, **own, **options)
        assert found.item() == pytest.approx(value, rel=1e-6) and not gradient.any(), loss
