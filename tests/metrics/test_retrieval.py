import numpy as np
import pytest
import torch

from fastdml.metrics import map_at_r, nearest_neighbours, recall_at_k, retrieval_metrics

KS = (1, 2, 4, 10)


def problem(n=157, m=None, classes=23, dim=7, dtype=torch.float32, seed=0):
    """Clustered points of unequal, shuffled classes, some without a second item."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=g)

    def draw(count):
        labels = (torch.rand(count, generator=g) ** 2 * classes).long()
        noise = torch.randn(count, dim, generator=g)
        scale = torch.rand(count, 1, generator=g) + 0.5
        return ((centres[labels] + 0.8 * noise) * scale).to(dtype), labels * 1000003 - 17

    return draw(n) if m is None else (*draw(n), *draw(m))


def naive(x, y, ref=None, ref_y=None, distance="cosine", ks=KS):
    """One query and one candidate at a time, in float64; ties count against the query."""
    gallery, gallery_y = (x, y) if ref is None else (ref, ref_y)
    x, gallery = x.double().numpy(), gallery.double().numpy()
    y, gallery_y = y.tolist(), gallery_y.tolist()

    def nearness(a, b):
        if distance == "cosine":
            return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        return a @ b if distance == "dot" else -np.linalg.norm(a - b)

    hits, precision, count = dict.fromkeys(ks, 0), 0.0, 0
    for i in range(len(x)):
        ranking = []
        for j in range(len(gallery)):
            if ref is not None or i != j:
                right = y[i] == gallery_y[j]
                ranking.append((-nearness(x[i], gallery[j]), right))
        right = [r for _, r in sorted(ranking)]  # False sorts first: wrong before right in a tie
        total = sum(right)
        if not total:
            continue
        count += 1
        for k in ks:
            hits[k] += any(right[:k])
        precision += sum(sum(right[: i + 1]) / (i + 1) for i in range(total) if right[i]) / total
    return {**{f"recall@{k}": hits[k] / count for k in ks}, "map@r": precision / count}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("block_bytes", [1, 5000, 1 << 25])
def test_one_set_equals_the_naive_loop(distance, block_bytes):
    x, y = problem()
    got = retrieval_metrics(x, y, KS, distance=distance, block_bytes=block_bytes)
    assert_same(got, naive(x, y, distance=distance))
    assert 0.1 < got["map@r"] < 0.9  # a problem that tells right from wrong


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("block_bytes", [1, 5000, 1 << 25])
def test_gallery_equals_the_naive_loop(distance, block_bytes):
    x, y, ref, ref_y = problem(n=61, m=70, classes=60)
    assert not set(y.tolist()) <= set(ref_y.tolist())  # some queries have no candidate
    got = retrieval_metrics(x, y, KS, ref, ref_y, distance=distance, block_bytes=block_bytes)
    assert_same(got, naive(x, y, ref, ref_y, distance=distance))


@pytest.mark.parametrize("with_gallery", [False, True])
@pytest.mark.parametrize("distance", ["euclidean", "dot"])
def test_ties_count_against_the_query(distance, with_gallery):
    g = torch.Generator().manual_seed(0)
    # Three values per coordinate: float32 scores are exact and most of them are tied.
    x = torch.randint(-1, 2, (120, 3), generator=g).float()
    y = torch.randint(0, 12, (120,), generator=g)
    x[:, 0] -= x[:, 0].mean().round()
    ref = (x[60:], y[60:]) if with_gallery else ()
    if distance == "euclidean":  # the centring must stay exact too
        x = torch.cat([x[:60], -x[:60]])
        y = torch.cat([y[:60], y[:60]])
        ref = (x.clone(), y) if with_gallery else ()  # the same tensor would be one set
    assert_same(
        retrieval_metrics(x, y, KS, *ref, distance=distance), naive(x, y, *ref, distance=distance)
    )


def test_collapsed_embedding_scores_nothing():
    y = torch.arange(40) % 10
    values = retrieval_metrics(torch.ones(40, 4), y, (1, 4))
    assert values == {"recall@1": 0, "recall@4": 0, "map@r": 0}


def test_perfect_embedding_scores_one():
    y = torch.arange(30) % 5
    x = torch.nn.functional.one_hot(y).float()
    assert retrieval_metrics(x, y, 1) == {"recall@1": 1, "map@r": 1}


@pytest.mark.parametrize("with_gallery", [False, True])
def test_equals_pytorch_metric_learning(with_gallery):
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning.distances import CosineSimilarity
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    x, y, ref, ref_y = problem(n=150, m=200)
    y, ref_y = (y + 17) // 1000003, (ref_y + 17) // 1000003
    calculator = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        knn_func=CustomKNN(CosineSimilarity()),
        device=torch.device("cpu"),
    )
    gallery = (ref, ref_y) if with_gallery else ()
    theirs = calculator.get_accuracy(x, y, *gallery)
    ours = retrieval_metrics(x, y, 1, *gallery)
    assert ours["recall@1"] == pytest.approx(theirs["precision_at_1"], abs=1e-12)
    assert ours["map@r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-6)


def test_short_forms_agree_with_the_whole():
    x, y = problem()
    values = retrieval_metrics(x, y, KS)
    assert recall_at_k(x, y, KS) == {k: values[f"recall@{k}"] for k in KS}
    assert recall_at_k(x, y, 4) == {4: values["recall@4"]}
    assert recall_at_k(x, y, KS, x, y) == recall_at_k(x, y, KS)  # the same tensor is one set
    assert map_at_r(x, y) == values["map@r"]


def test_k_beyond_the_candidates_means_all_of_them():
    x, y = problem(n=12, classes=3)
    counted = [(y == c).sum() for c in y]
    assert recall_at_k(x, y, 100)[100] == 1.0 and max(counted) > 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_types(dtype):
    x, y = problem(dtype=dtype)
    assert_same(retrieval_metrics(x, y, KS), naive(x, y))


def test_neighbours():
    x, _, ref, _ = problem(n=40, m=30)
    expected = torch.cdist(x, x).fill_diagonal_(torch.inf).argsort(1)[:, :5]
    got = nearest_neighbours(x, 5, distance="euclidean", block_bytes=700)
    assert torch.equal(got, expected)
    expected = torch.cdist(x, ref).argsort(1)
    assert torch.equal(nearest_neighbours(x, 30, ref, distance="euclidean"), expected)


def test_memory_is_linear():
    n = 4000
    x, y = problem(n=n, classes=900)
    blocks = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            blocks.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out)
                          if isinstance(t, torch.Tensor))
            return out

    with Largest():
        retrieval_metrics(x, y, (1, 4), block_bytes=64 * n * 4, backend="chunked")
    assert n < max(blocks) <= 64 * n  # against n * n = 62 times as many


X, Y = torch.ones(4, 3), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: recall_at_k(X[0], Y), "embeddings: expected a non-empty floating point"),
        (lambda: recall_at_k(X[:0], Y[:0]), "embeddings: expected a non-empty"),
        (lambda: recall_at_k(X.long(), Y), "embeddings: expected a non-empty floating point"),
        (lambda: recall_at_k(X * torch.nan, Y), "embeddings: expected finite"),
        (lambda: recall_at_k(X * 1e30, Y, similarity="dot"), "squared norm that overflows"),
        (lambda: recall_at_k(X, Y[:3]), "labels: expected 4 integers"),
        (lambda: recall_at_k(X, Y.float()), "labels: expected 4 integers"),
        (lambda: recall_at_k(X, torch.arange(4)), "labels: expected at least one query"),
        (lambda: recall_at_k(X, Y, ()), "k: expected one or more integers"),
        (lambda: recall_at_k(X, Y, (1, 0)), "k: expected one or more integers"),
        (lambda: recall_at_k(X, Y, distance="l1"), "distance: expected 'cosine'"),
        (lambda: recall_at_k(X, Y, block_bytes=0), "block_bytes: expected an integer of at least 1"),
        (lambda: map_at_r(X, Y, X), "ref_labels: expected exactly when ref_emb"),
        (lambda: map_at_r(X, Y, None, Y), "ref_labels: expected exactly when ref_emb"),
        (lambda: map_at_r(X, Y, X[:, :2], Y), "ref_emb: expected dimension 3"),
        (lambda: map_at_r(X, Y, X.clone(), Y[:2]), "ref_labels: expected 4 integers"),
        (lambda: nearest_neighbours(X, 4), "k: expected an integer from 1 to 3, got 4"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
