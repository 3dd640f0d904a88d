"""Continuous labels: sampling, scores, and that the losses learn them."""

import math

import numpy as np
import pytest
import torch
from method_tools import randn

from fastdml import losses
from fastdml.methods import NearestLabelSampler, label_retrieval, unit_sphere

LABELS = randn(30, 2)


def labels_as_function(rows):
    return torch.cdist(LABELS[rows], LABELS)


@pytest.mark.parametrize("labels, size", [(LABELS, None), (labels_as_function, 30)])
def test_batches_hold_the_nearest_in_order(labels, size):
    sampler = NearestLabelSampler(labels, 9, 4, 20, size=size, seed=3)
    distance, anchors = torch.cdist(LABELS, LABELS), set()
    for batch in sampler:
        anchor = batch[0]
        anchors.add(anchor)
        assert len(set(batch)) == 9
        own = distance[anchor]
        assert set(own.topk(5, largest=False).indices.tolist()) == set(batch[:5])
        assert own[batch].tolist() == sorted(own[batch].tolist())
    assert len(anchors) > 10


def test_sampler_resumes():
    one, two = (NearestLabelSampler(LABELS, 9, 4, 6) for _ in range(2))
    running = iter(one)
    next(running), next(running)
    two.load_state_dict(one.state_dict())
    assert len(two) == 4
    assert list(running) == list(two)
    assert list(one) == list(two)


def test_scores_query_by_query():
    x = randn(30, 3, seed=1)
    found = label_retrieval(x, LABELS, (1, 5))
    d, y = torch.cdist(x, x), torch.cdist(LABELS, LABELS)
    for k in (1, 5):
        distances, ndcg = [], []
        for q in range(30):
            others = [j for j in range(30) if j != q]
            near = sorted(others, key=lambda j, q=q: d[q, j])[:k]
            best = sorted(others, key=lambda j, q=q: y[q, j])[:k]
            distances.append(sum(y[q, j].item() for j in near) / k)
            dcg, ideal = (
                sum(1 / (1 + y[q, j].item()) / math.log2(i + 2) for i, j in enumerate(order))
                for order in (near, best)
            )
            ndcg.append(dcg / ideal)
        assert found[f"label_distance@{k}"] == pytest.approx(sum(distances) / 30)
        assert found[f"ndcg@{k}"] == pytest.approx(sum(ndcg) / 30)
    perfect = label_retrieval(LABELS, labels_as_function, 5)
    assert perfect["ndcg@5"] == pytest.approx(1)


def test_unit_sphere():
    points = unit_sphere(torch.tensor([0.0, 90.0, 0.0, -90.0]), torch.tensor([0.0, 7.0, 90.0, 0.0]))
    true = [[1.0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, -1]]
    assert torch.allclose(points, torch.tensor(true), atol=1e-6)


@pytest.mark.parametrize("loss", [losses.LogRatioLoss(), losses.DenseTripletLoss()])
@pytest.mark.parametrize("one_anchor", [True, False])
def test_losses_learn_label_distances(loss, one_anchor):
    """Inputs hide the label in a random rotation of noise; the neighbours found come nearer to it."""
    g = torch.Generator().manual_seed(0)
    labels = torch.rand(400, 2, generator=g)
    inputs = torch.cat([labels, 0.2 * torch.randn(400, 10, generator=g)], 1) @ randn(12, 12).float()
    torch.manual_seed(0)
    model = torch.nn.Linear(12, 4)
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    before = label_retrieval(model(inputs), labels, 10)
    for batch in NearestLabelSampler(labels[:300], 40, 5, 100):
        y = labels[batch]
        embeddings = model(inputs[batch])
        given = {"label_distance": (y[1:] - y[0]).norm(dim=1)} if one_anchor else {"labels": y}
        optimizer.zero_grad()
        loss(embeddings, **given).backward()
        optimizer.step()
    scored = label_retrieval(model(inputs[300:]), labels[300:], 10)
    chance = label_retrieval(randn(100, 4), labels[300:], 10)
    assert scored["label_distance@10"] < 0.75 * chance["label_distance@10"]
    assert scored["ndcg@10"] > before["ndcg@10"]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_labels_in_half_precision(kind):
    labels = LABELS.to(kind)
    batch, wide = (next(iter(NearestLabelSampler(y, 9))) for y in (labels, labels.float()))
    assert batch == wide
    x = randn(30, 4).float()
    assert label_retrieval(x, labels) == label_retrieval(x, labels.float())


def test_numbers_of_neighbours_of_any_kind():
    x, want = randn(30, 4), label_retrieval(randn(30, 4), LABELS, 3)
    for k in (np.int64(3), torch.tensor(3), np.array(3), {3}, torch.tensor([3]), np.array([3])):
        assert label_retrieval(x, LABELS, k) == want


def test_refuses():
    with pytest.raises(ValueError, match="size: expected the number of samples"):
        NearestLabelSampler(labels_as_function, 9)
    with pytest.raises(ValueError, match="k: expected an integer from 1 to 29, got 30"):
        label_retrieval(randn(30, 3), LABELS, 30)
    with pytest.raises(ValueError, match="k: expected at least one"):
        label_retrieval(randn(30, 3), LABELS, ())
    for labels in (LABELS.tolist(), LABELS.numpy()):
        with pytest.raises(ValueError, match=r"labels: expected a tensor \[N\] or"):
            label_retrieval(randn(30, 3), labels)
        with pytest.raises(ValueError, match=r"labels: expected a tensor \[N\] or"):
            NearestLabelSampler(labels, 9)
    with pytest.raises(ValueError, match="labels: expected 30"):
        label_retrieval(randn(30, 3), LABELS[:20], 3)


def test_distances_that_are_views_stay_as_they_are():
    distance = torch.cdist(LABELS, LABELS)
    before = distance.clone()

    def rows_of(rows):
        return distance[int(rows[0]) : int(rows[-1]) + 1]

    label_retrieval(randn(30, 4), rows_of, 1)
    list(NearestLabelSampler(rows_of, 9, 4, 6, size=30))
    assert torch.equal(distance, before)


def test_distances_of_few_bits():
    """Of a tree, say, in the least type that holds them."""
    distance, batches = (torch.arange(30)[:, None] - torch.arange(30)).abs(), []
    for kind in (torch.int64, torch.uint8, torch.float16):
        narrow = distance.to(kind)
        batches.append(list(NearestLabelSampler(narrow.__getitem__, 9, length=4, size=30)))
    assert batches[0] == batches[1] == batches[2]
