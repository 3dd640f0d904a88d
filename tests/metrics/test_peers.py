"""scikit-learn, torchmetrics and pytorch-metric-learning, where definitions agree and where they do not.

The disagreements are rows of the table in docs/metrics.md.
"""

import logging

import numpy as np
import pytest
import torch

import fastdml.metrics as M
from fastdml.metrics import AccuracyCalculator, evaluate

RNG = np.random.default_rng(3)


def problem(n=90, classes=20, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) ** 2 * classes).astype(np.int64)
    return rng.standard_normal((classes, dim))[y] + rng.standard_normal((n, dim)), y


X, Y = problem()
S = X @ X.T
OTHERS = ~np.eye(len(X), dtype=bool)
GOT = M.evaluate(X, Y, metrics="all", k=(1, 5), far=(0.01, 0.1), similarity="dot")
KNOWN = np.flatnonzero(GOT.answerable)


class TestScikitLearn:
    sk = pytest.importorskip("sklearn.metrics")

    def by_query(self, score, **options):
        return np.mean(
            [score((Y[i] == Y)[None, OTHERS[i]].astype(int), S[None, i, OTHERS[i]], **options)
             for i in KNOWN]
        )  # fmt: skip

    def test_average_precision(self):
        def score(right, s):
            return self.sk.average_precision_score(right[0], s[0])

        assert GOT["map"] == pytest.approx(self.by_query(score), abs=1e-12)

    def test_ndcg(self):
        assert GOT["ndcg"] == pytest.approx(self.by_query(self.sk.ndcg_score), abs=1e-12)
        assert GOT["ndcg@5"] == pytest.approx(self.by_query(self.sk.ndcg_score, k=5), abs=1e-12)

    def test_graded_ndcg(self):
        gains = RNG.integers(0, 4, (30, 60)) * (RNG.random((30, 60)) < 0.5)
        q, g = X[:30], X[30:]
        got = M.ndcg_at_k(q, None, (3, 60), g, similarity="dot", relevance=lambda a, b: gains[a][:, b])
        for k in (3, 60):
            assert got[k] == pytest.approx(self.sk.ndcg_score(gains, q @ g.T, k=k), abs=1e-12)

    def test_pairs(self):
        pairs = np.triu_indices(len(X), 1)
        right, s = (Y[:, None] == Y)[pairs], S[pairs]
        assert GOT["auc"] == pytest.approx(self.sk.roc_auc_score(right, s), abs=1e-12)
        far, tar, _ = self.sk.roc_curve(right, s, drop_intermediate=False)
        for rate in (0.01, 0.1):
            assert GOT[f"tar@far={rate:g}"] == pytest.approx(tar[far <= rate].max(), abs=1e-12)

    def test_ties(self):
        """Ours: wrong ones first. Theirs: the precision at the end of a run of equal scores."""
        q, g = np.ones((1, 1)), np.ones((4, 1))
        ours = M.mean_average_precision(q, [0], g, [0, 0, 1, 1], similarity="dot")
        assert ours == pytest.approx((1 / 3 + 2 / 4) / 2)
        assert self.sk.average_precision_score([1, 1, 0, 0], [1, 1, 1, 1]) == 0.5


class TestTorchmetrics:
    tm = pytest.importorskip("torchmetrics.retrieval")
    RAW = torch.from_numpy(S[KNOWN][OTHERS[KNOWN]])
    PREDS = torch.sigmoid(RAW / 8)  # they take probabilities
    RIGHT = torch.from_numpy((Y[KNOWN, None] == Y)[OTHERS[KNOWN]])
    QUERY = torch.from_numpy(np.repeat(KNOWN, len(X) - 1))

    def theirs(self, name, preds=None, **options):
        metric = getattr(self.tm, name)(empty_target_action="error", **options)
        preds = self.PREDS if preds is None else preds
        return float(metric(preds, self.RIGHT, indexes=self.QUERY))

    @pytest.mark.parametrize(
        "ours,name,options",
        [
            ("map", "RetrievalMAP", {}),
            ("mrr", "RetrievalMRR", {}),
            ("r_precision", "RetrievalRPrecision", {}),
            ("recall@5", "RetrievalHitRate", {"top_k": 5}),
            ("precision@5", "RetrievalPrecision", {"top_k": 5}),
            ("ndcg", "RetrievalNormalizedDCG", {}),
            ("ndcg@5", "RetrievalNormalizedDCG", {"top_k": 5}),
        ],
    )
    def test_where_we_agree(self, ours, name, options):
        assert GOT[ours] == pytest.approx(self.theirs(name, **options), abs=1e-6)

    def test_their_recall_is_the_share_of_right_candidates_found(self):
        theirs = self.theirs("RetrievalRecall", top_k=5)
        right = M.evaluate(X, Y, metrics="precision@5", similarity="dot").per_query["precision@5"]
        count = np.array([(Y[i] == Y).sum() - 1 for i in KNOWN])
        assert theirs == pytest.approx((right[KNOWN] * 5 / count).mean(), abs=1e-6)
        assert abs(theirs - GOT["recall@5"]) > 0.05

    def test_their_map_at_k_divides_by_what_was_found(self):
        theirs = self.theirs("RetrievalMAP", top_k=5)
        assert theirs > GOT["map@5"] + 0.01

    def test_their_map_drops_right_candidates_of_negative_similarity(self):
        assert abs(self.theirs("RetrievalMAP", preds=self.RAW) - GOT["map"]) > 0.005

    def test_their_precision_divides_by_k_beyond_the_candidates(self):
        count = len(X) - 1
        got = M.evaluate(X, Y, metrics="precision@500", similarity="dot")["precision@500"]
        theirs = self.theirs("RetrievalPrecision", top_k=500)
        assert theirs == pytest.approx(got * count / 500, abs=1e-6)
        adaptive = self.theirs("RetrievalPrecision", top_k=500, adaptive_k=True)
        assert adaptive == pytest.approx(got, abs=1e-6)

    def test_they_count_queries_without_a_right_candidate_as_zero(self):
        every = np.arange(len(X))
        preds = torch.sigmoid(torch.from_numpy(S[OTHERS] / 8))
        right = torch.from_numpy((Y[:, None] == Y)[OTHERS])
        query = torch.from_numpy(np.repeat(every, len(X) - 1))
        theirs = float(self.tm.RetrievalMRR()(preds, right, indexes=query))
        assert theirs == pytest.approx(GOT["mrr"] * len(KNOWN) / len(X), abs=1e-6) and len(KNOWN) < len(X)


def theirs(*data, include=(), **options):
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator as Theirs
    from pytorch_metric_learning.utils.inference import CustomKNN, FaissKNN

    try:
        import faiss  # noqa: F401

        search = FaissKNN()
    except ImportError:
        search = CustomKNN(LpDistance(normalize_embeddings=False, power=1))
    options = {"knn_func": search, "exclude": ("NMI", "AMI"), "device": torch.device("cpu"), **options}
    call = options.pop("call", {})
    return Theirs(include=include, **options).get_accuracy(*data, **call)


def ours(*data, include=(), **options):
    call = options.pop("call", {})
    options = {"exclude": ("NMI", "AMI"), "device": torch.device("cpu"), **options}
    return AccuracyCalculator(include=include, **options).get_accuracy(*data, **call)


def forms():
    x, y = torch.from_numpy(X).float(), torch.from_numpy(Y)
    yield "one set", (x, y), {}
    yield "gallery", (x[:30], y[:30], x[30:], y[30:]), {}
    yield "included", (x[:30], y[:30], x, y), {"ref_includes_query": True}
    yield "numpy", (x.numpy(), y.numpy()), {}


FORMS = list(forms())
OPTIONS = [
    {},
    {"k": 1},
    {"k": 7},
    {"k": "max_bin_count"},
    {"avg_of_avgs": True},
    {"return_per_class": True, "k": "max_bin_count"},
    {"avg_of_avgs": True, "k": 3},
]


def assert_same(one, two):
    assert set(one) == set(two)
    for name in one:
        assert one[name] == pytest.approx(two[name], abs=2e-7, nan_ok=True), name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=[f[0] for f in FORMS])
def test_accuracy_calculator(form, options):
    _, data, call = form
    assert_same(ours(*data, call=call, **options), theirs(*data, call=call, **options))


@pytest.mark.filterwarnings("ignore")
def test_accuracy_calculator_compares_labels_by_a_function():
    x = torch.from_numpy(X).float()
    labels = torch.stack([torch.from_numpy(Y), torch.from_numpy(Y % 3)], dim=1)

    def compare(a, b):
        return (a[..., 0] == b[..., 0]) & (a[..., 1] == b[..., 1])

    for data, call in (((x, labels), {}), ((x[:40], labels[:40], x[40:], labels[40:]), {})):
        for options in ({}, {"k": 4}, {"avg_of_avgs": True}):
            options = {"label_comparison_fn": compare, **options}
            assert_same(ours(*data, call=call, **options), theirs(*data, call=call, **options))
    with pytest.raises(NotImplementedError, match="clustering"):
        AccuracyCalculator(label_comparison_fn=compare)


@pytest.mark.filterwarnings("ignore")
def test_accuracy_calculator_takes_another_search():
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.inference import CustomKNN

    x, y = torch.from_numpy(X).float(), torch.from_numpy(Y)
    search = CustomKNN(CosineSimilarity())
    one = ours(x, y, knn_func=search, k=9)
    assert_same(one, theirs(x, y, knn_func=search, k=9))
    assert_same(one, ours(x, y, similarity="cosine", k=9))


@pytest.mark.filterwarnings("ignore")
def test_accuracy_calculator_takes_metrics_of_a_subclass():
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator as Theirs
    from pytorch_metric_learning.utils.inference import FaissKNN

    class Added:
        def calculate_second_is_right(self, knn_labels, query_labels, not_lone_query_mask, **kwargs):
            right = knn_labels[:, 1] == query_labels
            return right[not_lone_query_mask].double().mean().item()

        def calculate_count(self, query, reference, label_counts, lone_query_labels, **kwargs):
            return len(query) + len(reference) + int(label_counts[1].sum()) + len(lone_query_labels)

        def requires_knn(self):
            return [*super().requires_knn(), "second_is_right", "count"]

    class Mine(Added, AccuracyCalculator):
        pass

    class Other(Added, Theirs):
        pass

    pytest.importorskip("faiss")
    x, y = torch.from_numpy(X).float(), torch.from_numpy(Y)
    options = {"exclude": ("NMI", "AMI"), "device": torch.device("cpu"), "k": 5}
    one = Mine(**options).get_accuracy(x, y)
    assert_same(one, Other(knn_func=FaissKNN(), **options).get_accuracy(x, y))
    assert 0 < one["second_is_right"] < 1


def test_neighbours_are_listed_for_metrics_of_neighbours_only(monkeypatch):
    """For one of clusters there are as many numbers as pairs, which nobody reads."""

    class Purity(AccuracyCalculator):
        def calculate_purity(self, query_labels, cluster_labels, **kwargs):
            pairs = torch.stack([query_labels, cluster_labels], 1).unique(dim=0, return_counts=True)
            return sum(pairs[1][pairs[0][:, 1] == c].max().item() for c in cluster_labels.unique())

        def requires_clustering(self):
            return [*super().requires_clustering(), "purity"]

    def refused(*given):
        raise AssertionError("neighbours were listed")

    pytest.importorskip("sklearn")
    monkeypatch.setattr(AccuracyCalculator, "_neighbours", refused)
    x, y = torch.from_numpy(X).float(), torch.from_numpy(Y)
    got = Purity(include=("purity", "precision_at_1"), device="cpu").get_accuracy(x, y)
    assert len(y.unique()) <= got["purity"] <= len(y)
    assert got["precision_at_1"] == ours(x, y)["precision_at_1"]
    alone = Purity(include=("purity",), device="cpu").get_accuracy(x, y)
    assert alone == {"purity": got["purity"]}


def test_included_queries_may_be_of_another_type():
    x, y = torch.from_numpy(X), torch.from_numpy(Y)
    call = {"call": {"ref_includes_query": True}}
    assert_same(ours(x[:9].float(), y[:9], x.float().double(), y, **call), ours(x[:9], y[:9], x, y, **call))


def test_labels_and_gains_may_be_of_bfloat16():
    x, y = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12) // 3
    calculator = AccuracyCalculator(include=("precision_at_1",), device="cpu")
    assert calculator.get_accuracy(x, y.bfloat16()) == calculator.get_accuracy(x, y)

    def same(i, j):
        return (y[i][:, None] == y[j]).bfloat16()

    assert evaluate(x, relevance=same)["map"] == evaluate(x, y)["map"]


def test_accuracy_calculator_alone():
    """What theirs cannot: MRR by itself, labels beyond float32, sums of k beyond the reference."""
    x, y = torch.from_numpy(X).float(), torch.from_numpy(Y)
    mrr = ours(x, y, include=("mean_reciprocal_rank",))["mean_reciprocal_rank"]
    assert mrr == pytest.approx(M.mean_reciprocal_rank(x, y, similarity="raw_distance"))
    huge = y * 3 + 2**40
    assert ours(x, huge) == ours(x, y)
    assert ours(x, y, k=10**6) == ours(x, y)
    clustered = ours(x, y, include=("NMI", "AMI"), exclude=())
    assert 0 < clustered["AMI"] < clustered["NMI"] < 1
    assert clustered["NMI"] == pytest.approx(M.nmi(x, y, similarity="raw_distance"), abs=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_where_their_calculator_differs():
    pytest.importorskip("faiss")
    x, y = torch.from_numpy(X).float(), torch.from_numpy(Y)
    mrr = ("mean_reciprocal_rank",)
    with pytest.raises(TypeError):  # neighbours are searched for other metrics only
        theirs(x, y, include=mrr, exclude=())
    # Labels become float32.
    huge = torch.arange(len(x)) // 2 + 2**25
    assert theirs(x, huge)["r_precision"] != pytest.approx(ours(x, huge)["r_precision"], abs=1e-3)
    # Neighbours that are not there are the last reference.
    some = x[:20], y[:20], x[20:50], torch.cat([y[20:49], y[:1]])
    beyond = {"k": 100, "include": ("mean_average_precision",)}
    assert ours(*some, **beyond) == ours(*some, include=beyond["include"])
    assert theirs(*some, **beyond) != pytest.approx(theirs(*some, include=beyond["include"]), abs=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_their_r_of_labels_that_do_not_match_themselves():
    x, y = torch.from_numpy(X[:60]).float(), torch.from_numpy(Y[:60])

    def unlike(a, b):
        return (a % 3 == b % 3) & (a != b)

    options = {"label_comparison_fn": unlike, "include": ("mean_average_precision",), "k": 59}
    known = np.array([(unlike(v, y)).sum() for v in y])
    one, two = (f(x, y, **options)["mean_average_precision"] for f in (ours, theirs))
    assert two > one * (1 + 0.9 / known.max())


def test_accuracy_calculator_without_any_right_candidate(caplog):
    x = torch.from_numpy(X[:6]).float()
    with caplog.at_level(logging.WARNING):
        got = ours(x, torch.arange(6))
        per_class = ours(x, torch.arange(6), return_per_class=True)
    assert all(np.isnan(v) for v in got.values())
    assert all(np.isnan(v).all() and len(v) == 6 for v in per_class.values())
    assert "None of the query labels" in caplog.text


@pytest.mark.parametrize(
    "call,error,message",
    [
        (lambda: AccuracyCalculator(include="NMI"), TypeError, "type tuple"),
        (lambda: AccuracyCalculator(include=("recall",)), ValueError, "include, exclude: expected names"),
        (lambda: AccuracyCalculator(k=0), ValueError, "k: expected an integer of at least 1, None or"),
        (lambda: AccuracyCalculator(k=1.5), ValueError, "k: expected an integer"),
        (lambda: AccuracyCalculator(avg_of_avgs=True, return_per_class=True), ValueError, "exclusive"),
        (lambda: ours(X, Y[:4]), ValueError, "same length"),
        (lambda: ours(X, ["a"] * len(X)), ValueError, "^query_labels: expected numbers"),
        (lambda: ours(X, Y, X), ValueError, "^reference_labels: expected numbers"),
        (lambda: ours(X, Y, X[0], Y), ValueError, "^reference: expected a non-empty"),
        (lambda: ours(X[:5], Y[:5], X[5:], Y[5:], call={"ref_includes_query": True}), ValueError,
         "ref_includes_query: expected the first rows"),
        (lambda: ours(X[:5], Y[:5], X[:, 1:], Y, call={"ref_includes_query": True}), ValueError,
         "ref_includes_query: expected the first rows"),
    ],
)  # fmt: skip
def test_accuracy_calculator_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()
