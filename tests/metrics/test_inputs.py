"""Tensors, arrays, lists and files of any layout mean the same; what is wrong is refused by name."""

import numpy as np
import pytest
import torch
from conftest import COMPILED

import fastdml.metrics as M

BACKENDS = ["chunked", *(["native"] if COMPILED else [])]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 7)).astype(np.float32)
Y = RNG.integers(0, 9, 60)
TRUE = dict(M.evaluate(X, Y, metrics="all", k=(1, 5)))


def same(x, y, tolerance=1e-12, **options):
    got = M.evaluate(x, y, metrics=list(TRUE), k=(1, 5), **options)
    assert dict(got) == pytest.approx(TRUE, abs=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "x",
    [
        torch.from_numpy(X),
        torch.nn.Parameter(torch.from_numpy(X)),
        X.tolist(),
        X[:, ::-1][:, ::-1],
        np.asfortranarray(X),
        torch.from_numpy(X).T.contiguous().T,
        np.repeat(X, 2, axis=0)[::2],
        np.repeat(X, 2, axis=1)[:, ::2],
        np.concatenate([X, X], axis=1)[:, :7],
        X.astype(">f4"),
        np.frombuffer(X.tobytes(), dtype=np.float32).reshape(X.shape),
    ],
    ids="tensor parameter list reversed fortran transposed rows columns padded endian readonly".split(),  # noqa: SIM905
)
def test_embeddings_of_any_form(x, backend):
    same(x, Y, 1e-6, backend=backend)


@pytest.mark.parametrize(
    "y",
    [
        torch.from_numpy(Y),
        Y.tolist(),
        tuple(int(v) for v in Y),
        Y.astype(np.int8),
        Y.astype(np.uint64),
        torch.from_numpy(Y).to(torch.uint8),
        [f"class {v}" for v in Y],
        np.array([f"class {v}" for v in Y]),
        np.array([f"class {v}" for v in Y], dtype=object),
        Y * (2**62 // 9) - 2**61,
        [int(v) * 10**18 for v in Y],
        [{int(v)} for v in Y],
        Y[:, None] == np.arange(9),
    ],
    ids="tensor list tuple int8 uint64 uint8 strings array object huge hugelist sets marks".split(),  # noqa: SIM905
)
def test_labels_of_any_form(y):
    names = [n for n in TRUE if n not in ("nmi", "ami")]
    got = M.evaluate(X, y, metrics=names, k=(1, 5))
    assert dict(got) == pytest.approx({n: TRUE[n] for n in names}, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_storage(dtype, backend):
    """Stored in half, computed in float32: as if it had been widened before."""
    x = torch.from_numpy(X).to(dtype)
    wide = x.double() if dtype == torch.float64 else x.float()
    for ref in (None, x[:20].clone()):
        one, two = (
            M.evaluate(z, Y, None if ref is None else r, None if ref is None else Y[:20],
                       metrics=("map", "auc"), neighbours=4, backend=backend)
            for z, r in ((x, ref), (wide, None if ref is None else ref.to(wide.dtype)))
        )  # fmt: skip
        assert dict(one) == dict(two) and (one.neighbours == two.neighbours).all()


@pytest.mark.skipif(not COMPILED, reason="the compiled library reads storage itself")
def test_half_precision_is_read_exactly():
    from fastdml import _C

    bits = np.arange(1 << 16, dtype=np.uint16)
    half = bits[np.isfinite(bits.view(np.float16))].view(np.float16)
    assert np.array_equal(_C.row_norms(half[:, None]), np.abs(half.astype(np.float64)))
    one = np.ones((1, 1), np.float16)
    got = M.nearest_neighbours(one, 1, half[:, None], similarity="dot", with_similarities=True)
    assert got[1][0, 0] == 65504
    scores = M.evaluate(half[:, None], np.zeros(len(half), int), one, [0], similarity="dot",
                        metrics="mrr", neighbours=1)  # fmt: skip
    assert scores["mrr"] == 1
    s = _C.Sweep32(half[:, None], None, False, np.full(len(half), -1), False)
    s.want_neighbours(1)
    s.fold(one, None, 0, 1)
    assert np.array_equal(s.neighbours()[1][:, 0], half.astype(np.float32))


def test_a_list_of_rows_that_want_gradients():
    same([row.requires_grad_() for row in torch.from_numpy(X).clone()], Y)


def test_lengths_without_the_library(monkeypatch):
    from fastdml.engine import library

    x = X.astype(np.float64) * np.geomspace(1e-290, 1e200, len(X))[:, None]
    true = np.linalg.norm(X.astype(np.float64), axis=1) * np.geomspace(1e-290, 1e200, len(X))
    monkeypatch.setattr(library, "load", lambda: None)
    np.testing.assert_allclose(M.inputs.embeddings(x, "x").norms(), true, rtol=1e-12)
    x[7, 2] = np.nan
    with pytest.raises(ValueError, match="x: expected finite rows, found NaN or infinity in 1 of"):
        M.inputs.embeddings(x, "x").norms()


def test_mapped_files(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    same(mapped, Y)
    got = M.nearest_neighbours(X[:5], 3, mapped)
    assert (got == M.nearest_neighbours(X[:5], 3, X)).all()


def test_neighbours_come_back_as_they_went_in():
    tensor = M.nearest_neighbours(torch.from_numpy(X), 3)
    array, near = M.nearest_neighbours(X, 3, with_similarities=True, similarity="distance")
    assert isinstance(tensor, torch.Tensor) and isinstance(array, np.ndarray)
    assert (tensor.numpy() == array).all()
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    true = np.linalg.norm(unit[:, None] - unit[array], axis=2)
    np.testing.assert_allclose(near, true, rtol=1e-5)
    assert (np.diff(near, axis=1) >= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_range_of_numbers(backend):
    """Directions of very long and very short rows; rows without one; distances far from the origin."""
    scale = np.geomspace(1e-11, 1e30, 60)[RNG.permutation(60)].astype(np.float32)[:, None]
    true = M.evaluate(X.astype(np.float64), Y, metrics="map")["map"]
    assert M.evaluate(X * scale, Y, metrics="map", backend=backend)["map"] == pytest.approx(true, abs=1e-9)
    double = X.astype(np.float64) * np.geomspace(1e-11, 1e200, 60)[:, None]
    assert M.evaluate(double, Y, metrics="map", backend=backend)["map"] == pytest.approx(true, abs=1e-9)
    zeros = X.copy()
    zeros[::7] = 0
    assert np.isfinite(M.evaluate(zeros, Y, metrics="map", backend=backend)["map"])
    rng = np.random.default_rng(1)
    far = 1000 + rng.integers(-8, 9, (60, 5)) / 64  # exact in float32
    got = [M.evaluate(v, Y, metrics=("map", "auc"), similarity="raw_distance", backend=backend)
           for v in (far.astype(np.float32), far - 1000)]  # fmt: skip
    assert dict(got[0]) == pytest.approx(dict(got[1]), abs=1e-12)


def bad(x=X, y=Y, *rest, call=M.evaluate, **options):
    return lambda: call(x, y, *rest, **options)


NAN = X.copy()
NAN[7, 3] = np.nan
INF = torch.from_numpy(X).clone()
INF[9] = torch.inf


@pytest.mark.parametrize(
    "call,message",
    [
        (bad(NAN), "embeddings: expected finite rows, found NaN or infinity in 1 of 60, first in row 7"),
        (bad(INF), "embeddings: expected finite rows.*row 9"),
        (bad(X[:5], Y[:5], NAN, Y), "ref_emb: expected finite rows"),
        (bad(X[0]), "embeddings: expected a non-empty floating point"),
        (bad(X[:0], Y[:0]), "embeddings: expected a non-empty"),
        (bad(X[:, :0]), "embeddings: expected a non-empty"),
        (bad(X.astype(int)), "embeddings: expected a non-empty floating point.*int64"),
        (bad(X.astype(np.longdouble)), "embeddings: expected float16, float32 or float64"),
        (bad(X.astype(complex)), "embeddings: expected a non-empty floating point"),
        (bad([[1.0, 2.0], [3.0]], [0, 0]), "embeddings: .* rows of different lengths"),
        (bad([torch.ones(2), torch.ones(3)], [0, 0]), "embeddings: .* rows of different lengths"),
        (bad("x.npy"), "embeddings: expected a non-empty"),
        (bad(torch.from_numpy(X).to_sparse()), "embeddings: .* not dense"),
        (bad(X, Y[:5]), r"labels: expected 60 integers or strings, got int64 of shape \(5,\)"),
        (bad(X, Y[:5].tolist()), "labels: expected 60 integers"),
        (bad(X, Y.astype(float)), "labels: expected 60 integers or strings, got float64"),
        (bad(X, Y > 3), "labels: expected 60 integers or strings, got bool"),
        (bad(X, torch.from_numpy(Y > 3)), "labels: expected 60 integers or strings, got torch.bool"),
        (bad(X, [True] * 60), "labels: expected 60 integers or strings, got bool"),
        (bad(X, Y[:, None]), "labels: expected 60 integers"),
        (bad(X, [1, "a"] * 30), "labels: expected 60 integers or strings, got a mixture"),
        (bad(X, [None] * 60), "labels: expected 60 integers"),
        (bad(X, None), "labels: expected labels, or a relevance function"),
        (bad(X, "labels.npy"), "labels: expected 60 integers or strings, got 'labels.npy'"),
        (bad(X, 5), "labels: expected 60 integers"),
        (bad(X, [{1}] * 59 + [1]), "labels: expected a set of labels for every row"),
        (bad(X, [{1}] * 59), "labels: expected 60 sets"),
        (bad(X, [set()] * 60), "labels: expected at least one label"),
        (bad(X, np.eye(9, dtype=bool)[Y], X[:9], np.eye(10, dtype=bool)[Y[:9]]),
         "ref_labels: expected 9 classes, as in labels, got 10"),
        (bad(X, np.eye(9, dtype=bool)[Y], X[:9], Y[:9] > 3), "ref_labels: expected a set of labels"),
        (bad(X, np.ma.masked_array(Y, Y > 3)), "labels: expected 60 integers or strings, got a masked array"),
        (bad(X, Y, X[:9], [f"{v}" for v in Y[:9]]), "ref_labels: expected the type of labels"),
        (bad(X, np.arange(60)), "labels: expected at least one query with a candidate"),
        (bad(X, Y * 0, metrics="auc"), "labels: expected a pair of different classes, which auc needs"),
        (bad(X, Y, X[:9]), "ref_labels: expected exactly when ref_emb"),
        (bad(X, Y, None, Y), "ref_labels: expected exactly when ref_emb"),
        (bad(X, Y, X, Y[::-1]), "ref_labels: expected the labels, as ref_emb is embeddings"),
        (bad(X, Y, X[:, :3], Y), "ref_emb: expected dimension 7"),
        (bad(k=1.5), "k: expected one or more integers of at least 1, got 1.5"),
        (bad(k=0), "k: expected one or more integers"),
        (bad(k=True), "k: expected one or more integers"),
        (bad(k=()), "k: expected one or more integers"),
        (bad(k="5"), "k: expected one or more integers"),
        (bad(k=torch.tensor([1.0])), "k: expected one or more integers"),
        (bad(k=1.5, call=M.recall_at_k), "k: expected one or more integers"),
        (bad(far=0), "far: expected one or more numbers in"),
        (bad(far="a"), "far: expected one or more numbers in"),
        (bad(similarity="l2"), "similarity: expected one of"),
        (bad(similarity=["cosine"]), "similarity: expected one of"),
        (bad(metrics="recal"), "metrics: expected names among .*'recal'"),
        (bad(metrics=()), "metrics: expected at least one name"),
        (bad(metrics=("map", 3)), "metrics: expected names among"),
        (bad(metrics="recall@0"), "metrics: expected names among"),
        (bad(metrics="map@12345678901234567890"), "metrics: expected names among"),
        (bad(metrics="tar@far=2"), "metrics: expected names among"),
        (bad(own_index=np.arange(60)), "own_index: expected only with a ref_emb"),
        (bad(X, Y, X[:9], Y[:9], own_index=np.arange(60)), "own_index: expected integers from -1 to 8"),
        (bad(X, Y, X[:9], Y[:9], own_index=np.full(60, 9)), "own_index: expected integers .* 8, got 9"),
        (bad(X, Y.astype(np.uint64) + 2**63), "labels: expected labels in the range of int64"),
        (bad(X, Y, X[:9], Y[:9], own_index=[0]), "own_index: expected 60 integers"),
        (bad(X, None, relevance=3), "relevance: expected a function"),
        (bad(X, [{1}] * 60, relevance=lambda q, g: np.eye(60)[q]), "labels: expected 60 integers or strings"),
        (bad(X, None, relevance=lambda q, g: np.ones((1, 2))), r"relevance: expected a matrix \[60, 60\]"),
        (bad(X, None, relevance=lambda q, g: -np.ones((len(q), 60))), "relevance: expected finite gains"),
        (bad(neighbours=60), "neighbours: expected an integer from 0 to 59"),
        (bad(backend="cuda"), "backend: expected one of"),
        (bad(block_bytes=1.5), "block_bytes: expected an integer of at least 1"),
        (bad(X, 60, call=M.nearest_neighbours), "k: expected an integer from 1 to 59, got 60"),
        (bad(X, 1.5, call=M.nearest_neighbours), "k: expected an integer from 1 to 59, got 1.5"),
        (bad(alpha=0, call=M.alignment), "alpha: expected a positive number"),
        (lambda: M.uniformity(X[:1]), "embeddings: expected at least two"),
        (lambda: M.evaluate(X, Y).interval("auc"), "metric: expected one of"),
        (lambda: M.evaluate(X, Y).interval("map", level=2), "level: expected a number between"),
        (lambda: M.evaluate(X, Y).interval("map", by="row"), "by: expected 'query' or 'class'"),
        (lambda: M.evaluate(X, [{1}] * 30 + [{2}] * 30).per_class("map"), "labels: expected one class"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_k_may_be_of_any_integer_kind():
    for k in (np.int64(5), np.array([1, 5]), torch.tensor([1, 5]), torch.tensor(5), range(1, 6)):
        assert M.recall_at_k(X, Y, k)[5] == pytest.approx(TRUE["recall@5"])


def test_a_rate_may_be_of_any_kind():
    for far in (np.float32(0.25), np.array(0.25), np.array([0.25]), torch.tensor(0.25), torch.tensor([0.25])):
        assert M.tar_at_far(X, Y, far) == M.tar_at_far(X, Y, 0.25)


def test_functions_are_the_metrics_of_evaluate():
    a, b = (X[:25], Y[:25]), (X[25:], Y[25:])
    true = M.evaluate(*a, *b, metrics="all", k=(2, 5), far=0.1)
    assert M.recall_at_k(*a, (2, 5), *b) == {k: true[f"recall@{k}"] for k in (2, 5)}
    assert M.precision_at_k(*a, (2, 5), *b) == {k: true[f"precision@{k}"] for k in (2, 5)}
    assert M.ndcg_at_k(*a, 5, *b) == {5: true["ndcg@5"]}
    assert M.r_precision(*a, *b) == true["r_precision"]
    assert M.map_at_r(*a, *b) == true["map@r"]
    assert M.mean_average_precision(*a, *b) == true["map"]
    assert M.mean_average_precision(*a, *b, k=5) == true["map@5"]
    assert M.mean_reciprocal_rank(*a, *b) == true["mrr"]
    assert M.pair_auc(*a, *b) == true["auc"]
    assert M.tar_at_far(*a, 0.1, *b) == {0.1: true["tar@far=0.1"]}
    assert M.alignment(*a, *b) == true["alignment"]
    assert M.uniformity(a[0], b[0]) == pytest.approx(true["uniformity"], rel=1e-6)
    assert M.nmi(*a) == true["nmi"] and M.ami(*a) == true["ami"]


def test_progress_is_reported():
    seen = []
    M.evaluate(X, Y, metrics="map", progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (60, 60) and seen == sorted(seen)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_marks_of_a_gallery_that_is_the_queries(kind):
    x = torch.randn(8, 4)
    rows = [[1, 0], [0, 1]]
    one, other = (np.array(r * 2, bool) for r in (rows * 2, [*rows[::-1], *rows]))
    assert dict(M.evaluate(x, kind(one), x, kind(one))) == dict(M.evaluate(x, kind(one)))
    with pytest.raises(ValueError, match="ref_labels: expected the labels"):
        M.evaluate(x, kind(one), x, kind(other))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("metrics: expected names", lambda: M.evaluate(np.eye(4), [0, 0, 1, 1], metrics=5)),
        ("seed: expected an integer", lambda: M.evaluate(np.eye(4), [0, 0, 1, 1], seed="x")),
        ("is_query: expected a bool", lambda: M.RetrievalMetrics(gallery=True).update(X, Y, is_query="q")),
        ("embeddings: .* got a masked array", lambda: M.evaluate(np.ma.masked_array(X, X > 0), Y)),
    ],
)
def test_what_is_meant_is_asked_for(words, call):
    with pytest.raises(ValueError, match=f"^{words}"):
        call()


def test_seeds_are_of_any_size():
    pytest.importorskip("sklearn")
    assert M.evaluate(np.eye(4), [0, 0, 1, 1], metrics="nmi", seed=2**40)["nmi"] >= 0
