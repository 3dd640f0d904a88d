"""Samplers: what a batch holds, how draws are distributed, ranks, seeds, and resuming."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fastdml.samplers import (
    FixedSetOfTriplets,
    HierarchicalSampler,
    MPerClassSampler,
    TuplesToWeightsSampler,
)


def ragged_labels() -> np.ndarray:
    """Unsorted, unequal classes with arbitrary ids; class -5 has 2 items, class 7 one."""
    labels = np.repeat([3, -5, 10**12, 7, 42, 8], [9, 2, 6, 1, 30, 4])
    return np.random.default_rng(0).permutation(labels)


def two_levels() -> np.ndarray:
    """5 super-classes of 6 classes of 4 items; class names recur under every super-class."""
    supers, classes = np.repeat(np.arange(5), 24), np.tile(np.repeat(np.arange(6), 4), 5)
    return np.random.default_rng(0).permutation(np.stack([classes, supers], axis=1))


def uniform(counts, p: float = 1e-4) -> bool:
    """Chi-square: not told from equal chances."""
    return chisquare(counts).pvalue > p


# What a batch holds.


@pytest.mark.parametrize("m,batch_size", [(1, 4), (3, 12), (4, 24), (2, 2)])
def test_batches_hold_m_of_each_class(m, batch_size):
    labels = ragged_labels()
    sampler = MPerClassSampler(labels, m, batch_size, length_before_new_iter=1003, seed=1)
    drawn = np.array(list(sampler))
    assert len(drawn) == len(sampler) == 1003 // batch_size * batch_size
    for batch in drawn.reshape(-1, batch_size):
        classes, counts = np.unique(labels[batch], return_counts=True)
        assert (counts == m).all() and len(classes) == batch_size // m
        for c in classes:
            items, size = batch[labels[batch] == c], (labels == c).sum()
            times = np.bincount(items)[labels[: items.max() + 1] == c]
            assert len(set(items)) == min(m, size) and times.max() <= -(-m // size)


def test_without_batch_size_every_pass_visits_every_class_once():
    labels = ragged_labels()
    sampler = MPerClassSampler(labels, 3, length_before_new_iter=100, seed=1)
    passes = labels[np.array(list(sampler))].reshape(-1, 6, 3)
    assert len(sampler) == 90 and len(passes) == 5  # cut down to whole passes of 18
    for one in passes:
        assert (one == one[:, :1]).all() and len(set(one[:, 0])) == 6
    assert any((one[:, 0] != passes[0][:, 0]).any() for one in passes)


def test_a_pass_is_never_cut_short():
    sampler = MPerClassSampler(ragged_labels(), 3, length_before_new_iter=5)
    assert len(list(sampler)) == len(sampler) == 18


def test_a_batch_of_the_hierarchy_holds_classes_of_few_super_classes():
    labels = two_levels()
    sampler = HierarchicalSampler(labels, 24, 3, 4, 2, seed=0)
    batches = list(sampler)
    assert len(sampler) == len(batches) == 4 * 10
    combinations = Counter()
    for batch in batches:
        supers, parts = np.unique(labels[batch, 1], return_counts=True)
        assert len(set(batch)) == 24 and (parts == 12).all()
        assert set(Counter(map(tuple, labels[batch])).values()) == {3}
        combinations[tuple(supers)] += 1
    assert len(combinations) == 10 and set(combinations.values()) == {4}


def test_levels_of_the_hierarchy_are_columns():
    """Of any order, beside others; tuples of super-classes come in no order, and items neither."""
    labels = two_levels()
    batches = list(HierarchicalSampler(labels, 24, 3, 4, 2, seed=0))
    noise = np.random.default_rng(1).integers(0, 9, len(labels))
    for columns, inner, outer in (([1, 0], 1, 0), ([2, 1, 0], 2, 1), ([0, 2, 1], 0, 2)):
        wide = np.stack([*labels.T, noise], 1)[:, columns]
        assert list(HierarchicalSampler(wide, 24, 3, 4, 2, inner, outer, seed=0)) == batches
    supers = [tuple(sorted(set(labels[batch, 1]))) for batch in batches]
    assert supers[:10] != supers[10:20] != sorted(supers[10:20]) and len(set(supers[:10])) < 10
    assert all((np.diff(labels[batch, 1]) != 0).sum() > 1 for batch in batches)


def test_what_does_not_fit_comes_next_and_all_equally_often():
    """Three classes of seven in a batch, whole; no class is behind another by more than one."""
    labels = np.stack([np.arange(7), np.zeros(7, dtype=int)], 1)
    times = np.zeros(7, dtype=int)
    for batch in HierarchicalSampler(labels, 3, "all", 100, 1, seed=0):
        assert len(set(batch)) == 3
        times[batch] += 1
        assert times.max() - times.min() <= 1


def test_the_hierarchy_takes_what_a_small_super_class_has():
    labels = [[0, 0], [0, 0], [1, 0], [2, 1], [3, 1], [4, 1]]
    for batch in HierarchicalSampler(labels, 6, 1, seed=0):
        assert sorted(batch) in ([0, 2, 3, 4, 5], [1, 2, 3, 4, 5])


def test_the_hierarchy_takes_whole_classes():
    sizes = {0: [2, 3, 4, 9], 1: [1, 1, 5]}
    labels = np.array([[c, s] for s, own in sizes.items() for c, n in enumerate(own) for _ in range(n)])
    seen = Counter()
    for batch in HierarchicalSampler(labels, 12, "all", 300, seed=0):
        for (c, s), count in Counter(map(tuple, labels[batch].tolist())).items():
            assert count == sizes[s][c]
            seen[s, c] += 1
        assert (np.bincount(labels[batch, 1]) <= 6).all()
    assert set(seen) == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)}  # a class of 9 never fits
    # 2 + 3, 2 + 4 or 3 alone or with 2: each comes in turn.
    assert min(seen.values()) >= 100


def test_triplets_are_fixed_and_right():
    labels = ragged_labels()
    sampler = FixedSetOfTriplets(labels, 500, seed=0)
    anchor, positive, negative = sampler.fixed_set_of_triplets.T
    assert (labels[anchor] == labels[positive]).all() and (anchor != positive).all()
    assert (labels[anchor] != labels[negative]).all()
    want = sorted(map(tuple, sampler.fixed_set_of_triplets.tolist()))
    first, second = (np.array(list(sampler)).reshape(-1, 3) for _ in range(2))
    assert len(sampler) == 1500 and (first != second).any()
    for drawn in (first, second):
        assert sorted(map(tuple, drawn.tolist())) == want


# How draws are distributed.


@pytest.mark.parametrize("m,batch_size", [(1, 3), (2, 6), (3, 9), (7, 21)])
def test_the_first_and_the_last_batch_are_uniform(m, batch_size):
    """Over epochs: classes, sets of classes, items, and the pairs of items of a class."""
    labels = np.repeat(np.arange(5), 5)
    sampler = MPerClassSampler(labels, m, batch_size, 6 * batch_size, seed=3)
    epochs = np.array([list(sampler) for _ in range(1500)])
    for batches in (epochs[:, :batch_size], epochs[:, -batch_size:]):
        classes = np.sort(labels[batches[:, ::m]], axis=1)
        _, counts = np.unique(classes, axis=0, return_counts=True)
        assert len(counts) == 10 and uniform(counts)
        assert uniform(np.bincount(batches[:, 0])) and uniform(np.bincount(batches[:, -1]))
        if m in (2, 3):
            pairs = np.sort(batches[:, :2] % 5, axis=1)
            _, counts = np.unique(pairs, axis=0, return_counts=True)
            assert len(counts) == 10 and uniform(counts)


def test_whole_classes_beyond_a_shuffle_are_uniform():
    """The second batch takes the two classes that are left, and then any of the others."""
    labels = np.stack([np.arange(5), np.zeros(5, dtype=int)], 1)
    sampler = HierarchicalSampler(labels, 3, "all", 2, 1, seed=0)
    first, second = zip(*(list(sampler) for _ in range(600)))
    again = [set(a) & set(b) for a, b in zip(first, second)]
    assert {len(s) for s in again} == {1}
    assert uniform(np.bincount([c for s in again for c in s], minlength=5))


def test_triplets_are_uniform():
    labels = np.repeat([0, 1, 2], [4, 2, 1])
    triplets = FixedSetOfTriplets(labels, 20000, seed=1).fixed_set_of_triplets
    _, counts = np.unique(triplets, axis=0, return_counts=True)
    chances = []
    for a, _, n in np.unique(triplets, axis=0):
        own, other = labels[a], labels[n]
        size = {0: 4, 1: 2, 2: 1}
        chances.append(1 / 2 / size[own] / (size[own] - 1) / 2 / size[other])
    assert sum(chances) == pytest.approx(1)  # every triplet there is
    assert chisquare(counts, 20000 * np.array(chances)).pvalue > 1e-4


def weights_sampler(dataset_size=12, **arguments):
    """Embeddings 0, 1, ...; a miner that names item i as often as i, to a given end."""
    data = TensorDataset(
        torch.arange(float(dataset_size))[:, None].repeat(1, 2), torch.arange(dataset_size)
    )

    def miner(embeddings, labels):
        index = torch.arange(len(labels)).repeat_interleave(labels)
        return index, index, index

    return TuplesToWeightsSampler(torch.nn.Identity(), miner, data, **arguments)


def test_weights_are_what_the_miner_names():
    sampler = weights_sampler(seed=0)
    assert len(sampler) == 12 and sampler.weights is None
    drawn = np.bincount([i for _ in range(1000) for i in sampler], minlength=12)
    torch.testing.assert_close(sampler.weights, torch.arange(12.0) / 11)
    assert drawn[0] == 0
    assert chisquare(drawn[1:], 12000 * np.arange(1, 12) / 66).pvalue > 1e-4


def test_weights_of_a_subset():
    sampler = weights_sampler(subset_size=5, seed=0)
    subsets = set()
    for _ in range(20):
        drawn = list(sampler)
        subset = torch.nonzero(sampler.weights)[:, 0].tolist()
        assert len(sampler) == len(drawn) == 5 and set(drawn) <= set(subset) and len(subset) <= 5
        subsets.add(tuple(subset))
    assert len(subsets) > 10


def test_weights_are_as_in_pytorch_metric_learning():
    from pytorch_metric_learning.miners import MultiSimilarityMiner, TripletMarginMiner
    from pytorch_metric_learning.utils import loss_and_miner_utils

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Dropout(0.5)).double()
    x, y = torch.randn(40, 6).double(), torch.arange(40) // 4
    with torch.no_grad():
        embeddings = torch.nn.functional.normalize(model[0](x))
    for miner in (MultiSimilarityMiner(), TripletMarginMiner(0.1)):
        sampler = TuplesToWeightsSampler(model, miner, TensorDataset(x, y), batch_size=7, seed=0)
        list(sampler)
        want = loss_and_miner_utils.convert_to_weights(miner(embeddings, y), y, torch.float32)
        torch.testing.assert_close(sampler.weights, want)
        assert model.training, "the model was left in evaluation mode"
    for same in (model.eval(), lambda x: model(x)):  # stays as it is; a function has no mode
        again = TuplesToWeightsSampler(same, miner, TensorDataset(x, y), seed=0)
        list(again)
        assert torch.equal(again.weights, sampler.weights) and not model.training


@pytest.mark.parametrize("normalize", [True, False])
def test_a_miner_sees_embeddings_as_they_are_asked_for(normalize):
    """And weights of a state are drawn from, once: the model has moved on since."""
    x, seen = torch.randn(12, 3), []

    def miner(embeddings, labels):
        seen.append(embeddings)
        return (torch.randint(12, (40,), generator=torch.Generator().manual_seed(len(seen))),)

    data, settings = TensorDataset(x, torch.arange(12)), {"normalize_embeddings": normalize, "seed": 0}
    sampler, other = (TuplesToWeightsSampler(torch.nn.Identity(), miner, data, **settings) for _ in range(2))
    running = iter(sampler)
    next(running)
    torch.testing.assert_close(seen[0], torch.nn.functional.normalize(x) if normalize else x)
    other.load_state_dict(sampler.state_dict())
    assert list(other) == list(running) and torch.equal(other.weights, sampler.weights) and len(seen) == 1
    other.set_epoch(0)
    list(other)
    assert len(seen) == 2 and not torch.equal(other.weights, sampler.weights)


def test_labels_may_be_a_column():
    one, other = (
        weights_sampler(seed=0, data_and_label_getter=lambda batch, of=of: (batch[0], of(batch[1])))
        for of in (lambda y: y, lambda y: y[:, None])
    )
    assert list(one) == list(other) and torch.equal(one.weights, other.weights)
    with pytest.raises(ValueError, match="labels: expected one integer per item"):
        list(weights_sampler(data_and_label_getter=lambda batch: (batch[0], batch[1] / 2)))


def test_where_the_miner_finds_nothing_all_weigh_the_same():
    data = TensorDataset(torch.randn(6, 2), torch.arange(6))
    nothing = torch.zeros(0, dtype=torch.long)
    sampler = TuplesToWeightsSampler(torch.nn.Identity(), lambda e, y: (nothing,) * 3, data)
    assert len(list(sampler)) == 6 and sampler.weights.tolist() == [1.0] * 6


# Coverage and ranks.


@pytest.mark.parametrize("m,batch_size", [(4, 32), (3, 21), (1, 100)])
def test_an_epoch_covers_classes_and_items_evenly(m, batch_size):
    labels = np.arange(1000) // 10
    drawn = np.array(list(MPerClassSampler(labels, m, batch_size, 5000, seed=0)))
    visits = np.bincount(labels[drawn], minlength=100) / m
    assert visits.max() - visits.min() <= 1
    times = np.bincount(drawn, minlength=1000).reshape(100, 10)
    assert (times.max(1) - times.min(1)).max() <= 2
    before_any_repeats = np.array(list(MPerClassSampler(labels, 5, 50, 1000, seed=0)))
    assert (np.bincount(before_any_repeats) == 1).all()


def test_the_hierarchy_covers_classes_and_items_evenly():
    labels = two_levels()
    drawn = np.concatenate(list(HierarchicalSampler(labels, 16, 2, 6, 2, seed=0)))
    _, times = np.unique(labels[drawn], axis=0, return_counts=True)
    assert len(times) == 30 and times.max() - times.min() <= 2 * 2
    items = np.bincount(drawn, minlength=len(labels))
    assert items.min() >= 1 and items.max() - items.min() <= 2


MAKERS = {
    "m per class": lambda **a: MPerClassSampler(np.arange(240) // 6, 3, 12, 480, **a),
    "in batches": lambda **a: MPerClassSampler(np.arange(240) // 6, 3, 12, 480, batches=True, **a),
    "passes": lambda **a: MPerClassSampler(np.arange(240) // 6, 2, None, 480, **a),
    "hierarchical": lambda **a: HierarchicalSampler(two_levels(), 16, 2, **a),
    "whole classes": lambda **a: HierarchicalSampler(two_levels(), 16, "all", **a),
    "triplets": lambda **a: FixedSetOfTriplets(np.arange(60) // 6, 30, **a),
    "weights": lambda **a: weights_sampler(**a),
}
every_sampler = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@every_sampler
def test_ranks_share_what_one_process_would_draw(make):
    ranks = [list(make(seed=4, rank=r, num_replicas=3)) for r in range(3)]
    lengths = {len(drawn) for drawn in ranks} | {len(make(seed=4, rank=0, num_replicas=3))}
    assert len(lengths) == 1 and lengths != {0}
    assert ranks[0] != ranks[1] != ranks[2] != ranks[0]


def test_ranks_have_no_item_and_no_class_in_common():
    labels = np.arange(240) // 6
    ranks = [
        np.array(list(MPerClassSampler(labels, 3, 12, 960, rank=r, num_replicas=4))).reshape(-1, 12)
        for r in range(4)
    ]
    for batches in zip(*ranks, strict=True):
        step = np.concatenate(batches)
        assert len(set(step)) == 48 and len(set(labels[step])) == 16
    assert (np.bincount(np.concatenate([r[:5] for r in ranks]).reshape(-1)) == 1).all()
    # More visits than classes: classes recur among ranks, items do not.
    few = np.arange(60) // 20
    ranks = [list(MPerClassSampler(few, 4, 12, 960, rank=r, num_replicas=4)) for r in range(4)]
    for step in np.array(ranks).reshape(4, -1, 12).transpose(1, 0, 2):
        assert len(set(step.reshape(-1))) == 48
    # Triplets left over are left out.
    odd = [FixedSetOfTriplets(labels, 31, seed=0, rank=r, num_replicas=3) for r in range(3)]
    assert [len(list(sampler)) for sampler in odd] == [len(sampler) for sampler in odd] == [30] * 3
    # Whole batches of the hierarchy go to one rank each, and triplets.
    whole = [tuple(sorted(b)) for b in HierarchicalSampler(two_levels(), 12, 3, seed=0)]
    parts = [
        tuple(sorted(b))
        for r in range(2)
        for b in HierarchicalSampler(two_levels(), 12, 3, seed=0, rank=r, num_replicas=2)
    ]
    assert len(set(parts)) == len(parts) == len(whole)
    triplets = [
        tuple(t)
        for r in range(3)
        for t in np.reshape(list(FixedSetOfTriplets(labels, 30, seed=0, rank=r, num_replicas=3)), (-1, 3))
    ]
    assert len(set(triplets)) == 30


def test_ranks_that_are_not_told_apart_are_warned(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 4)
    with pytest.warns(UserWarning, match=r"MPerClassSampler without rank= .* 4 processes"):
        MPerClassSampler([0, 1], 1)
    MPerClassSampler([0, 1], 1, rank=0, num_replicas=4)
    MPerClassSampler([0, 1], 1, num_replicas=1)


# Seeds, epochs, states.


@every_sampler
def test_seed_and_epoch_fix_the_sequence(make):
    one, two = make(seed=11), make(seed=11)
    first, second = list(one), list(one)
    assert len(first) == len(one)
    assert first != second, "two epochs must not repeat each other"
    assert list(two) == first and list(two) == second
    two.set_epoch(5)
    fifth = list(two)
    one.set_epoch(5)
    assert list(one) == fifth and fifth not in (first, second)
    assert list(make(seed=12)) != first


@every_sampler
def test_a_global_torch_seed_governs_the_default(make):
    sequences = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        sequences.append(list(make()))
    assert sequences[0] == sequences[1] != sequences[2]


@every_sampler
@pytest.mark.parametrize("ranks", [{}, {"rank": 1, "num_replicas": 2}], ids=["alone", "rank 1"])
def test_a_state_resumes_within_an_epoch(make, ranks, tmp_path):
    sampler = make(seed=7, **ranks)
    list(sampler)
    running = iter(sampler)
    before = [next(running) for _ in range(len(sampler) // 3)]
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    after, following = list(running), list(sampler)

    resumed = make(seed=0, **ranks)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert resumed.state_dict()["position"] == len(before)
    resumed.set_epoch(1)  # as a training loop does at the start of every epoch
    assert list(resumed) == after
    assert list(resumed) == following


def test_states_at_the_ends_of_epochs():
    sampler = MAKERS["in batches"](seed=0)
    epochs = [list(sampler) for _ in range(3)]
    sampler.set_epoch(0)

    def resumed(state):
        other = MAKERS["in batches"](seed=5)
        other.load_state_dict(state)
        return list(other)

    assert resumed(sampler.state_dict()) == epochs[0]
    list(sampler)
    assert resumed(sampler.state_dict()) == epochs[1]
    next(iter(sampler))  # left early: the next iteration is the next epoch all the same
    assert list(sampler) == epochs[2]


def test_an_iterator_that_was_left_moves_nothing():
    """Also in an epoch that nobody has set, of which a part was used."""
    sampler, epochs = MAKERS["in batches"](seed=0), MAKERS["in batches"](seed=0)
    _, second, third = (list(epochs) for _ in range(3))
    left = iter(sampler)
    next(left)
    running = iter(sampler)
    assert [next(running) for _ in range(3)] == second[:3]
    other = MAKERS["in batches"](seed=5)
    for step in (lambda: next(left), lambda: list(left)):
        step()
        for state in (sampler.state_dict(), sampler.state_dict(consumed=3)):
            other.load_state_dict(state)
            assert list(other) == second[3:]
    assert list(running) == second[3:] and list(sampler) == third


def test_a_loader_that_fetches_ahead_says_what_it_has_used():
    labels = torch.arange(240) // 6
    sampler = MAKERS["in batches"](seed=0)
    whole = list(MAKERS["in batches"](seed=0))
    loader = DataLoader(TensorDataset(torch.arange(240), labels), batch_sampler=sampler, num_workers=1)
    used = 0
    for items, _ in loader:
        assert items.tolist() == whole[used]
        used += 1
        if used == 3:
            break
    state = sampler.state_dict(consumed=used)
    other = MAKERS["in batches"](seed=1)
    other.load_state_dict(state)
    assert list(other) == whole[3:]
    # And where all was fetched while the loop is still at work.
    sampler.set_epoch(2)
    whole = list(sampler)
    other.load_state_dict(sampler.state_dict(consumed=7))
    assert list(other) == whole[7:]


def test_a_state_of_something_else_is_refused():
    sampler = MPerClassSampler(ragged_labels(), 2, 8, 80, seed=0)
    with pytest.raises(ValueError, match=r"state: expected one of m=1, as here, got 2"):
        MPerClassSampler(ragged_labels(), 1, 6, 80).load_state_dict(sampler.state_dict())
    next(iter(sampler))
    state = sampler.state_dict()
    two = MPerClassSampler(ragged_labels(), 2, 8, 80, rank=0, num_replicas=2)
    with pytest.raises(ValueError, match=r"state: expected one of num_replicas=2, as here, or"):
        two.load_state_dict(state)
    list(sampler)
    two.load_state_dict(sampler.state_dict())  # at the end of an epoch it has a meaning
    for nothing in ({}, {"epoch": 1}, None):
        with pytest.raises(ValueError, match=r"^state: expected what state_dict\(\) returns, got"):
            two.load_state_dict(nothing)
    other = MPerClassSampler(ragged_labels()[::-1].copy(), 2, 8, 80, seed=0)  # as many items and classes
    with pytest.raises(ValueError, match=r"state: expected one of labels="):
        other.load_state_dict(state)
    one, other = (FixedSetOfTriplets(y, 30, seed=0) for y in (ragged_labels(), ragged_labels()[::-1].copy()))
    with pytest.raises(ValueError, match=r"state: expected one of labels="):
        other.load_state_dict(one.state_dict())


def test_a_refused_state_changes_nothing():
    y = np.arange(40) // 4
    sampler, longer = (MPerClassSampler(y, 2, 4, n, seed=n) for n in (40, 400))
    first = list(sampler)
    beyond = dict(longer.state_dict(), position=200)
    for state in (beyond, dict(sampler.state_dict(), settings=None)):
        with pytest.raises(ValueError, match=r"^(position|state): expected"):
            sampler.load_state_dict(state)
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_a_hierarchy_of_other_super_classes_is_another():
    supers = np.array([0, 0, 1, 1, 1]), np.array([0, 0, 0, 1, 1])
    one, other = (
        HierarchicalSampler(np.tile(np.stack([np.arange(5), s], 1), (4, 1)), 8, 2, seed=0) for s in supers
    )
    state = one.state_dict()
    with pytest.raises(ValueError, match=r"^state: expected one of owners="):
        other.load_state_dict(state)
    del state["settings"]["owners"]  # as it was once
    one.load_state_dict(state)


def test_a_state_within_an_epoch_without_weights_is_refused():
    data = TensorDataset(torch.randn(6, 2), torch.arange(6))
    sampler = TuplesToWeightsSampler(torch.nn.Identity(), lambda x, y: (y,) * 3, data)
    with pytest.raises(ValueError, match=r"^state: expected weights"):
        sampler.load_state_dict(sampler.state_dict(consumed=3))


@pytest.mark.parametrize("labels", [[None, "a"] * 5, np.array([1, "1"] * 5, object), [1.0, None] * 5])
def test_missing_labels_are_refused_in_words(labels):
    with pytest.raises(ValueError, match=r"^labels: expected numbers or strings, got a mixture"):
        MPerClassSampler(labels, 2)


def test_labels_of_any_type_of_numbers():
    labels = torch.arange(20) % 5
    true = list(MPerClassSampler(labels, 2, seed=0))
    assert list(MPerClassSampler(labels.bfloat16(), 2, seed=0)) == true


def test_numbers_and_strings_are_no_labels_of_one_kind():
    with pytest.raises(ValueError, match=r"^labels: expected numbers or strings, got a mixture"):
        MPerClassSampler([1, "1", 2, "2"] * 10, 2, 4, 40)


# Loaders and labels.


@pytest.mark.parametrize("labels", [torch.tensor([1, 1, 2, 2]), [1, 1, 2, 2], ["b", "b", "a", "a"]])
@pytest.mark.parametrize("batches", [False, True])
def test_any_labels_and_the_data_loader(labels, batches):
    sampler = MPerClassSampler(labels, 2, 4, 40, seed=0, batches=batches)
    passed = {"batch_sampler": sampler} if batches else {"batch_size": 4, "sampler": sampler}
    loader = DataLoader(range(4), **passed)
    drawn = list(loader)
    assert len(drawn) == len(loader) == 10
    assert all(sorted(batch.tolist()) == [0, 1, 2, 3] for batch in drawn)


@pytest.mark.parametrize("workers", [0, 1])
def test_single_indices_as_batches_are_refused_in_words(workers):
    sampler = MPerClassSampler([0, 0, 1, 1], 2, 4)
    loader = DataLoader(range(4), batch_sampler=sampler, num_workers=workers)
    with pytest.raises(TypeError, match=r"single indices.*batches=True.*batch_sampler=\)' object is not"):
        next(iter(loader))


@every_sampler
def test_indices_are_numbers_to_everybody(make):
    drawn = next(iter(make(seed=0)))
    for index in drawn if isinstance(drawn, list) else [drawn]:
        assert isinstance(index, int) and not hasattr(index, "__iter__")
        assert type(pickle.loads(pickle.dumps(index))) is type(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_data_sets_read_from_tables(workers):
    pandas = pytest.importorskip("pandas")

    class Table(Dataset):
        rows = pandas.DataFrame({"number": [5, 6, 7, 8], "label": [0, 0, 1, 1]})

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, index):
            row = self.rows.iloc[index]
            return int(row["number"]), int(row["label"])

    sampler = MPerClassSampler(Table.rows["label"], 2, 4, 8, seed=0)
    for numbers, labels in DataLoader(Table(), 4, sampler=sampler, num_workers=workers):
        assert sorted(numbers.tolist()) == [5, 6, 7, 8] and sorted(labels.tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True, 2**64, [1], float("nan")])
@every_sampler
def test_bad_seeds_are_refused_at_construction(make, seed):
    with pytest.raises(ValueError, match=r"^seed: expected an integer"):
        make(seed=seed)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"labels": [], "m": 2}, "labels: expected a non-empty 1-D"),
        ({"labels": [[1, 2]], "m": 2}, "labels: expected a non-empty 1-D"),
        ({"labels": [[1, 2], [1]], "m": 2}, "labels: expected a 1-D sequence"),
        ({"labels": [1, float("nan")], "m": 2}, "labels: expected classes, got NaN"),
        ({"labels": [1, 2], "m": 0}, "m: expected an integer from 1 to 65536"),
        ({"labels": [1, 2], "m": 2**31}, "m: expected an integer from 1 to 65536"),
        ({"labels": [1, 2], "m": 1.5}, "m: expected an integer from 1 to 65536"),
        ({"labels": [1, 2], "m": "2"}, "m: expected an integer from 1 to 65536, got '2'"),
        ({"labels": [1, 2], "m": 2, "batch_size": 0}, "batch_size: expected an integer"),
        ({"labels": [1, 2], "m": 2, "batch_size": 3}, "batch_size: expected a multiple of m=2"),
        ({"labels": [1, 2], "m": 2, "batch_size": 6}, r"batch_size: expected at most .* = 4, got 6"),
        ({"labels": [1, 2], "m": 2, "batches": True}, "batch_size: expected with batches=True"),
        (
            {"labels": [1, 2], "m": 2, "batch_size": 4, "length_before_new_iter": 3},
            "length_before_new_iter: expected at least batch_size=4, got 3",
        ),
        (
            {"labels": [1, 2], "m": 1, "batch_size": 2, "length_before_new_iter": 5, "rank": 0}
            | {"num_replicas": 3},
            "length_before_new_iter: expected at least batch_size=2 on each of 3 ranks, got 5",
        ),
        ({"labels": [1, 2], "m": 2, "length_before_new_iter": 0}, "length_before_new_iter: expected"),
        ({"labels": [1, 2], "m": 2, "rank": 1}, "num_replicas: expected with rank=1"),
        ({"labels": [1, 2], "m": 2, "num_replicas": 2}, "rank: expected with num_replicas=2"),
        ({"labels": [1, 2], "m": 2, "num_replicas": 2, "rank": 2}, "rank: expected .* from 0 to 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MPerClassSampler(**arguments)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: HierarchicalSampler([0, 1], 4, 2), "labels: expected a non-empty 2-D array"),
        (lambda: HierarchicalSampler(two_levels(), 7, 2), "batch_size: expected a multiple of super"),
        (lambda: HierarchicalSampler(two_levels(), 8, 3), "samples_per_class: expected a divisor"),
        (lambda: HierarchicalSampler(two_levels(), 8, "some"), "samples_per_class: .* 'all' takes"),
        (lambda: HierarchicalSampler(two_levels(), 12, 2, 4, 6), "super_classes_per_batch: .* most the 5"),
        (lambda: HierarchicalSampler(two_levels(), 8, 2, outer_label=2), "outer_label: expected"),
        (
            lambda: HierarchicalSampler(two_levels(), 10, 2, 1, 5, rank=0, num_replicas=2),
            "num_replicas: expected at most the 1 batches of an epoch, got 2",
        ),
        (lambda: HierarchicalSampler(two_levels(), 6, "all"), "batch_size: .* has 4 items and the part 3"),
        (lambda: FixedSetOfTriplets([0, 1], 3), "labels: expected two classes or more"),
        (lambda: FixedSetOfTriplets([0, 0], 3), "labels: expected two classes or more"),
        (lambda: FixedSetOfTriplets([0, 0, 1], 0), "num_triplets: expected"),
        (lambda: weights_sampler(subset_size=13), "subset_size: expected an integer from 1 to 12"),
        (lambda: TuplesToWeightsSampler(1, 2, range(3)), "model: expected something to call"),
        (lambda: MPerClassSampler([1, 2], 1).set_epoch(-1), "epoch: expected an integer of at least 0"),
        (lambda: MPerClassSampler([1, 2], 1).state_dict(1.5), "consumed: expected"),
    ],
)
def test_other_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
