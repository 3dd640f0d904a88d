"""Nothing to compare with: a loss of 0 that still has a gradient, of zeros, in everything that learns."""

import inspect

import pytest
import torch
from conftest import BACKENDS, batch_of
from test_faults import build
from torch import nn

import fastdml
from fastdml import functional, losses, miners, reducers
from fastdml.distributed import wrap

D = 4
g = torch.Generator().manual_seed(0)
x, y = torch.randn(8, D, generator=g), torch.tensor([0, 0, 0, 1, 1, 2, 2, 0])
NO_ROWS, NO_LABELS = x[:0], y[:0]
LISTED = (NO_LABELS,) * 3, (NO_LABELS,) * 4
# The negatives of N-pair come from the batch.
OVER_SAMPLES = [n for n in losses.MODULES if issubclass(losses.MODULES[n], losses.base.SampleLoss)]
# Variances, and meta-classes drawn from the batch, are of at least two samples.
OF_BATCHES = [n for n in losses.MODULES if n not in ("ManifoldLoss", "VICRegLoss")]
WITH_OTHERS = [n for n in OVER_SAMPLES if n != "NPairsLoss"]


def floats(t):
    return isinstance(t, torch.Tensor) and t.is_floating_point()


def proxies_are_rows(module):
    return module.in_torch is None and module.description().rows == "proxies"


def nothing_of(module, *batch, **more):
    """Asserts that the loss is 0 and differentiable, and its gradients 0."""
    embeddings = [t.clone().requires_grad_() if floats(t) else t for t in batch]
    value = module(*embeddings, **more)
    over = getattr(module, "num_classes", None) if proxies_are_rows(module) else batch[0].shape[0]
    assert value.shape == ((over,) if module.reduction == "none" else ()) and not value.any()
    value.sum().backward()
    grad = embeddings[0].grad
    assert grad is not None and grad.shape == batch[0].shape and not grad.any()
    for p in module.parameters():
        assert p.grad is None or not p.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", WITH_OTHERS)
def test_other_candidates_without_rows(name, backend):
    """The first step of a memory."""
    for reduction in losses.MODULES[name].reductions:
        try:
            module = build(name, reduction=reduction, backend=backend)
        except ValueError:  # a combination that the loss refuses
            continue
        nothing_of(module, x, y, None, NO_ROWS, NO_LABELS)
        nothing_of(module, x, y, None, NO_ROWS, NO_LABELS, own=torch.full((8,), -1))
        nothing_of(module.train(), NO_ROWS, NO_LABELS, None, x, y)


FORMS = {
    "swap": lambda: losses.TripletMarginLoss(swap=True),
    "drawn": lambda: losses.TripletMarginLoss(triplets_per_anchor=3),
    "by distance": lambda: losses.MarginLoss(triplets_per_anchor="distance_weighted"),
    "beta": lambda: losses.MarginLoss(nu=0.5, learn_beta=True),
    "betas": lambda: losses.MarginLoss(nu=0.5, learn_beta=True, num_classes=3, reduction="none"),
    "one beta of rows": lambda: losses.MarginLoss(nu=0.5, learn_beta=True, reduction="none"),
    "mixtures": lambda: losses.RecallAtKLoss(simix=True),
    "raw": lambda: losses.TripletMarginLoss(similarity="raw_distance"),
    "means of distances": lambda: losses.IntraPairVarianceLoss(similarity="distance"),
    "dot": lambda: losses.SignalToNoiseRatioContrastiveLoss(similarity="dot"),
    "semi-variance": lambda: losses.SOPRCLoss(3, semi_variance_weight=1),
    "penalty": lambda: losses.NPairsLoss(l2_reg=0.1),
    "drawn positives": lambda: losses.NPairsLoss(form="all"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_without_rows(form):
    nothing_of(FORMS[form](), NO_ROWS, NO_LABELS)
    if form not in ("mixtures", "penalty", "drawn positives"):
        nothing_of(FORMS[form](), x, y, None, NO_ROWS, NO_LABELS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OF_BATCHES)
def test_a_batch_without_rows(name, backend):
    """A rank without samples takes part in the synchronisation of gradients: proxies have them too."""
    for reduction in losses.MODULES[name].reductions:
        try:
            module = build(name, reduction=reduction, backend=backend)
        except ValueError:
            continue
        nothing_of(module, *batch_of(module, NO_ROWS, NO_LABELS).values())


@pytest.mark.parametrize("name", OF_BATCHES)
def test_proxies_have_a_gradient_without_rows(name):
    module = build(name)
    if not any(p.dim() == 2 for p in module.parameters()):
        pytest.skip("no proxies")
    nothing_of(module, NO_ROWS, NO_LABELS)
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("backend", ["auto", "chunked", "dense"])
@pytest.mark.parametrize("name", OVER_SAMPLES)
def test_lists_without_pairs(name, backend):
    """Losses that take them as weights of samples count all of them instead, and in SPCE a sample is its own
    positive, of a term that is no hinge."""
    module = build(name, backend=backend).eval()
    if module.description().tuples == "weights" or name == "SPCELoss":
        return
    for listed in LISTED:
        nothing_of(module, x, y, listed)
        assert module(x.half(), y, listed).dtype == torch.float32


def test_pairs_of_samples_without_another():
    """Row by row: no negative, and the histogram stays."""
    for rows, others in ((0, 0), (0, 3), (3, 0), (1, 1)):
        loss = losses.DynamicSoftMarginLoss()
        leaf = x[:rows].clone().requires_grad_()
        value = loss(leaf, ref_emb=x[:others])
        assert value == 0 and not torch.autograd.grad(value, leaf)[0].any() and not loss.hist_.any()


MINERS = {n: m for n, m in vars(miners).items() if inspect.isclass(m) and issubclass(m, nn.Module)}


MINING = [n for n in MINERS if n not in ("Miner", "BaseMiner", "EmbeddingsAlreadyPackagedAsTriplets")]


@pytest.mark.parametrize("name", MINING)
def test_miners_find_nothing(name):
    miner = MINERS[name]()
    for batch in ((x, y, NO_ROWS, NO_LABELS), (NO_ROWS, NO_LABELS), (NO_ROWS, NO_LABELS, x, y)):
        found = tuple(miner(*batch))
        assert len(found) == miner.tensors
        assert all(t.dtype == torch.int64 and t.shape == (0,) for t in found)
        for loss in (losses.TripletMarginLoss(), losses.MultiSimilarityLoss(), losses.MarginLoss()):
            nothing_of(loss, *batch[:2], found, *batch[2:])
            assert loss(*batch[:2], miner(*batch), *batch[2:]) == 0  # fused


REDUCERS = {
    "threshold": lambda: reducers.ThresholdReducer(low=0.1),
    "classes": lambda: reducers.ClassWeightedReducer(torch.ones(9)),
    "by name": lambda: reducers.MultipleReducers({"neg_loss": reducers.SumReducer()}),
}


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("name", OVER_SAMPLES)
def test_reducers_of_nothing(name, reducer):
    """In half precision, whose losses are float32. One of a kind has no positive, one alone no pair."""
    half = [x.half(), y, None, x.half()[:0], NO_LABELS]
    for objects in ({}, {"reducer": REDUCERS[reducer]()}):
        module = build(name, **objects).eval()
        batches = [(NO_ROWS.half(), NO_LABELS), half][: 1 if name == "NPairsLoss" else 2]
        for embeddings, *more in batches:
            leaf = embeddings.clone().requires_grad_()
            value = module(leaf, *more)
            assert value.shape == () and value.dtype == torch.float32 and not value
            assert not torch.autograd.grad(value, leaf)[0].any()
        alone = module(x.half()[:1].requires_grad_(), y[:1])
        assert alone.shape == () and alone.dtype == torch.float32 and alone.requires_grad


def test_lists_of_nothing():
    """All parts are named, also by losses that list triplets."""
    nothing = reducers.DoNothingReducer()
    found = losses.ContrastiveLoss(reducer=nothing)(x, y, None, NO_ROWS, NO_LABELS)
    assert set(found) == {"pos_loss", "neg_loss"} and found["neg_loss"]["losses"] == 0
    assert losses.TripletMarginLoss(reducer=nothing)(NO_ROWS, NO_LABELS)["loss"]["losses"] == 0


class Mine(reducers.SumReducer):
    """A user's, which gets lists."""


@pytest.mark.parametrize("name", ["NTXentLoss", "ContrastiveLoss", "SoftBinAPLoss"])
def test_a_list_of_nothing_has_a_gradient_of_all(name):
    leaves = [x.clone().requires_grad_(), x[:3].clone().requires_grad_()]
    value = build(name, reducer=Mine())(leaves[0], y[:1].expand(8), LISTED[1], leaves[1], y[-1:].expand(3))
    found = torch.autograd.grad(value, leaves)
    assert not value and not any(t.any() for t in found)


def test_the_penalty_of_samples_of_which_none_is_an_anchor():
    loss = losses.NPairsLoss("all", l2_reg=0.1, reducer=Mine())
    torch.testing.assert_close(loss(x[:1], y[:1]), 0.1 * x[0].norm())


def test_a_function_of_candidates_without_rows_and_own_copies():
    every = lambda i, j: (torch.ones(len(i), len(j), dtype=torch.bool),) * 2  # noqa: E731
    nothing_of(losses.SemiVarianceLoss(), x, None, every, NO_ROWS, own=torch.full((8,), -1))


def test_functions_of_nothing_on_ranks():
    shared = wrap(losses.TripletMarginLoss(backend="dense"))
    every = lambda i, j: (torch.ones(len(i), len(j), dtype=torch.bool),) * 2  # noqa: E731
    nothing_of(shared.loss, x, None, every, NO_ROWS)
    assert shared(x, None, every, NO_ROWS) == 0


def test_wrappers_of_nothing():
    memory = fastdml.wrappers.CrossBatchMemory(losses.SupConLoss(), D, 16)
    value = memory(x.clone().requires_grad_(), y, enqueue_mask=torch.zeros(8, dtype=torch.bool))
    assert value == 0 and value.requires_grad
    rows = fastdml.wrappers.CrossBatchMemory(losses.SupConLoss(reduction="none"), D, 16)
    assert rows(x, y, enqueue_mask=torch.zeros(8, dtype=torch.bool)).shape == (8,)
    assert memory(NO_ROWS, NO_LABELS) == 0 and memory.filled == 0
    assert fastdml.wrappers.SelfSupervisedLoss(losses.NTXentLoss())(NO_ROWS, NO_ROWS) == 0


def test_functional_forms_of_nothing():
    assert functional.info_nce(NO_ROWS, NO_ROWS) == 0
    assert functional.proxy_anchor(NO_ROWS, NO_LABELS, x) == 0


def test_nothing_of_a_network_that_has_diverged_is_no_zero():
    assert losses.SupConLoss()(x / 0, y, None, NO_ROWS, NO_LABELS).isnan()


def test_nothing_is_explained():
    assert fastdml.explain(losses.SupConLoss(), x, y, None, NO_ROWS, NO_LABELS).columns == 0


@pytest.mark.unpoisoned
def test_nothing_in_a_compiled_graph():
    torch._dynamo.reset()
    compiled = torch.compile(losses.SupConLoss(), fullgraph=True, backend="aot_eager")
    leaf = x.clone().requires_grad_()
    compiled(leaf, y, None, NO_ROWS, NO_LABELS).backward()
    assert not leaf.grad.any()
