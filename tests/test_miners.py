"""Miners are lazy: what they select is the same whether it is fused or listed."""

import numpy as np
import pytest
import torch
from conftest import BACKENDS, CASES

import fastdml
from fastdml import functional as F
from fastdml import losses, methods
from fastdml.distances import LpDistance
from fastdml.miners import (
    BatchEasyHardMiner,
    DistanceWeightedMiner,
    HDCMiner,
    LazyPairs,
    MultiSimilarityMiner,
    TripletMarginMiner,
    UniformHistogramMiner,
)
from fastdml.reducers import MeanReducer, ThresholdReducer

NAMES = ["ragged", "wide", "big_labels", "duplicates", "one_class", "all_singletons", "reference"]


def pair_set(a, b):
    return set(zip(a.tolist(), b.tolist()))


def untouched(monkeypatch):
    """Makes listing the pairs an error."""

    def fail(self):
        raise AssertionError("the pairs were listed")

    monkeypatch.setattr(LazyPairs, "_pairs", fail)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("epsilon", [-0.1, 0.1, 0.7])
@pytest.mark.parametrize("name", NAMES)
def test_fused_equals_listed(name, epsilon, backend, monkeypatch):
    """Value and gradient, and fused means that no list ever exists."""
    case = CASES[name]()
    miner = MultiSimilarityMiner(epsilon)
    found = {}
    for form in ("listed", "fused", "argument"):
        x = case.x.clone().requires_grad_()
        ref = {} if case.ref is None else {"ref_emb": case.ref, "ref_labels": case.ref_y}
        if form == "argument":
            value = F.multi_similarity(x, case.y, epsilon=epsilon, backend=backend, **ref)
        else:
            pairs = miner(x, case.y, **ref)
            loss = losses.MultiSimilarityLoss(backend=backend if form == "fused" else "chunked")
            if form == "listed":
                pairs = tuple(pairs)
            else:
                untouched(monkeypatch)
            value = loss(x, case.y, pairs, **ref)
            monkeypatch.undo()
        found[form] = value.detach(), *torch.autograd.grad(value, x)
    for a, b in zip(found["fused"], found["argument"]):
        assert torch.equal(a, b)
    for a, b in zip(found["fused"], found["listed"]):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.1, 0.7])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "duplicates"])
def test_listed_equals_pytorch_metric_learning(name, epsilon, dtype):
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    case = CASES[name]().to(dtype)
    ref = {} if case.ref is None else {"ref_emb": case.ref, "ref_labels": case.ref_y}
    ours = MultiSimilarityMiner(epsilon)(case.x, case.y, **ref)
    theirs = miners.MultiSimilarityMiner(epsilon)(case.x, case.y, **ref)
    assert len(ours) == len(theirs) == 4
    for k in (0, 2):
        assert pair_set(ours[k], ours[k + 1]) == pair_set(theirs[k], theirs[k + 1])


def test_default_epsilon_is_the_paper_s():
    assert MultiSimilarityMiner().epsilon == 0.1


def test_is_a_tuple_to_others():
    case = CASES["ragged"]()
    pairs = MultiSimilarityMiner()(case.x, case.y)
    a1, p, a2, n = pairs
    assert len(pairs) == 4 and torch.equal(pairs[2], a2)
    assert (case.y[a1] == case.y[p]).all() and (a1 != p).all() and (case.y[a2] != case.y[n]).all()
    assert all(t.dtype == torch.int64 for t in (a1, p, a2, n))


def test_is_a_tuple_to_torch_and_its_operators():
    case = CASES["ragged"]()
    pairs = MultiSimilarityMiner()(case.x, case.y)
    plain = tuple(pairs)
    assert torch.equal(torch.cat(pairs, dim=0), torch.cat(plain)) and len(torch.hstack(tensors=pairs))
    assert torch.equal(torch.stack(pairs[:2] + plain[:2]), torch.stack([*plain[:2], *plain[:2]]))
    for both in (pairs + pairs, pairs + plain, plain + pairs):
        assert type(both) is tuple and all(a is b for a, b in zip(both, plain + plain, strict=True))
    none = (None,)
    assert (pairs + none)[4] is None and (none + pairs)[0] is None
    assert pairs.index(plain[0]) == 0 and pairs.count(None) == 0


@pytest.mark.parametrize("name", ["FastAPLoss", "NCALoss", "ProxyAnchorLoss", "ArcFaceLoss"])
@pytest.mark.parametrize("miner", ["MultiSimilarityMiner", "TripletMarginMiner"])
def test_weights_of_another_library_are_made_of_it(name, miner):
    theirs = pytest.importorskip("pytorch_metric_learning.losses")
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 8, generator=g), torch.arange(24) // 4
    loss = getattr(theirs, name)(*() if name in ("FastAPLoss", "NCALoss") else (6, 8))
    mined = getattr(fastdml.miners, miner)()(x, y)
    assert torch.equal(loss(x, y, mined), loss(x, y, tuple(mined)))


def test_large_batches_are_mined_in_blocks():
    """More columns than a block of the whole matrix could hold: rows still number from the start."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2200, 4, generator=g), torch.randint(0, 500, (2200,), generator=g)
    _, _, a2, n = MultiSimilarityMiner()(x, y)
    s = torch.nn.functional.normalize(x, dim=1)
    s = s @ s.t()
    same = y[:, None] == y
    positive = same & ~torch.eye(2200, dtype=torch.bool)
    hardest = s.masked_fill(~positive, 9.0).amin(1, keepdim=True)
    expected = ~same & (s > hardest - 0.1)
    # A pair within rounding of the band's edge may fall on either side.
    sure = ~same & ((s - hardest + 0.1).abs() > 1e-6)
    mask = torch.zeros_like(same)
    mask[a2, n] = True
    assert torch.equal(mask & sure, expected & sure)


def called_with(miner_arguments, loss_arguments, **loss_options):
    """The fused and the listed loss for pairs mined from the first arguments."""
    loss = losses.MultiSimilarityLoss(**loss_options)
    miner = MultiSimilarityMiner(0.3)
    lazy = loss(*loss_arguments, miner(*miner_arguments))
    listed = loss(*loss_arguments, tuple(miner(*miner_arguments)))
    return lazy, listed


@pytest.mark.parametrize(
    "change", ["embeddings", "labels", "similarity", "equal labels", "no labels"]
)
def test_pairs_of_another_call_keep_their_meaning(change):
    """Fused only where the loss sees what was mined; else the listed indices count."""
    case = CASES["ragged"]()
    other = {
        "embeddings": (case.x.roll(1, 0), case.y),
        "labels": (case.x, case.y.roll(1)),
        "similarity": (case.x, case.y),
        "equal labels": (case.x, case.y.clone()),
        "no labels": (case.x, None),
    }[change]
    options = {"similarity": "dot"} if change == "similarity" else {}
    lazy, listed = called_with((case.x, case.y), other, **options)
    torch.testing.assert_close(lazy, listed, rtol=1e-10, atol=0)


def test_pairs_of_other_candidates_keep_their_meaning():
    case = CASES["reference"]()
    miner, loss = MultiSimilarityMiner(-0.1), losses.MultiSimilarityLoss()
    mined, other = (case.ref, case.ref_y), (-case.ref, case.ref_y)
    lazy = loss(case.x, case.y, miner(case.x, case.y, *mined), *other)
    listed = loss(case.x, case.y, tuple(miner(case.x, case.y, *mined)), *other)
    torch.testing.assert_close(lazy, listed, rtol=1e-10, atol=0)
    fused = loss(case.x, case.y, miner(case.x, case.y, *other), *other)
    assert (fused - lazy).abs() > 1e-6


def test_a_loss_without_the_rule_lists_the_pairs():
    case = CASES["ragged"]()
    seen = []
    loss = fastdml.row_loss(lambda s, p, n: (seen.append((p.sum(), n.sum())), s.sum(1))[1], backend="dense")
    a1, _, a2, _ = pairs = MultiSimilarityMiner()(case.x, case.y)
    loss(case.x, case.y, pairs)
    assert seen[-1] == (len(a1), len(a2))  # (before that the function is tried out)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (lambda x, y: (x[0], y), r"embeddings: expected shape \[batch, dim\]"),
        (lambda x, y: (x, y[:3]), r"labels: expected shape \[37\]"),
        (lambda x, y: (x, y, x), "ref_labels: expected one label per row of ref_emb"),
        (lambda x, y: (x, y, x[:, :3], y), "ref_emb: expected embeddings of dimension 19"),
        (lambda x, y: (x, y, x, y[:3]), r"ref_labels: expected shape \[37\]"),
    ],
)
def test_wrong_input(arguments, message):
    case = CASES["ragged"]()
    with pytest.raises(ValueError, match=message):
        MultiSimilarityMiner()(*arguments(case.x, case.y))


def test_wrong_epsilon():
    with pytest.raises(ValueError, match="epsilon: expected a finite number, got nan"):
        MultiSimilarityMiner(float("nan"))


@pytest.mark.parametrize("changed", ["embeddings", "labels", "ref_emb"])
@pytest.mark.parametrize("fused", [False, True])
def test_what_was_mined_must_stay_as_it_was(fused, changed):
    """Pairs that nobody has listed yet cannot be those of embeddings that are no more."""
    case = CASES["reference"]()
    tensors = {"embeddings": case.x, "labels": case.y, "ref_emb": case.ref, "ref_labels": case.ref_y}
    tensors = {name: t.clone() for name, t in tensors.items()}
    loss = losses.MultiSimilarityLoss() if fused else losses.ContrastiveLoss()
    stale, listed = MultiSimilarityMiner()(**tensors), MultiSimilarityMiner()(**tensors)
    before = tuple(listed)
    assert loss(**tensors, indices_tuple=stale if fused else listed).isfinite()
    tensors[changed] += 1
    with pytest.raises(ValueError, match=r"^indices_tuple: expected embeddings and labels as they were"):
        loss(**tensors, indices_tuple=stale)
    # What was listed before the change is as before: it is not mined again.
    assert loss(**tensors, indices_tuple=listed) == loss(**tensors, indices_tuple=before)


def test_a_negative_as_far_as_the_positive_is_hard():
    x, y = torch.tensor([[1.0, 0], [0, 1], [0, -1]]), torch.tensor([0, 0, 1])
    hard, semihard = (TripletMarginMiner(0.1, kind)(x, y) for kind in ("hard", "semihard"))
    assert [t.tolist() for t in hard] == [[0], [1], [2]] and len(semihard[0]) == 0
    exact = TripletMarginMiner(0.5, "all", distance=LpDistance(normalize_embeddings=False))
    a, p, n = exact(torch.tensor([[0.0], [1.0], [1.5], [1.75]]), torch.tensor([0, 0, 1, 1]))
    assert (0, 1, 2) in zip(a.tolist(), p.tolist(), n.tolist())  # farther by 0.5, no more
    assert (0, 1, 3) not in zip(a.tolist(), p.tolist(), n.tolist())


def test_miners_in_inference_mode():
    case = CASES["ragged"]()
    expected = losses.MultiSimilarityLoss()(case.x, case.y, MultiSimilarityMiner()(case.x, case.y))
    with torch.inference_mode():
        x = case.x.clone()
        found = losses.MultiSimilarityLoss()(x, case.y, MultiSimilarityMiner()(x, case.y))
    assert found == expected


def test_labels_of_another_type_are_the_same_labels(monkeypatch):
    case = CASES["ragged"]()
    expected = losses.MultiSimilarityLoss()(case.x, case.y, MultiSimilarityMiner()(case.x, case.y))
    untouched(monkeypatch)
    for kind in (torch.int32, torch.int16):
        pairs = MultiSimilarityMiner()(case.x, case.y.to(kind))
        assert losses.MultiSimilarityLoss()(case.x, case.y, pairs) == expected


@pytest.mark.parametrize("make", [DistanceWeightedMiner, UniformHistogramMiner])
def test_a_state_of_another_library_has_no_draws(make):
    """Nothing is in the state of a miner of pytorch-metric-learning."""
    case = CASES["ragged"]()
    module = torch.nn.ModuleDict({"miner": make(seed=3)})
    first = tuple(module["miner"](case.x, case.y))
    module.load_state_dict({})
    assert int(module["miner"].step) == 1
    module["miner"].step.zero_()
    assert all(torch.equal(a, b) for a, b in zip(module["miner"](case.x, case.y), first, strict=True))


def test_a_seed_of_numpy_s():
    case = CASES["ragged"]()
    one, other = (DistanceWeightedMiner(seed=seed)(case.x, case.y) for seed in (5, np.int64(5)))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert methods.NearestLabelSampler(case.y, 9, seed=np.int64(1 << 23)).seed == 1 << 23


@pytest.mark.parametrize("allowed", [(0.9, 0.1), (float("nan"), 1.0), "12", (0.3,)])
def test_a_range_that_holds_nothing_is_refused(allowed):
    for name in ("allowed_pos_range", "allowed_neg_range"):
        with pytest.raises(ValueError, match=f"^{name}: expected"):
            BatchEasyHardMiner(**{name: allowed})


def test_pairs_of_a_larger_batch_are_refused_by_name():
    case = CASES["ragged"]()
    miner = HDCMiner()
    miner.set_idx_externally(tuple(MultiSimilarityMiner(1.0)(case.x, case.y)), case.y.tolist())
    with pytest.raises(ValueError, match=r"^indices_tuple: expected a1 in \[0, 3\)"):
        miner(case.x[:3], case.y[:3])


@pytest.mark.parametrize("reducer", [MeanReducer(), ThresholdReducer(low=0.1)])
def test_a_reducer_has_every_triplet_that_a_miner_draws(reducer):
    case = CASES["ragged"]()
    found = []
    for form in (tuple, lambda pairs: pairs):
        x = case.x.clone().requires_grad_()
        value = losses.MarginLoss(reducer=reducer)(x, case.y, form(DistanceWeightedMiner(seed=1)(x, case.y)))
        found.append((value.detach(), *torch.autograd.grad(value, x)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and found[0][0] > 0
