"""What users do with modules beyond calling them: derive, save, extend, wrap."""

import copy
import io

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils import parametrizations, parametrize

import fastdml
from fastdml import losses, miners
from fastdml.distributed import shard, wrap
from fastdml.distributed.ranks import Ranks
from fastdml.labels import LabelSets
from fastdml.losses import (
    CrossBatchMemory,
    Labelled,
    MatryoshkaLoss,
    MultipleLosses,
    SelfSupervisedLoss,
)
from fastdml.metrics import evaluate, nearest_neighbours
from fastdml.reducers import DoNothingReducer
from fastdml.samplers import MPerClassSampler

X, Y = torch.randn(24, 8, generator=torch.Generator().manual_seed(0)), torch.arange(24) // 4


class Twice(losses.MultiSimilarityLoss):
    """The other way round from what wrappers ask for."""

    def forward(self, *batch, **further):
        return 2 * super().forward(*batch, **further)


class TwiceInParts(losses.MultiSimilarityLoss):
    def calls(self, *batch, **further):
        return [c.replace(weight=2 * c.weight) for c in super().calls(*batch, **further)]


WRAPPERS = {
    "memory": lambda loss: CrossBatchMemory(loss, 8, 50),
    "widths": lambda loss: MatryoshkaLoss(loss, (4, 8)),
    "labelled": Labelled,
    "views": SelfSupervisedLoss,
    "wrap": wrap,
    "wrap of several": lambda loss: wrap(MultipleLosses([loss])),
    "widths of several": lambda loss: MatryoshkaLoss(MultipleLosses([loss]), (4, 8)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_forward_that_wrappers_would_pass_over_is_refused(name):
    with pytest.raises(ValueError, match=r"^loss: expected one that is the sum of its parts, got Twice"):
        WRAPPERS[name](Twice())
    given = (X, X + 0.1) if name == "views" else (X, Y)
    plain, twice = (WRAPPERS[name](kind()) for kind in (losses.MultiSimilarityLoss, TwiceInParts))
    torch.testing.assert_close(twice(*given), 2 * plain(*given))


class TwiceOfProxies(losses.ArcFaceLoss):
    def forward(self, *batch, **further):
        return 2 * super().forward(*batch, **further)


def test_so_are_those_of_proxies_that_are_sharded():
    with pytest.raises(ValueError, match=r"got TwiceOfProxies, which has a forward of its own"):
        shard(lambda classes: TwiceOfProxies(classes, 8), 6)


def test_several_call_a_forward_of_its_own():
    torch.testing.assert_close(MultipleLosses([Twice()])(X, Y), Twice()(X, Y))


@pytest.mark.parametrize("outer", [wrap, lambda loss: MatryoshkaLoss(loss, (4, 8))])
def test_losses_without_parts_are_named_within_others(outer):
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    with pytest.raises(ValueError, match=r"^loss: expected a loss of fastdml, got SupConLoss"):
        outer(MultipleLosses([theirs.SupConLoss()]))


@pytest.mark.parametrize(
    "make", [miners.MultiSimilarityMiner, miners.TripletMarginMiner, miners.BatchHardMiner]
)
def test_a_miner_is_saved_between_steps(make):
    miner = make()
    kept = miner(X, Y)
    copied, file = copy.deepcopy(miner), io.BytesIO()
    torch.save(MultipleLosses([losses.TripletMarginLoss()], [miner]), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False).miners[0]
    for other in (copied, loaded):
        assert all(torch.equal(a, b) for a, b in zip(other(X, Y), kept, strict=True))


@pytest.mark.parametrize(
    ("loss", "name"), [(losses.ArcFaceLoss(6, 8), "W"), (losses.ProxyAnchorLoss(6, 8), "proxies")]
)
def test_torch_extends_proxies(loss, name):
    """... which changes the class of a module."""
    value = loss(X, Y)
    parametrizations.weight_norm(loss, name)
    torch.testing.assert_close(loss(X, Y), value)
    loss(X, Y).backward()
    assert parametrize.is_parametrized(loss, name) and all(p.grad is not None for p in loss.parameters())


def test_a_loss_changes_its_class_as_fully_shard_does():
    loss = losses.ProxyAnchorLoss(6, 8)
    value, kind = loss(X, Y), loss.__class__
    loss.__class__ = type(f"FSDP{kind.__name__}", (FSDPModule, kind), {})
    assert isinstance(loss, FSDPModule) and isinstance(loss, losses.ProxyAnchorLoss)
    torch.testing.assert_close(loss(X, Y), value)


def test_learnt_weights_of_samples_and_classes_are_refused():
    loss = Labelled(losses.SupConLoss())
    weights = torch.rand(24, requires_grad=True)
    with pytest.raises(ValueError, match=r"^sample_weights: expected weights that want no gradient"):
        loss(X, Y, sample_weights=weights)
    assert loss(X, Y, sample_weights=weights.detach()).isfinite()
    with pytest.raises(ValueError, match=r"^class_weights: expected weights that want no gradient"):
        Labelled(losses.SupConLoss(), class_weights=torch.nn.Parameter(torch.ones(6)))


def test_a_compiled_loss_is_wrapped():
    loss = torch.compile(losses.MultiSimilarityLoss(), backend="eager")
    torch.testing.assert_close(wrap(loss)(X, Y), fastdml.losses.MultiSimilarityLoss()(X, Y))


def test_a_wrapped_loss_with_a_miner_takes_no_pairs():
    loss = wrap(losses.ContrastiveLoss(), miner=miners.MultiSimilarityMiner())
    i = torch.arange(3)
    with pytest.raises(ValueError, match=r"^indices_tuple: expected None with a miner, got pairs$"):
        loss(X, Y, (i, i + 1, i + 2))
    assert loss(X, Y).isfinite()


REFUSED_ALONE = {
    "own: expected a number of at least 0": {"own": -1},
    "own: expected a number or a tensor": {"own": True},
    "own: expected a number or a tensor of 24 integers, got torch.float32": {"own": torch.arange(24.0)},
    "indices_tuple: expected a1 to be": {"indices_tuple": (torch.rand(2), *torch.zeros(3, 2).long())},
    "indices_tuple: expected .* of length 2": {"indices_tuple": torch.zeros(2, 2).long().unbind()},
}


@pytest.mark.parametrize("words", REFUSED_ALONE)
def test_a_wrapped_loss_of_one_process_refuses_what_the_loss_does(words):
    for loss in (losses.ContrastiveLoss(), wrap(losses.ContrastiveLoss())):
        with pytest.raises(ValueError, match=f"^{words}"):
            loss(X, Y, ref_emb=X + 1, ref_labels=Y, **REFUSED_ALONE[words])


def test_proxies_are_not_shared_out_anew_among_other_ranks(monkeypatch):
    """As where a loss is made before torch.distributed is initialised, or loaded on another rank."""
    loss = shard(lambda n: losses.ArcFaceLoss(n, 8), 6)
    loss(X, Y)
    monkeypatch.setattr(Ranks, "size", 2)
    for call in (lambda: loss(X, Y), loss.full_state_dict):
        with pytest.raises(ValueError, match=r"^group: expected the 1 ranks that the loss was made on"):
            call()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: wrap(wrap(losses.NTXentLoss())), "loss: expected one that is not wrapped yet"),
        (lambda: wrap(MultipleLosses([wrap(losses.NTXentLoss())])), "loss: expected one that is not wrapped"),
        (lambda: wrap(losses.NTXentLoss(reducer=DoNothingReducer())), "reducer: expected one that makes"),
        (lambda: wrap(losses.NTXentLoss(), miner="hard"), "miner: expected a miner or None"),
        (lambda: wrap(losses.NTXentLoss(), "x"), "group: expected a process group"),
        (lambda: shard(lambda n: losses.ArcFaceLoss(n, 8), 6, 3), "group: expected a process group"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_when_it_is_made(make, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        make()


WITHIN_ANOTHER_DEFAULT = {
    "listed": lambda x, y, t: losses.ContrastiveLoss()(x, y, t),
    "listed, of a set that is distinct": lambda x, y, t: losses.SupConLoss()(x, y, t),
    "sets": lambda x, y, t: losses.SupConLoss()(x, None, LabelSets(y[:, None] == y)),
    "neighbours": lambda x, y, t: nearest_neighbours(x, 2, backend="chunked"),
    "relevance": lambda x, y, t: evaluate(x, relevance=lambda i, j: y[i][:, None] == y[j])["map"],
    "seeds": lambda x, y, t: len(MPerClassSampler(y, 2, 4, 8)),
}


@pytest.mark.parametrize("name", WITHIN_ANOTHER_DEFAULT)
def test_data_stays_where_it_is_under_another_default_device(name):
    """Meta stands for a default of "cuda" beside data on the CPU."""
    call = WITHIN_ANOTHER_DEFAULT[name]
    x, y = torch.randn(20, 6), torch.arange(20) // 4
    listed = tuple(miners.BatchHardMiner()(x, y))
    fastdml.set_workspace(None)  # no buffer of before
    with torch.device("meta"):
        within = call(x, y, listed)
    torch.testing.assert_close(within, call(x, y, listed), rtol=0, atol=0)
