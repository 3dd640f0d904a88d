import numpy as np
import pytest
import torch

from fastdml.samplers import MPerClassSampler


def ragged_labels() -> np.ndarray:
    """Unsorted, unequal classes with arbitrary ids; class -5 has 2 items, class 7 one."""
    labels = np.repeat([3, -5, 10**12, 7, 42, 8], [9, 2, 6, 1, 30, 4])
    return np.random.default_rng(0).permutation(labels)


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
            if size >= m:
                assert len(set(items)) == m, "repeated an item of a class that is large enough"


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


@pytest.mark.parametrize("m", [1, 2, 3, 5])
def test_items_and_classes_are_drawn_uniformly(m):
    labels = np.repeat(np.arange(8), 5)
    draws = 40000
    sampler = MPerClassSampler(labels, m, 2 * m, length_before_new_iter=draws, seed=3)
    counts = np.bincount(list(sampler), minlength=40)
    expected = len(sampler) / 40
    # Without replacement only lowers the variance: five standard deviations of the binomial.
    assert abs(counts - expected).max() < 5 * expected**0.5


def test_pairs_within_a_class_are_drawn_uniformly():
    labels = np.zeros(5, dtype=int)
    sampler = MPerClassSampler(labels, 2, 2, length_before_new_iter=40000, seed=3)
    pairs = np.sort(np.array(list(sampler)).reshape(-1, 2), axis=1)
    _, counts = np.unique(pairs, axis=0, return_counts=True)
    assert len(counts) == 10 and abs(counts - 2000).max() < 5 * 2000**0.5


def test_small_class_is_sampled_with_replacement():
    labels = np.array([0, 1, 1, 1, 1])
    for batch in np.array(list(MPerClassSampler(labels, 4, 8, 800, seed=0))).reshape(-1, 8):
        assert (batch[labels[batch] == 0] == 0).sum() == 4


def test_seed_and_epoch_fix_the_sequence():
    labels = ragged_labels()
    one, two = (MPerClassSampler(labels, 2, 8, 400, seed=11) for _ in range(2))
    first, second = list(one), list(one)
    assert first != second, "two epochs must not repeat each other"
    assert list(two) == first and list(two) == second
    two.set_epoch(5)
    fifth = list(two)
    one.set_epoch(5)
    assert list(one) == fifth and fifth not in (first, second)
    assert list(MPerClassSampler(labels, 2, 8, 400, seed=12)) != first


def test_global_torch_seed_governs_the_default():
    labels = ragged_labels()
    sequences = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        sequences.append(list(MPerClassSampler(labels, 2, 8, 400)))
    assert sequences[0] == sequences[1] != sequences[2]


def test_block_boundaries_do_not_change_the_contract(monkeypatch):
    monkeypatch.setattr("fastdml.samplers._BLOCK_ENTRIES", 1)
    labels = ragged_labels()
    drawn = np.array(list(MPerClassSampler(labels, 2, 8, 80, seed=1))).reshape(-1, 8)
    assert len(drawn) == 10 and all(len(set(labels[batch])) == 4 for batch in drawn)


@pytest.mark.parametrize("labels", [torch.tensor([1, 1, 2, 2]), [1, 1, 2, 2], ["b", "b", "a", "a"]])
def test_any_labels_and_the_data_loader(labels):
    sampler = MPerClassSampler(labels, 2, 4, 40, seed=0)
    loader = torch.utils.data.DataLoader(range(4), batch_size=4, sampler=sampler)
    batches = list(loader)
    assert len(batches) == 10
    assert all(sorted(batch.tolist()) == [0, 1, 2, 3] for batch in batches)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"labels": [], "m": 2}, "labels: expected a non-empty 1-D"),
        ({"labels": [[1, 2]], "m": 2}, "labels: expected a non-empty 1-D"),
        ({"labels": [1, 2], "m": 0}, "m: expected an integer of at least 1"),
        ({"labels": [1, 2], "m": 1.5}, "m: expected an integer of at least 1"),
        ({"labels": [1, 2], "m": 2, "batch_size": 0}, "batch_size: expected an integer"),
        ({"labels": [1, 2], "m": 2, "batch_size": 3}, "batch_size: expected a multiple of m=2"),
        ({"labels": [1, 2], "m": 2, "batch_size": 6}, r"batch_size: expected at most .* = 4, got 6"),
        (
            {"labels": [1, 2], "m": 2, "batch_size": 4, "length_before_new_iter": 3},
            "length_before_new_iter: expected at least batch_size=4, got 3",
        ),
        ({"labels": [1, 2], "m": 2, "length_before_new_iter": 0}, "length_before_new_iter: expected"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MPerClassSampler(**arguments)


def test_negative_epoch_is_named():
    with pytest.raises(ValueError, match="epoch: expected a non-negative"):
        MPerClassSampler([1, 2], 1).set_epoch(-1)
