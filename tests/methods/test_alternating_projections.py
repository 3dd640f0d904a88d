"""Alternating projections: the sampler's promises, the rectangular loss, and resumption."""

import pytest
import torch
from method_tools import batches, randn, same_state, saved
from torch import nn

from fastdml import losses
from fastdml.methods import AlternatingProjections, RepresentativeSampler

# Classes of 1, 2, 5, 9, 9 and 14 samples with names of their own.
LABELS = torch.tensor([3] * 1 + [-1] * 2 + [8] * 5 + [40] * 9 + [0] * 9 + [7] * 14)
LABELS = LABELS[torch.randperm(40, generator=torch.Generator().manual_seed(0))]


def sampler(**kwargs):
    return RepresentativeSampler(LABELS, 3, 4, **{"lifetime": 5, "length": 8, **kwargs})


def test_batches_show_a_representative_for_its_lifetime():
    drawn = sampler()
    rows = [b for _ in range(3) for b in drawn]
    assert len(rows) == 24 and len(drawn) == 8
    periods = []
    for number, batch in enumerate(rows):
        if number % 5 == 0:
            periods.append({})
        shown, fresh = batch[:3], torch.tensor(batch[3:]).view(3, 3)  # sample-major
        names = LABELS[shown]
        assert len(set(names.tolist())) == 3
        assert (LABELS[fresh] == names).all()
        for k, (name, index) in enumerate(zip(names.tolist(), shown)):
            assert periods[-1].setdefault(name, index) == index
            size = LABELS.tolist().count(name)
            if size > 1:
                assert index not in fresh[:, k].tolist()
            if size > 3:
                assert len(set(fresh[:, k].tolist())) == 3
    assert len({p[7] for p in periods if 7 in p} | {p[40] for p in periods if 40 in p}) > 2
    assert len({tuple(b) for b in rows}) == len(rows)


def test_mined_classes_are_the_nearest():
    # Embeddings of classes in ascending order on an arc: neighbours are known.
    angle = torch.tensor([0.0, 0.1, 0.3, 1.0, 1.2, 1.5])
    seen = []

    def embed(indices):
        assert not torch.is_grad_enabled()
        seen.append(indices)
        names = LABELS[indices]
        assert torch.equal(names, LABELS.unique())
        return torch.stack([angle.cos(), angle.sin()], 1)

    nearest = {0: {1, 2}, 1: {0, 2}, 2: {0, 1}, 3: {4, 5}, 4: {3, 5}, 5: {3, 4}}
    names = LABELS.unique().tolist()
    for batch in sampler(embed=embed):
        first, *others = (names.index(int(LABELS[i])) for i in batch[:3])
        assert set(others) == nearest[first]
    assert len(seen) == 2


def test_sampler_resumes_in_the_middle_of_an_epoch():
    one, two = (sampler(embed=lambda i: randn(6, 2, seed=int(i.sum()))) for _ in range(2))
    running = iter(one)
    for _ in range(3):
        next(running)
    two.load_state_dict(one.state_dict())
    assert len(two) == 5
    rest = list(running)
    assert rest == list(two) and len(rest) == 5
    assert list(one) == list(two)


def test_the_seed_draws_classes_and_samples():
    """A state is of the moment, whatever is drawn later; the representatives are those of the last period."""
    one, two = (sampler(seed=s) for s in (0, 1))
    shown = [{int(i) for i in LABELS[torch.tensor(b[:3])]} for b in one]
    assert shown != [{int(i) for i in LABELS[torch.tensor(b[:3])]} for b in two]
    state = sampler().state_dict()
    one.load_state_dict(state)
    early = iter(one)
    for _ in range(5):
        next(early)
    state, before = one.state_dict(), one.representatives
    assert list(state["periods"]) == [0]
    batch = next(early)
    assert list(state["periods"]) == [0] and not torch.equal(one.representatives, before)
    assert set(batch[:3]) <= set(one.representatives.tolist())


def test_the_loss_is_rectangular():
    """Contrastive loss over pairs of a representative and a fresh sample, written out."""
    x, _ = batches(1, 12, 5, 3)[0]
    y = torch.tensor([4, 5, 6] * 4)
    host = losses.ContrastiveLoss(0.1, 1.5, reduction="mean")
    method = AlternatingProjections(nn.Linear(5, 5), host, 3, 2, between=0.25)
    leaf = x.clone().requires_grad_()
    u = nn.functional.normalize(leaf)

    def mean(rows, columns):
        pull, push = [], []
        for i in rows:
            for j in columns:
                if i == j:
                    continue
                d = (u[i] - u[j]).norm()
                if y[i] == y[j]:
                    pull.append((d - 0.1).relu())
                else:
                    push.append((1.5 - d).relu())
        return sum(torch.stack(terms).mean() for terms in (pull, push) if terms)

    expected = mean(range(3), range(3, 12)) + 0.25 * mean(range(3), range(3))
    found = method(leaf, y)
    assert torch.allclose(found, expected)
    grads = [torch.autograd.grad(v, leaf)[0] for v in (found, expected)]
    assert torch.allclose(*grads, atol=1e-10)


def test_weights_are_held_from_the_second_period_and_training_resumes():
    def start():
        torch.manual_seed(0)
        model = nn.Linear(5, 5).double()
        method = AlternatingProjections(
            model, losses.MultiSimilarityLoss(), 3, 2, proximal_weight=0.5
        ).double()
        return model, method, torch.optim.SGD(model.parameters(), 0.1)

    def steps(model, method, optimizer, first, last):
        origins = []
        for step in range(first, last):
            before = model.weight.detach().clone()
            x, _ = batches(1, 12, 5, 3, seed=step)[0]
            loss = method(model(x), torch.tensor([4, 5, 6] * 4)) + method.proximal()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            origins.append((before, method.proximal.active, method.proximal.origin[0].clone()))
        return origins

    one = start()
    history = steps(*one, 0, 3)
    assert [active for _, active, _ in history] == [False, False, True]
    assert torch.equal(history[2][2], history[2][0])  # the weights as the period began
    two = start()
    for mine, theirs in zip(two[:2], one[:2]):
        mine.load_state_dict(saved(theirs))
    steps(*one, 3, 7), steps(*two, 3, 7)
    assert same_state(one[0], two[0]) and same_state(one[1], two[1])


def test_a_class_that_is_just_large_enough_is_shown_whole():
    """Its representative and the M - 1 others, none of them twice; an epoch shows all samples about once."""
    labels = torch.arange(24) % 6
    drawn = RepresentativeSampler(labels, 3, 4, lifetime=5)
    assert len(drawn) == 2
    for batch in (b for _ in range(6) for b in drawn):
        assert len(set(batch)) == 12


def test_evaluation_is_no_step():
    one, two = (
        AlternatingProjections(nn.Linear(5, 5).double(), losses.MultiSimilarityLoss(), 3, 2) for _ in range(2)
    )
    labels = torch.tensor([4, 5, 6] * 4)
    for x, _ in batches(5, 12, 5, 3):
        assert torch.equal(one.eval()(x, labels), one.train()(x, labels))
        two(x, labels)
    assert one.steps == two.steps == 5 and one.proximal.active


def test_refuses():
    with pytest.raises(ValueError, match="classes_per_batch: expected an integer from 2 to 6"):
        RepresentativeSampler(LABELS, 7, 4, 5)
    method = AlternatingProjections(nn.Linear(2, 2), losses.MultiSimilarityLoss(), 3, 2)
    with pytest.raises(ValueError, match="embeddings: expected more than 3 rows"):
        method(randn(3, 4), torch.arange(3))


@pytest.mark.parametrize("mined", [False, True])
def test_a_loader_that_asks_ahead_resumes(mined):
    """Beyond the end of a period, whose representatives are not those of what was trained."""
    embed = (lambda rows: randn(40, 6)[rows]) if mined else None
    whole = [b for _ in range(2) for b in sampler(embed=embed)]
    ahead = sampler(embed=embed)
    running = iter(ahead)
    for _ in range(7):
        next(running)
    for trained in (3, 5, 6):
        resumed = sampler(embed=None if embed is None else lambda rows: 1 / 0 if len(rows) else rows)
        resumed.load_state_dict({**ahead.state_dict(), "batches": trained})
        assert list(resumed) == whole[trained:8]
