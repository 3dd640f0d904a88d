"""Memories, views and sums of losses: beside pytorch-metric-learning's, and what theirs lack."""

import pytest
import torch

from fastdml import losses, miners
from fastdml.losses import CrossBatchMemory, MultipleLosses, SelfSupervisedLoss
from fastdml.reducers import DoNothingReducer

theirs = pytest.importorskip("pytorch_metric_learning.losses")
their_miners = pytest.importorskip("pytorch_metric_learning.miners")


def batches(count, size=20, dim=8, classes=6, seed=1):
    g = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(size, dim, generator=g, dtype=torch.float64).requires_grad_()
        yield x, torch.randint(0, classes, (size,), generator=g)


def value_and_gradient(loss, x, *others):
    value = loss(x, *others)
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize("mined", [False, True])
@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "ContrastiveLoss", "TripletMarginLoss"])
def test_a_memory_is_theirs(name, mined):
    """Partly filled, full and wrapped around; the sample's own copy is no pair."""
    made = [(losses, miners, CrossBatchMemory), (theirs, their_miners, theirs.CrossBatchMemory)]
    ours, other = (
        memory(getattr(lib, name)(), 8, 64, tools.MultiSimilarityMiner() if mined else None)
        for lib, tools, memory in made
    )
    ours = ours.double()
    other.embedding_memory = other.embedding_memory.double()
    for x, y in batches(6):
        for a, b in zip(value_and_gradient(ours, x, y), value_and_gradient(other, x, y)):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_memory_resumes_from_its_state():
    one, other = (CrossBatchMemory(losses.SupConLoss(), 8, 50).double() for _ in range(2))
    given = list(batches(5))
    for x, y in given[:3]:
        one(x, y)
    other.load_state_dict(one.state_dict())
    for x, y in given[3:]:
        for a, b in zip(value_and_gradient(one, x, y), value_and_gradient(other, x, y)):
            assert torch.equal(a, b)


def test_a_memory_takes_the_type_of_its_state_and_forgets_it():
    wide, narrow = (CrossBatchMemory(losses.SupConLoss(), 8, 50) for _ in range(2))
    (x, y), (z, w) = batches(2)
    wide(x, y)
    narrow.load_state_dict(wide.state_dict())
    assert narrow.embedding_memory.dtype == torch.float64
    assert torch.equal(wide(z, w), narrow(z, w))
    wide.reset_queue()
    assert not any(value.any() for value in wide.state_dict().values())


def test_a_memory_smaller_than_the_batch_keeps_its_last():
    memory = CrossBatchMemory(losses.SupConLoss(), 8, 7).double()
    ((x, y),) = batches(1)
    found = memory(x, y)
    kept = torch.cat([torch.full((13,), -1), torch.arange(7)])
    stored = x.detach()[13:]
    true = losses.SupConLoss()(x, y, None, stored, y[13:], own=kept)
    torch.testing.assert_close(found, true)


def test_a_memory_that_holds_nothing_or_other_samples():
    memory = CrossBatchMemory(losses.SupConLoss(), 8, 40).double()
    (x, y), (z, w) = batches(2)
    nothing = torch.zeros(len(y), dtype=torch.bool)
    value, gradient = value_and_gradient(memory, x, y, None, nothing)
    assert value == 0 and not gradient.any()
    memory(x, y)
    found = memory(z, w, None, nothing)  # compared with the first batch alone
    torch.testing.assert_close(found, losses.SupConLoss()(z, w, None, x.detach(), y))
    memory.reset_queue()
    assert memory.filled == 0
    memory.float()(x.half(), y)
    assert memory.embedding_memory.dtype == torch.float32


def fails(*batch, **further):
    raise ZeroDivisionError


LISTED = (torch.tensor([0]), torch.tensor([45])) * 2
REFUSED = {
    "embeddings": (lambda: CrossBatchMemory(losses.SupConLoss(validate=True), 8, 30), torch.nan, 0, None),
    "labels": (lambda: CrossBatchMemory(losses.SOPRCLoss(6), 8, 30), 1, 9, None),
    "a list": (lambda: CrossBatchMemory(losses.SupConLoss(), 8, 64), 1, 0, LISTED),
    "a miner": (lambda: CrossBatchMemory(losses.SupConLoss(), 8, 7, fails), 1, 0, None),
    "parts": (lambda: CrossBatchMemory(losses.SupConLoss(embedding_regularizer=fails), 8, 30), 1, 0, None),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_memory_keeps_nothing_of_a_batch_that_is_refused(name):
    make, factor, more, listed = REFUSED[name]
    memory = make()
    (x, y), (z, w) = batches(2)
    memory.add_to_memory(x.float(), y)
    before = {k: v.clone() for k, v in memory.state_dict().items()}
    place = memory.curr_batch_idx
    with pytest.raises((ValueError, ZeroDivisionError)):
        memory(z * factor, w + more, listed)
    for key, value in memory.state_dict().items():
        assert torch.equal(value, before[key]) and value.dtype == before[key].dtype, key
    assert memory.curr_batch_idx is place


@pytest.mark.parametrize("name", ["SupConLoss", "LiftedStructureLoss"])
def test_a_memory_keeps_nothing_in_evaluation_mode(name):
    """Beside one that saw no evaluation; a batch has the same value in either mode, in a wider type too."""
    one, other = (CrossBatchMemory(getattr(losses, name)(), 8, 50) for _ in range(2))
    given = [(x.detach().float(), y) for x, y in batches(4)]
    for x, y in given:
        place, dtype = one.curr_batch_idx, one.embedding_memory.dtype
        evaluated = one.eval()(x.double(), y), one(x, y)
        assert one.curr_batch_idx is place and one.embedding_memory.dtype == dtype
        value = one.train()(x, y)
        assert torch.equal(value, other(x, y)) and torch.equal(value, evaluated[1])
        torch.testing.assert_close(value.double(), evaluated[0], rtol=1e-5, atol=1e-6)
    for a, b in zip(one.state_dict().values(), other.state_dict().values()):
        assert torch.equal(a, b)


def test_a_memory_that_was_called_in_inference_mode_trains_on():
    """In training mode too, and in a wider type than it had."""
    ((x, y),) = batches(1)
    memory = CrossBatchMemory(losses.SupConLoss(), 8, 50)
    with torch.inference_mode():
        memory(x + 1, y)
        memory.eval()(x, y)
    assert not any(t.is_inference() for t in memory.buffers())
    memory.train()(x, y).backward()
    memory.load_state_dict(memory.state_dict())
    assert memory.filled == 40


@pytest.mark.parametrize("symmetric", [True, False])
def test_two_views_are_theirs_and_several_are_a_class(symmetric):
    (x, _), (z, _) = batches(2)
    ours = SelfSupervisedLoss(losses.NTXentLoss(), symmetric)
    other = theirs.SelfSupervisedLoss(theirs.NTXentLoss(), symmetric)
    for a, b in zip(value_and_gradient(ours, x, z), value_and_gradient(other, x, z)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    if symmetric:
        torch.testing.assert_close(ours(torch.stack([x, z], 1)), ours(x, z))
        views = torch.stack([x, z, x + z], 1)
        flat = losses.NTXentLoss()(views.flatten(0, 1), torch.arange(20).repeat_interleave(3))
        torch.testing.assert_close(ours(views), flat)


def test_several_losses_are_their_weighted_sum():
    ((x, y),) = batches(1)
    ours = MultipleLosses(
        {"a": losses.MultiSimilarityLoss(), "b": losses.TripletMarginLoss()},
        {"a": miners.MultiSimilarityMiner(), "b": None},
        {"a": 1, "b": 0.5},
    )
    mined = miners.MultiSimilarityMiner()(x, y)
    true = losses.MultiSimilarityLoss()(x, y, mined) + 0.5 * losses.TripletMarginLoss()(x, y)
    torch.testing.assert_close(ours(x, y), true)
    torch.testing.assert_close(MultipleLosses([losses.NTXentLoss()])(x, y), losses.NTXentLoss()(x, y))
    # Own copies, and what losses over other things than samples take second.
    memory, own = torch.cat([x[:3], x]).detach(), torch.arange(len(y)) + 3
    further = (None, memory, torch.cat([y[:3], y]))
    pair = MultipleLosses([losses.SupConLoss()], [miners.BatchEasyHardMiner()])
    mined = miners.BatchEasyHardMiner()(x, y, *further[1:], own=own)
    true = losses.SupConLoss()(x, y, mined, *further[1:], own=own)
    torch.testing.assert_close(pair(x, y, *further, own=own), true)
    # (Another library's miner knows no own copies.)
    pair = MultipleLosses([losses.TripletMarginLoss()], [their_miners.BatchHardMiner()])
    mined = their_miners.BatchHardMiner()(x, y, *further[1:])
    kept = (mined[1] != own[mined[0]]) & (mined[2] != own[mined[0]])
    true = losses.TripletMarginLoss()(x, y, tuple(i[kept] for i in mined), *further[1:], own=own)
    torch.testing.assert_close(pair(x, y, *further, own=own), true)
    each = MultipleLosses([losses.LogRatioLoss()])
    torch.testing.assert_close(each(x, y.double()), losses.LogRatioLoss()(x, y.double()))


def test_several_losses_of_a_list_are_a_list():
    ((x, y),) = batches(1)
    mined = [miners.UniformHistogramMiner(), None]
    given = ([losses.NTXentLoss(), losses.ProxyAnchorLoss(6, 8)], mined, [1, 0.5])
    ours = MultipleLosses(*given).double()
    other = theirs.MultipleLosses(*given).double()
    assert [type(m) for m in ours.losses] == [type(m) for m in other.losses]
    assert ours.losses[1] is given[0][1] and ours.miners[1] is None and ours.weights[1] == 0.5
    assert list(ours.state_dict()) == list(other.state_dict())
    # As they were saved while a list was kept by names, and by names.
    named = {"0": losses.NTXentLoss(), "1": losses.ProxyAnchorLoss(6, 8)}
    named = MultipleLosses(named, {"0": miners.UniformHistogramMiner()}, {"1": 0.5, "0": 1}).double()
    named.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x, y), named(x, y))
    ours.load_state_dict(named.state_dict())
    mixed = MultipleLosses([losses.NTXentLoss(), losses.SupConLoss()], weights={"1": 0.5, "0": 1})
    assert mixed.weights == [1, 0.5] and not mixed.miners


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda x, y: CrossBatchMemory(torch.nn.Identity(), 8), "loss: expected a loss over samples"),
        (lambda x, y: CrossBatchMemory(losses.NTXentLoss(), 0), "embedding_size: expected"),
        (lambda x, y: CrossBatchMemory(losses.NTXentLoss(), 5)(x, y), "embeddings: expected dimension 5"),
        (lambda x, y: CrossBatchMemory(losses.NTXentLoss(), 8)(x, y, (y + 99, y, y)), "indices_tuple: exp"),
        (lambda x, y: CrossBatchMemory(losses.NTXentLoss(), 8)(x, y, None, y), "enqueue_mask: expected bool"),
        (
            lambda x, y: CrossBatchMemory(losses.NTXentLoss(), 8)(x, y, (y, y, y), y > 0),
            "indices_tuple: expected None with enqueue_mask",
        ),
        (lambda x, y: SelfSupervisedLoss(losses.NTXentLoss())(x), "embeddings: expected at least two views"),
        (lambda x, y: SelfSupervisedLoss(losses.NTXentLoss())(x, x[:3]), "ref_emb: expected shape"),
        (lambda x, y: SelfSupervisedLoss(losses.NTXentLoss())([[1.0]]), "embeddings: .* tensor, got list"),
        (lambda x, y: SelfSupervisedLoss(losses.NTXentLoss())(None, x), "embeddings: .* got NoneType"),
        (lambda x, y: SelfSupervisedLoss(losses.NTXentLoss())(x.sum(), x), "embeddings: expected shape"),
        (lambda x, y: SelfSupervisedLoss(losses.NTXentLoss())(x.sum()), "embeddings: expected at least two"),
        (lambda x, y: MultipleLosses([]), "losses: expected at least one"),
        (lambda x, y: MultipleLosses([losses.NTXentLoss()], weights=[1, 2]), "weights: expected one for"),
        (lambda x, y: MultipleLosses(losses.NTXentLoss()), "losses: expected a list or a dict"),
        (
            lambda x, y: MultipleLosses(
                [losses.NTXentLoss(reduction="none"), losses.MultiProxyAnchorLoss(14, 8, reduction="none")]
            ),
            "losses: expected rows of one kind to be added up, got {'0': 'samples', '1': 'proxies'}",
        ),
        (lambda x, y: MultipleLosses([losses.NTXentLoss(reducer=DoNothingReducer())]), "reducer: expected"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(make, message):
    ((x, y),) = batches(1)
    with pytest.raises(ValueError, match=f"^{message}"):
        make(x, y)


def test_one_tensor_for_both_views():
    x = torch.randn(14, 8, dtype=torch.float64)
    for symmetric in (False, True):
        views = SelfSupervisedLoss(losses.NTXentLoss(), symmetric=symmetric)
        torch.testing.assert_close(views(x, x), views(x, x.clone()))
        torch.testing.assert_close(views(x.unsqueeze(1).expand(-1, 2, -1)), views(x, x.clone()))
