"""The object that grows batch by batch: with torchmetrics and without, alone and over ranks."""

import copy
import importlib
import os
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import fastdml.metrics as M

RNG = np.random.default_rng(0)
X = torch.from_numpy(RNG.standard_normal((50, 6)).astype(np.float32))
Y = torch.from_numpy(RNG.integers(0, 8, 50))
ASKED = {"metrics": ("recall", "map@r", "map", "auc"), "k": (1, 3)}
TRUE = dict(M.evaluate(X, Y, **ASKED))


@pytest.fixture(params=["torchmetrics", "alone"])
def retrieval_metrics(request, monkeypatch):
    """The class as it is with torchmetrics installed, and without."""
    if request.param == "torchmetrics":
        torchmetrics = pytest.importorskip("torchmetrics")
        assert issubclass(M.RetrievalMetrics, torchmetrics.Metric)
        yield M.RetrievalMetrics
        return
    module = sys.modules.pop("fastdml.metrics.stateful", None)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    alone = importlib.import_module("fastdml.metrics.stateful").RetrievalMetrics
    assert alone.__mro__[1].__module__ == "fastdml.metrics._metric"
    yield alone
    if module is not None:
        sys.modules["fastdml.metrics.stateful"] = module
        sys.modules["fastdml.metrics"].stateful = module
    else:
        sys.modules.pop("fastdml.metrics.stateful", None)


def values(found):
    return {k: float(v) for k, v in found.items()}


def filled(make, **options):
    metric = make(**ASKED, **options)
    for x, y in zip(X.split(13), Y.split(13)):
        metric.update(x, y)
    return metric


def test_update_compute_reset(retrieval_metrics):
    metric = filled(retrieval_metrics)
    assert values(metric.compute()) == TRUE and values(metric.compute()) == TRUE
    assert all(v.dtype == torch.float64 for v in metric.compute().values())
    assert metric.evaluate().per_class("map")
    metric.update(X[:9], Y[:9])
    assert values(metric.compute()) != TRUE
    metric.reset()
    with pytest.raises(ValueError, match="expected at least one batch"):
        metric.evaluate()
    for x, y in zip(X.split(7), Y.split(7)):
        metric.update(x, y)
    assert values(metric.compute()) == TRUE


def test_rates_are_not_rounded_on_their_way(retrieval_metrics):
    angle = torch.tensor([0.0, 40.0, 80.0, 100.0]).deg2rad()
    x, y = torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([0, 0, 0, 1])
    metric = retrieval_metrics("tar@far", far=(1 / 3, 0.01))
    metric.update(x, y)  # one of three wrong pairs, at 20 degrees, may be accepted
    assert values(metric.compute()) == {f"tar@far={1 / 3!r}": 2 / 3, "tar@far=0.01": 0.0}


def test_a_batch_without_rows_adds_nothing(retrieval_metrics):
    x, y = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)), torch.arange(12) // 3
    metric, true = retrieval_metrics(), retrieval_metrics()
    for rows, labels in ((x[:0], y[:0]), (x, y), (x[:0].numpy(), [])):
        metric.update(rows, labels)
    true.update(x, y)
    assert metric.compute() == true.compute()


def test_forward_is_of_the_batch(retrieval_metrics):
    metric = retrieval_metrics(**ASKED)
    batch = metric(X[:20], Y[:20])
    assert values(batch) == dict(M.evaluate(X[:20], Y[:20], **ASKED))
    metric(X[20:], Y[20:])
    assert values(metric.compute()) == TRUE


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_that_is_refused_loses_nothing(retrieval_metrics, rows):
    """Of one row or none there is no metric of the batch alone."""
    metric = filled(retrieval_metrics)
    with pytest.raises(ValueError, match="expected at least one"):
        metric(X[:rows], Y[:rows])
    assert values(metric.compute()) == TRUE
    metric(X, Y)
    assert len(torch.cat(list(metric.embeddings))) == 2 * len(X)


def test_gallery_storage_and_prefix(retrieval_metrics):
    metric = retrieval_metrics(**ASKED, gallery=True, prefix="val/", storage=torch.float16)
    query = torch.arange(50) % 3 == 0
    metric.update(X[:30], Y[:30], is_query=query[:30])
    metric.update(X[30:], Y[30:], is_query=query[30:])
    metric.update(X[:5], Y[:5], is_query=False)
    x = X.half()
    gallery = torch.cat([x[~query], x[:5]]), torch.cat([Y[~query], Y[:5]])
    true = M.evaluate(x[query], Y[query], *gallery, **ASKED)
    assert values(metric.compute()) == {"val/" + k: v for k, v in true.items()}
    assert metric.embeddings[0].dtype == torch.float16


def test_what_was_shown_may_change_afterwards(retrieval_metrics):
    metric, x, y = retrieval_metrics(**ASKED), X.clone().requires_grad_(), Y.clone()
    metric.update(x, y)
    with torch.no_grad():
        x.zero_()
    y.zero_()
    assert values(metric.compute()) == TRUE


@pytest.mark.filterwarnings("error")
def test_labels_lie_in_memory_as_they_like(retrieval_metrics):
    """They are kept as int64: ranks may have them in different types."""
    fixed = Y.numpy().copy()
    fixed.flags.writeable = False
    for labels in (Y.int(), fixed, fixed[::-1].copy()[::-1], fixed.astype(">i4"), fixed.astype(np.uint8)):
        metric = retrieval_metrics(**ASKED)
        metric.update(X, labels)
        assert metric.labels[0].dtype == torch.int64 and values(metric.compute()) == TRUE


def test_copies_and_moves(retrieval_metrics):
    metric = filled(retrieval_metrics)
    assert values(copy.deepcopy(metric).compute()) == TRUE
    assert values(metric.to("cpu").compute()) == TRUE
    assert metric.state_dict() == {}
    if retrieval_metrics is M.RetrievalMetrics:
        assert values(pickle.loads(pickle.dumps(metric)).compute()) == TRUE


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda m: m(k=0), "k: expected one or more integers"),
        (lambda m: m(metrics="x"), "metrics: expected names"),
        (lambda m: m(similarity="l2"), "similarity: expected one of"),
        (lambda m: m(storage=torch.int8), "storage: expected a floating point type"),
        (lambda m: m().update(X, Y[:3]), "labels: expected 50 integers"),
        (lambda m: m().update(X, ["a"] * 50), "labels: expected integers"),
        (lambda m: m().update(X, None), "labels: expected 50 integers"),
        (lambda m: m().update(X, torch.tensor(1)), "labels: expected 50 integers"),
        (lambda m: m().update(X[0], Y), "embeddings: expected a non-empty"),
        (lambda m: m().update(X, Y, is_query=True), "is_query: expected exactly with gallery=True"),
        (lambda m: m(gallery=True).update(X, Y), "is_query: expected exactly with gallery=True"),
        (lambda m: m(gallery=True).update(X, Y, is_query=Y), "is_query: expected a bool or 50"),
    ],
)
def test_refusals(retrieval_metrics, call, message):
    with pytest.raises(ValueError, match=message):
        call(retrieval_metrics)


def test_another_dimension_is_refused_when_it_comes(retrieval_metrics):
    metric = retrieval_metrics()
    metric.update(X, Y)
    with pytest.raises(ValueError, match=r"^embeddings: expected dimension \d+, as in batches before, got 2"):
        metric.update(X[:, :2], Y)


def test_in_a_collection():
    torchmetrics = pytest.importorskip("torchmetrics")
    collection = torchmetrics.MetricCollection(
        [M.RetrievalMetrics("map"), torchmetrics.classification.MulticlassAccuracy(8)]
    )
    assert "RetrievalMetrics" in collection


def test_storages_of_a_collection_stay_apart():
    torchmetrics = pytest.importorskip("torchmetrics")
    storages = {"as_given": None, "in_half": torch.float16, "in_brain": torch.bfloat16}
    each = {name: M.RetrievalMetrics("map", storage=s, prefix=name) for name, s in storages.items()}
    collection = torchmetrics.MetricCollection(each)
    for x, y in zip(X.split(20), Y.split(20)):
        collection.update(x, y)
    kept = {m.storage: {x.dtype for x in m.embeddings} for m in collection.values()}
    assert kept == {None: {torch.float32}, torch.float16: {torch.float16}, torch.bfloat16: {torch.bfloat16}}


RANKS = """
import sys, torch, torch.distributed as dist
if sys.argv[4] == "alone":
    sys.modules["torchmetrics"] = None
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
import fastdml.metrics as M
x, y = torch.load(sys.argv[3])
metric = M.RetrievalMetrics(("recall", "map@r", "map", "auc"), k=(1, 3))
part = slice(0, 17) if rank == 0 else slice(17, 50)
for a, b in zip(x[part].split(6), y[part].split(6)):
    metric.update(a, b)
def refused(metric):
    try:
        metric.compute()
    except ValueError as error:
        return str(error).partition(" expected ")[2]
none, wide = M.RetrievalMetrics(), M.RetrievalMetrics()
wide.update(x[:, : 3 + rank], y)
wrong = refused(none), refused(wide)
other = M.RetrievalMetrics(("recall", "map@r", "map", "auc"), k=(1, 3), storage=torch.float32)
refused(other)
if rank:
    other.update(x, y)
for m in (metric, other):
    found, held = {k: float(v) for k, v in m.compute().items()}, torch.cat([x[:0], *m.embeddings])
    print(found, len(held), *wrong, sep="; ")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed package")
@pytest.mark.parametrize("how", ["torchmetrics", "alone"])
def test_ranks_that_hold_different_numbers(tmp_path, how):
    """Or none: one of them, all of them."""
    if how == "torchmetrics":
        pytest.importorskip("torchmetrics")
    torch.save((X, Y), tmp_path / "data.pt")
    script = textwrap.dedent(RANKS)
    arguments = [str(tmp_path / "store"), str(tmp_path / "data.pt"), how]
    ranks = [
        subprocess.Popen([sys.executable, "-c", script, str(rank), *arguments], stdout=subprocess.PIPE,
                         text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0].strip() for process in ranks]
    wrong = "at least one batch before compute; one width and type on all ranks, got {t} [N, 3], {t} [N, 4]"
    lines = [f"{TRUE}; {count}; {wrong.format(t=X.dtype)}" for count in (17, 0, 33, len(X))]
    assert [line for one in said for line in one.splitlines()] == lines
