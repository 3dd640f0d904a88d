"""Embedding transfer and self-distillation against steps written out."""

import copy

import pytest
import torch
from method_tools import batches, randn, same_state, saved
from torch import nn
from torch.nn import functional as F

from fastdml import losses
from fastdml.methods import EmbeddingTransfer, SelfDistillation, views


def network(outputs=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs)).double()


def test_transfer_of_two_views_to_a_smaller_dimension():
    source, target = network(7), network(3, 1)
    transfer = EmbeddingTransfer(source)
    x = randn(6, 5)
    both = views(x, lambda t: t + 0.1, lambda t: 2 * t)
    assert torch.equal(both, torch.cat([x + 0.1, 2 * x]))
    embeddings = target(both)
    found = transfer(embeddings, both)

    t = F.normalize(network(7).eval()(both))
    d = torch.cdist(embeddings, embeddings)
    r = d / d.mean(1, keepdim=True)
    w = (-torch.cdist(t, t).square()).exp()
    terms = w * r**2 + (1 - w) * (1 - r).relu() ** 2
    true = terms[~torch.eye(12, dtype=torch.bool)].sum() / 12
    assert torch.allclose(found, true)
    assert torch.equal(found, transfer(embeddings, teacher=transfer.relations(both)))
    assert not list(transfer.parameters()) and not saved(transfer)
    transfer.train()
    assert not source.training


@pytest.mark.parametrize(
    "loss", [losses.RKDDistanceLoss(), losses.PKTLoss(), losses.DarkRankLoss()]
)
def test_any_relational_loss(loss):
    transfer = EmbeddingTransfer(network(7), loss)
    leaf = randn(8, 3).requires_grad_()
    transfer(leaf, randn(8, 5, seed=1)).backward()
    assert leaf.grad.abs().sum() > 0


def test_the_source_stays_in_evaluation_mode():
    source, x = network(), randn(6, 5)
    transfer = EmbeddingTransfer(source)
    want, state = transfer.relations(x), copy.deepcopy(source.state_dict())
    assert not want.requires_grad
    nn.ModuleList([source]).train()  # as a module that holds it too
    assert torch.equal(transfer.relations(x), want)
    assert all(torch.equal(value, state[name]) for name, value in source.state_dict().items())


def test_transfer_refuses():
    with pytest.raises(ValueError, match="images: expected either"):
        EmbeddingTransfer(network())(randn(2, 4))
    with pytest.raises(ValueError, match="augmentations: expected at least one"):
        views(randn(2, 4))


def kl(student, teacher, tau=2.0):
    t, s = (teacher @ teacher.T / tau).log_softmax(1), (student @ student.T / tau).log_softmax(1)
    return (t.exp() * (t - s)).sum(1).mean()


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("average", [None, 0.9])
def test_distillation_over_epochs(average, variant):
    """Every value of two epochs of three steps, with a teacher kept by hand."""
    model, host = network(), losses.MultiSimilarityLoss()
    lists = losses.ListwiseSelfDistillationLoss(2.0)
    lsd = SelfDistillation(
        model, host, 4, 50, distillation=lists, average=average, variant=variant
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    teacher = network()
    for epoch in range(3):
        lsd.begin_epoch(epoch)
        if average is None or epoch == 0:
            teacher.load_state_dict(model.state_dict())
        teacher.train(variant == "released")
        for x, y in batches(3, 12, 5, 4, seed=epoch):
            embeddings = F.normalize(model(x))
            loss = lsd(embeddings, y, x)
            with torch.no_grad():
                expected = host(embeddings, y)
                if epoch:
                    expected = expected + epoch / 4 * 50 * 4 * kl(embeddings, teacher(x))
            assert torch.allclose(loss, expected, rtol=1e-9)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lsd.step()
            if average is not None:
                for mine, theirs in zip(teacher.parameters(), model.parameters()):
                    mine.data = 0.9 * mine.data + 0.1 * theirs.data
                for mine, theirs in zip(teacher.buffers(), model.buffers()):
                    mine.copy_(theirs)


@pytest.mark.parametrize("average", [0.8, None])
def test_distillation_resumes_in_the_middle_of_an_epoch(average):
    def start():
        model = network()
        lsd = SelfDistillation(model, losses.MultiSimilarityLoss(), 3, average=average)
        return model, lsd, torch.optim.SGD(model.parameters(), 0.01)

    def steps(model, lsd, optimizer, run):
        for x, y in run:
            optimizer.zero_grad()
            lsd(model(x), y, x).backward()
            optimizer.step()
            lsd.step()

    run = batches(4, 12, 5, 4)
    one, two = start(), start()
    one[1].begin_epoch(1)
    steps(*one, run[:2])
    for mine, theirs in zip(two[:2], one[:2]):
        mine.load_state_dict(saved(theirs))
    two[1].begin_epoch(1)  # as a training loop does at the start of every epoch
    steps(*one, run[2:]), steps(*two, run[2:])
    assert same_state(one[0], two[0]) and same_state(one[1], two[1])
    assert two[1].epoch == 1 and not any(p.requires_grad for p in two[1].teacher.parameters())
    for model, lsd, _ in (one, two):
        lsd.begin_epoch(2)
        assert average is not None or same_state(lsd.teacher, model)


def test_a_distillation_without_a_temperature_weighs_by_alpha():
    lsd = SelfDistillation(network(), nn.Identity(), 4, 50, distillation=nn.MSELoss())
    lsd.begin_epoch(3)
    assert lsd.weight == 3 / 4 * 50
    assert SelfDistillation(network(), nn.Identity(), 4).alpha == 200


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_in_evaluation_mode_no_teacher_trains(variant):
    model = network()
    lsd = SelfDistillation(model, losses.MultiSimilarityLoss(), 4, variant=variant)
    lsd.begin_epoch(2)
    (x, y), *_ = batches(1, 12, 5, 4)
    before = copy.deepcopy(lsd.eval().teacher.state_dict())
    lsd(model(x), y, x)
    assert all(torch.equal(value, before[name]) for name, value in lsd.teacher.state_dict().items())
    assert lsd.train().teacher.training == (variant == "released")


def test_distillation_refuses():
    with pytest.raises(ValueError, match="average: expected None or a number"):
        SelfDistillation(network(), nn.Identity(), 3, average=1.0)
    with pytest.raises(ValueError, match="epoch: expected an integer from 0 to 3"):
        SelfDistillation(network(), nn.Identity(), 3).begin_epoch(4)


def test_a_teacher_has_buffers_that_are_no_state():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(4), persistent=False)

        def forward(self, x):
            return x * self.scale

    model = nn.Sequential(network(), Scaled())
    method = SelfDistillation(model, losses.MultiSimilarityLoss(), 10)
    model[1].scale.fill_(3.0)
    method.begin_epoch(1)
    assert torch.equal(method.teacher(randn(6, 5)), model.eval()(randn(6, 5)))
