"""The ProxyNCA++ recipe, and pseudo-labels on clusters that are known."""

import io

import numpy as np
import pytest
import torch
from method_tools import randn
from torch import nn
from torch.nn import functional as F

from fastdml import losses
from fastdml.methods import (
    MaxPoolEmbedding,
    RecordedPlateaus,
    fast_moving_proxies,
    label_the_rest,
)


def test_head():
    torch.manual_seed(0)
    head, maps = MaxPoolEmbedding(5, 3).double(), randn(2, 5, 3, 4)
    top = maps.flatten(2).max(2).values
    mean, var = top.mean(1, keepdim=True), top.var(1, correction=0, keepdim=True)
    assert torch.allclose(head(maps), head.linear((top - mean) / (var + 1e-5).sqrt()))
    assert len(list(head.parameters())) == 2


def test_a_step_of_the_optimiser():
    """Adam's first step with eps = 1: rate g / (|g| + 1)."""
    torch.manual_seed(0)
    model, loss = nn.Linear(4, 3), losses.ProxyNCAPlusPlusLoss(5, 3)
    optimizer = fast_moving_proxies(model, loss, 0.01, 10.0)
    before = [p.detach().clone() for p in (model.weight, loss.proxies)]
    loss(model(randn(10, 4, dtype=torch.float32)), torch.arange(10) % 5).backward()
    optimizer.step()
    for old, p, rate in zip(before, (model.weight, loss.proxies), (0.01, 10.0)):
        assert torch.allclose(p, old - rate * p.grad / (p.grad.abs() + 1), atol=1e-6)


@pytest.mark.parametrize("factor", [0.1, 0.5])
def test_milestones_are_found_and_replayed(factor):
    def optimizer():
        return torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)

    scores = [0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1]
    first = optimizer()
    run, rates = RecordedPlateaus(first, factor, patience=2), []
    for k, score in enumerate(scores):
        if k == 4:  # resumed
            state, run = run.state_dict(), RecordedPlateaus(first, factor, patience=2)
            run.load_state_dict(state)
        run.step(score)
        rates.append(first.param_groups[0]["lr"])
    assert run.milestones == [5, 9] and rates[-1] == pytest.approx(factor**2)
    second = optimizer()
    schedule = run.replay(second)
    for rate in rates:
        second.step()
        schedule.step()
        assert second.param_groups[0]["lr"] == pytest.approx(rate)


def test_pseudo_labels_of_known_clusters():
    centers = F.normalize(randn(6, 16))
    which = torch.arange(120) % 6
    x = (centers[which] + 0.02 * randn(120, 16, seed=1)) * (1 + torch.arange(120)[:, None] % 7)
    labels = torch.where(which < 3, which, -1)
    found = label_the_rest(x, labels, 3, seed=0)
    assert torch.equal(found[which < 3], which[which < 3])
    groups = [set(found[which == c].tolist()) for c in (3, 4, 5)]
    assert all(len(g) == 1 for g in groups) and set.union(*groups) == {3, 4, 5}
    for k in range(5):  # whatever numpy's own generator has drawn
        np.random.seed(k)
        assert torch.equal(found, label_the_rest(x, labels, 3, seed=0))


def test_refuses():
    x, y = randn(4, 3), torch.tensor([0, 1, -1, -1])
    with pytest.raises(ValueError, match="clusters: expected an integer from 1 to 2, got 3"):
        label_the_rest(x, y, 3)
    with pytest.raises(ValueError, match="labels: expected unlabelled samples"):
        label_the_rest(x, y.clamp(min=0), 1)
    with pytest.raises(ValueError, match="labels: expected classes from 0"):
        label_the_rest(x, y - 1, 1)


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_plateaus_of_scores_below_nothing(shift):
    """As minus a loss: what is not larger is no improvement."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    run = RecordedPlateaus(optimizer, patience=2)
    for score in [0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1]:
        run.step(score + shift)
    assert run.milestones == [5, 9]


def test_plateaus_of_rates_that_are_tensors():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], torch.tensor(1.0))
    run = RecordedPlateaus(optimizer, np.float64(0.5), patience=1)
    for _ in range(3):
        run.step(0.5)
    assert run.milestones == [3] and optimizer.param_groups[0]["lr"] == 0.5
    file = io.BytesIO()
    torch.save(run.state_dict(), file)
    file.seek(0)
    RecordedPlateaus(optimizer).load_state_dict(torch.load(file, weights_only=True))
