"""Every metric equals its definition, over data with ties, duplicates, singletons and unequal classes."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import brute
from conftest import COMPILED, ISAS

from fastdml.metrics import evaluate, tar_at_far

KS, FARS = (1, 3, 10, 500), (0.01, 0.2)
METRICS = ("recall", "precision", "r_precision", "map@r", "map", "ndcg", "mrr", "auc", "tar@far",
           "alignment", "uniformity")  # fmt: skip
BACKENDS = ["chunked", *(["native"] if COMPILED else [])]
SIMILARITIES = ("cosine", "dot", "projection", "distance", "squared_distance", "raw_distance",
                "raw_squared_distance", "ball_distance")  # fmt: skip


def clustered(n, classes, dim=6, seed=0):
    """Unequal classes, some of one item."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) ** 2 * classes).astype(np.int64)
    x = rng.standard_normal((classes, dim))[y] + 0.8 * rng.standard_normal((n, dim))
    return x * (rng.random((n, 1)) + 0.5), y * 1000003 - 17


def tied(n, classes, dim=4, seed=1):
    """Few values of each coordinate: scores are exact, and most of them tied."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-1, 2, (n, dim)).astype(np.float64)
    x[:, 0] = 1
    return x, rng.integers(0, classes, n)


def duplicated(n, classes, dim=5, seed=2):
    """Every row twice or more, in classes of its own and in others."""
    x, _ = clustered(n // 3, classes, dim, seed)
    rng = np.random.default_rng(seed)
    return x[rng.integers(0, len(x), n)], rng.integers(0, classes, n)


def large(n, classes, dim=3, seed=3):
    """Few classes: many right candidates of every query."""
    return clustered(n, 3, dim, seed)


DATA = {"clustered": clustered, "tied": tied, "duplicated": duplicated, "large": large}


def check(got, expected, per_query=None, tolerance=1e-12):
    assert set(got) == set(expected)
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, abs=tolerance, rel=tolerance), key
    for key, values in got.per_query.items():
        for i, one in enumerate(per_query or ()):
            true = np.nan if one is None else one[key]
            assert values[i] == pytest.approx(true, abs=tolerance, nan_ok=True)


def classes_of(y, other):
    return (np.asarray(y)[:, None] == np.asarray(other)).astype(float)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", DATA)
def test_one_set(kind, backend):
    x, y = DATA[kind](83, 17)
    true, per_query = brute.everything(x, x, classes_of(y, y), np.arange(83), True, "dot", KS, FARS)
    got = evaluate(x, y, metrics=METRICS, k=KS, far=FARS, similarity="dot", backend=backend)
    check(got, true, per_query)
    assert 0 < got["map"] < 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", DATA)
def test_queries_and_gallery(kind, backend):
    """In-Shop's form. Some queries have a copy of their own in the gallery, some no right candidate."""
    x, y = DATA[kind](110, 25)
    q, g, qy, gy = x[:40], x[40:].copy(), y[:40], y[40:].copy()
    own = np.full(40, -1)
    own[::2] = np.arange(0, 40, 2) + 30
    g[own[own >= 0]], gy[own[own >= 0]] = q[::2], qy[::2]
    gy[own[:8:2]] = qy[1:9:2]  # also copies whose label is another
    true, per_query = brute.everything(q, g, classes_of(qy, gy), own, False, "dot", KS, FARS)
    got = evaluate(q, qy, g, gy, metrics=METRICS, k=KS, far=FARS, similarity="dot", own_index=own,
                   backend=backend)  # fmt: skip
    check(got, true, per_query)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities(name, backend):
    x, y = clustered(60, 12)
    q, g = x[:25] * 0.6, x[25:]
    true, _ = brute.everything(q, g, classes_of(y[:25], y[25:]), np.full(25, -1), False, name, KS, FARS)
    got = evaluate(q, y[:25], g, y[25:], metrics=METRICS, k=KS, far=FARS, similarity=name, backend=backend)
    check(got, true)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sets_of_labels(backend):
    """Right is what shares a label; nDCG's gain is how many are shared."""
    rng = np.random.default_rng(4)
    x, _ = tied(70, 5)
    marks = rng.random((70, 8)) < 0.2
    gain = (marks[:, None] & marks[None]).sum(-1).astype(float)
    own = np.arange(70)
    true, per_query = brute.everything(x, x, gain, own, True, "dot", KS, FARS)
    sets = [{f"label {c}" for c in np.flatnonzero(row)} for row in marks]
    for labels in (marks, torch.from_numpy(marks), sets, [[*s, *sorted(s)[:1]] for s in sets]):
        got = evaluate(x, labels, metrics=METRICS, k=KS, far=FARS, similarity="dot", backend=backend)
        check(got, true, per_query)


@pytest.mark.parametrize("backend", BACKENDS)
def test_graded_relevance(backend):
    rng = np.random.default_rng(5)
    x, _ = tied(50, 5)
    q, g = x[:20], x[20:]
    gain = rng.integers(0, 4, (20, 30)) * (rng.random((20, 30)) < 0.4)
    true, per_query = brute.everything(q, g, gain, np.full(20, -1), False, "dot", KS, FARS)
    got = evaluate(q, None, g, metrics=METRICS, k=KS, far=FARS, similarity="dot", backend=backend,
                   relevance=lambda a, b: gain[a][:, b])  # fmt: skip
    check(got, true, per_query)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_function_of_one_set_need_not_be_symmetric(backend):
    """Whoever comes later is right: both pairs (i, j) and (j, i) count."""
    rng = np.random.default_rng(6)
    x, _ = tied(40, 5)
    for gain in (np.triu(np.ones((40, 40)), 1), rng.integers(0, 2, (40, 40)).astype(float)):
        np.fill_diagonal(gain, 1)  # which never counts
        true, per_query = brute.everything(x, x, gain, np.arange(40), False, "dot", KS, FARS)
        got = evaluate(x, metrics=METRICS, k=KS, far=FARS, similarity="dot", backend=backend,
                       relevance=lambda a, b, gain=gain: gain[a][:, b])  # fmt: skip
        check(got, true, per_query)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_similarity_of_one_set_need_not_be_symmetric(backend):
    x, y = clustered(45, 9)
    own = np.arange(45)
    true, per_query = brute.everything(x, x, classes_of(y, y), own, False, "projection", KS, FARS)
    got = evaluate(x, y, metrics=METRICS, k=KS, far=FARS, similarity="projection", backend=backend)
    check(got, true, per_query)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("similarity", ["cosine", "distance", "dot", "raw_distance"])
def test_a_row_of_zeros_is_at_distance_1_of_all_in_uniformity_and_alignment(similarity, backend):
    x, y = clustered(30, 6)
    x[3] = x[8] = 0
    true = brute.spread(x, x, classes_of(y, y), np.arange(30), True)
    got = evaluate(x, y, metrics=("uniformity", "alignment"), similarity=similarity, backend=backend)
    check(got, true)


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("dim", [1, 7, 130])
def test_instruction_sets(isa, dim):
    """Larger than a strip of the gallery and than a block of threads; float32, whose integers are exact."""
    rng = np.random.default_rng(dim)
    x = rng.integers(-2, 3, (1100, dim)).astype(np.float32)
    x[:, 0] = 1
    y = np.append(rng.integers(0, 200, 1000), np.full(100, 777))
    chosen = ("map", "recall@3", "auc", "uniformity")
    similarity = "raw_distance" if dim == 7 else "dot"
    one = evaluate(x, y, metrics=chosen, similarity=similarity, neighbours=5, backend="native")
    two = evaluate(x, y, metrics=chosen, similarity=similarity, neighbours=5, backend="chunked")
    check(one, dict(two), tolerance=1e-5)  # the exponentials of uniformity are float32
    for key in ("map", "recall@3", "auc"):
        assert one[key] == pytest.approx(two[key], abs=1e-12)
    assert (one.neighbours == two.neighbours).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_right_pairs_are_counted_to_a_known_resolution(backend, monkeypatch):
    from fastdml.metrics import pairs

    x, y = clustered(200, 4)
    exact = evaluate(x, y, metrics=("auc", "tar@far"), far=0.1, backend=backend)
    assert exact.pairs.auc_resolution() == 0
    monkeypatch.setattr(pairs, "SAMPLE", 500)
    monkeypatch.setattr(pairs, "THRESHOLDS", 100)
    coarse = evaluate(x, y, metrics=("auc", "tar@far"), far=0.1, backend=backend)
    assert len(coarse.pairs.thresholds) == 100
    assert coarse.pairs.right.sum() == exact.pairs.right.sum()
    assert coarse.pairs.wrong.sum() == exact.pairs.wrong.sum()
    off = abs(coarse["auc"] - exact["auc"])
    assert 0 < off <= coarse.pairs.auc_resolution() < 0.01
    assert exact["tar@far=0.1"] - 0.02 < coarse["tar@far=0.1"] <= exact["tar@far=0.1"]


def test_rates_are_those_that_were_asked_for():
    x, y = tied(40, 5)
    rates = (0.1, 0.1000001, 1 / 3, 0.1)
    got = evaluate(x, y, metrics=("tar@far", "tar@far=1e-2"), far=rates)
    assert list(got) == [
        "tar@far=0.1", "tar@far=0.1000001", f"tar@far={1 / 3!r}", "tar@far=0.01", "tar@far=1e-2",
    ]  # fmt: skip
    assert got["tar@far=0.01"] == got["tar@far=1e-2"] == evaluate(x, y, far=0.01)["tar@far=0.01"]
    assert list(tar_at_far(x, y, far=rates)) == list(rates[:3])


def test_a_rate_that_is_a_share_of_the_wrong_pairs_accepts_that_share():
    """0.29 * 100 is below 29 in floating point."""
    y = np.tile([0, 1], 100)  # wrong and right candidates in turn, the last one the nearest
    for k in range(1, 101):
        found = tar_at_far([[1.0]], [1], k / 100, np.arange(1.0, 201)[:, None], y, similarity="dot")
        assert found[k / 100] == min(1.0, (k + 1) / 100)


@pytest.mark.parametrize("of_queries", [1, 5, 1000])
@pytest.mark.parametrize("classes", [2, 40])
def test_scores_that_are_looked_at_for_thresholds_are_bounded(classes, of_queries, monkeypatch):
    """However few queries a block has: of a large class there are two."""
    from fastdml.metrics import evaluation, pairs, sweep

    seen, inner = [], pairs.thresholds_of
    monkeypatch.setattr(pairs, "thresholds_of", lambda s: (seen.append(s), inner(s))[1])
    monkeypatch.setattr(pairs, "SAMPLE", 400)
    monkeypatch.setattr(pairs, "SAMPLED_QUERIES", of_queries)
    monkeypatch.setattr(sweep, "_RIGHT", 300)
    x, y = clustered(300, 20)
    y = np.arange(300) % classes
    problem, relation = evaluation._setup(x, y, None, None, "cosine", None, None, None, "auto")
    found = evaluation._tally(problem, relation, 1 << 20, False)
    most = max(int(relation.count.max()), min(of_queries, 300))  # of a query, or of each one
    assert 200 <= len(seen[0]) <= 400 + most and len(found.thresholds) > 100


@pytest.mark.parametrize("backend", BACKENDS)
def test_uniformity_of_pairs_that_are_all_far(backend):
    """Whose exponentials are no numbers of the type."""
    from fastdml.metrics import uniformity

    x = clustered(50, 9)[0]
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    d2 = ((unit[:, None] - unit)**2).sum(-1)[np.triu_indices(50, 1)]
    g = -x[:, ::-1]
    other = ((unit[:, None] + unit[:, ::-1])**2).sum(-1)
    for t in (19.0, 60.0, 3000.0):
        for some, more in ((d2, ()), (other, (g,))):
            true = np.logaddexp.reduce(-t * some, axis=None) - np.log(some.size)
            for kind in (np.float32, np.float64):
                got = uniformity(x.astype(kind), *(z.astype(kind) for z in more), t=t, backend=backend)
                assert got == pytest.approx(true, rel=1e-5 if kind == np.float32 else 1e-10)


def test_alpha_and_t():
    from fastdml.metrics import alignment, uniformity

    x, y = clustered(50, 9)
    own = np.arange(50)
    true = brute.spread(x, x, classes_of(y, y), own, True, t=3.0, alpha=1.0)
    assert alignment(x, y, alpha=1.0) == pytest.approx(true["alignment"], rel=1e-12)
    assert uniformity(x, t=3.0) == pytest.approx(true["uniformity"], rel=1e-12)


def test_results_by_class_and_intervals():
    x, y = clustered(120, 20)
    got = evaluate(x, y, metrics=("map", "recall@1"))
    values, known = got.per_query["map"], got.answerable
    assert np.isnan(values[~known]).all() and 0 < (~known).sum() < 60
    for label, mean in got.per_class("map").items():
        assert mean == pytest.approx(values[known & (y == label)].mean(), abs=1e-12)
    assert set(got.per_class("map")) == set(y[known].tolist())
    low, high = got.interval("map", 0.9)
    assert low < got["map"] < high and got.interval("map", 0.9) == (low, high)
    # The normal approximation of the same interval.
    half = 1.645 * values[known].std() / np.sqrt(known.sum())
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    wide_low, wide_high = got.interval("map", 0.9, by="class")
    assert wide_high - wide_low > high - low and wide_low < got["map"] < wide_high
    assert got.interval("map", 0.9, seed=1) != (low, high)


def test_memory_and_blocks_do_not_show(monkeypatch):
    """Whatever the blocks of queries, the tiles of the gallery and the threads: the same, bit for bit."""
    from fastdml.metrics import sweep

    x, y = clustered(900, 150)
    x = x.astype(np.float32)
    whole = evaluate(x, y, metrics=METRICS, neighbours=20)
    monkeypatch.setattr(sweep, "_ROWS", 37)
    monkeypatch.setattr(sweep, "_TILE_BYTES", 1)
    monkeypatch.setattr(sweep, "_RIGHT", 100)
    torch.set_num_threads(3)
    pieces = evaluate(x, y, metrics=METRICS, neighbours=20)
    assert (whole.neighbours == pieces.neighbours).all()
    for key in whole:
        # Sums of float32 exponentials know where tiles end.
        assert whole[key] == pytest.approx(pieces[key], abs=1e-7 if key == "uniformity" else 1e-14)
        if key in whole.per_query:
            assert np.array_equal(whole.per_query[key], pieces.per_query[key], equal_nan=True)


def test_scores_do_not_depend_on_the_place_in_a_small_block():
    """Right pairs fall on their own thresholds, which another pass has found."""
    rng = np.random.default_rng(0)
    y, z = np.arange(21) % 4, np.array([1, 2, 3, 1])  # queries of class 0 are passed over there
    for dim in (7, 15, 33):
        x, g = (rng.standard_normal((n, dim)) for n in (21, 4))
        for rows in range(1, 8):
            size = rows * 6 * g.size // dim * g.itemsize
            got = evaluate(x, y, g, z, metrics="auc", backend="chunked", block_bytes=size)
            assert not got.pairs.right[::2].any(), (dim, rows)


def test_autocast_narrows_nothing():
    x, y = clustered(90, 9, 24)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True) + 1).astype(np.float32)
    true = dict(evaluate(x, y, backend="chunked"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dict(evaluate(x, y, backend="chunked")) == true


def test_equal_rows_tie_wherever_they_stand():
    """Scores of one row's copies are equal, bit for bit, in float32 with arithmetic that rounds."""
    rng = np.random.default_rng(7)
    x = np.tile(rng.standard_normal((1, 67)).astype(np.float32), (1300, 1))
    y = rng.integers(0, 5, 1300)
    for similarity in ("cosine", "dot", "distance"):
        got = evaluate(x, y, metrics=("map@r", "recall@1", "auc", "mrr"), similarity=similarity,
                       neighbours=3)  # fmt: skip
        assert got["recall@1"] == 0 and got["auc"] == 0.5
        wrong = (y != y[:, None]).sum(1)
        assert got["mrr"] == pytest.approx((1 / (wrong + 1)).mean(), abs=1e-12)
        assert got.neighbours[0].tolist() == [1, 2, 3] and got.neighbours[5].tolist() == [0, 1, 2]
