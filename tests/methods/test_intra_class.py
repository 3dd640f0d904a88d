"""IAA against the paper's formulas class by class, and its rectangular loss against dense masks."""

import math

import pytest
import torch
from method_tools import batches, randn, same_state, saved

from fastdml import losses
from fastdml.distributed import wrap
from fastdml.methods import IAALoss, IntraClassAugmentation

C, D = 9, 6


def new(**kwargs):
    return IntraClassAugmentation(C, D, **{"neighbours": 3, **kwargs}).double()


def data(seed=0):
    """Classes of 1, 1, 2, 3, ... 50 samples with different spreads, and one class without any."""
    sizes = [1, 1, 2, 3, 5, 8, 13, 50]
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(y), generator=g)
    y = y[order]
    x = randn(len(y), D, seed=seed + 1) * (0.2 + y[:, None] / 4) + randn(C, D, seed=2)[y]
    return x, y


def statistics(x, y):
    n = [int((y == c).sum()) for c in range(C)]
    mean = torch.stack([x[y == c].mean(0) if n[c] else x.new_zeros(D) for c in range(C)])
    var = torch.stack(
        [x[y == c].var(0, correction=0) if n[c] else x.new_zeros(D) for c in range(C)]
    )
    return n, mean, var


def corrected(n, mean, var, rescale, few=40, k=3, beta=0.1, gamma=0.1, widths=(1.0, 1.0)):
    """The formula of the docstring, one class at a time."""
    out = var.clone()
    eligible = [i for i in range(C) if n[i] > 1]
    everywhere = sum(n[i] * var[i] for i in eligible) / sum(n[i] for i in eligible)
    for c in range(C):
        if not 0 < n[c] <= few:
            continue
        others = [i for i in eligible if i != c]
        u = {i: (mean[i] ** 2 - mean[c] ** 2).norm().item() for i in others}
        v = {i: (var[i] - var[c]).norm().item() for i in others}
        if rescale:
            u, v = (
                {i: (d[i] - min(d.values())) / (max(d.values()) - min(d.values())) for i in d}
                for d in (u, v)
            )
        nearest = sorted(others, key=lambda i: u[i])[:k]
        w = [
            n[i] * math.exp(-(u[i] ** 2) / (2 * widths[0] ** 2) - v[i] ** 2 / (2 * widths[1] ** 2))
            for i in nearest
        ]
        mixture = sum(a * var[i] for a, i in zip(w, nearest)) / sum(w)
        share = 1 / (1 + math.log(1 + beta * (n[c] - 1)))
        out[c] = (1 - share) * var[c] + share * ((1 - gamma) * mixture + gamma * everywhere)
    return out


@pytest.mark.parametrize("rescale", [True, False])
def test_statistics_and_neighbour_correction(rescale):
    x, y = data()
    iaa = new(rescale_distances=rescale, mean_width=2.0, covariance_width=0.7)
    iaa.estimate(x, y)
    n, mean, var = statistics(x, y)
    assert iaa.count.tolist() == n
    assert torch.allclose(iaa.mean, mean, atol=1e-12)
    assert torch.allclose(iaa.variance, var, atol=1e-12)
    expected = corrected(n, mean, var, rescale, widths=(2.0, 0.7))
    assert torch.allclose(iaa.corrected, expected, atol=1e-12)
    assert torch.equal(iaa.corrected[7], iaa.variance[7])  # 50 samples
    assert not torch.equal(iaa.corrected[0], iaa.variance[0])


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_running_statistics(by_class, variant):
    iaa = new(variant=variant)
    n, mean, var = [0] * C, torch.zeros(C, D).double(), torch.zeros(C, D).double()
    for seed in range(3):
        x, y = data(seed)
        iaa.update(x, y, by_class=by_class)
        new_n, new_mean, new_var = statistics(x, y)
        for c in range(C):
            if new_n[c] > int(by_class):
                w = max(new_n[c] / (new_n[c] + n[c]), 0.8)
                var[c] = (1 - w) * var[c] + w * new_var[c] + w * (1 - w) * (mean[c] - new_mean[c]) ** 2
                mean[c] = (1 - w) * mean[c] + w * new_mean[c]
            if c == C - 1 if by_class and variant == "released" else new_n[c] > int(by_class):
                n[c] += new_n[c]
        assert iaa.count.tolist() == n
        assert torch.allclose(iaa.mean, mean, atol=1e-12)
        assert torch.allclose(iaa.variance, var, atol=1e-12)
    if variant == "paper":
        assert torch.allclose(iaa.corrected, corrected(n, mean, var, True), atol=1e-12)
    else:
        assert torch.equal(iaa.corrected, iaa.variance)


def test_samples_that_were_passed_over_do_not_count():
    """By class a single sample moves nothing: such a class has no statistics, and is nobody's neighbour."""
    x, y = data()
    iaa, untouched, alone = new(), new(), torch.full((1,), C - 1)
    for seed in range(2):
        iaa.update(randn(1, D, seed=seed) + 9, alone, by_class=True)
    assert same_state(iaa, untouched)
    for one in (iaa, untouched):
        one.update(x, y, by_class=True)
    assert same_state(iaa, untouched)
    pair = randn(2, D) + 9
    iaa.update(pair, alone.repeat(2), by_class=True)
    assert torch.allclose(iaa.mean[-1], pair.mean(0)) and iaa.count[-1] == 2


@pytest.mark.parametrize("variant, powers", [("paper", (0.5, 0.5, 0.5)), ("released", (0.5, 0.25, 0.125))])
def test_copies_are_as_wide_as_their_class(variant, powers):
    x, y = data()
    iaa = new(strength=0.36, variant=variant)
    iaa.estimate(x, y)
    many = torch.full((4000,), 3)
    z = randn(1, D).expand(4000, D)
    wide = iaa.corrected if variant == "paper" else iaa.variance
    candidates, classes = iaa(z, many)
    assert torch.equal(candidates[:4000], z) and torch.equal(classes, many.repeat(4))
    for k, power in enumerate(powers):
        found = (candidates[4000 * (k + 1) :][:4000] - z).std(0)
        assert torch.allclose(found, 0.6 * wide[3] ** power, rtol=0.06)
        assert ((candidates[4000 * (k + 1) :][:4000] - z).mean(0).abs() < 0.06 * found).all()


def masks(y, copies):
    owner = torch.arange(len(y)).repeat(1 + copies)
    same = y[:, None] == y[owner]
    return same & (torch.arange(len(y))[:, None] != owner), ~same


def test_own_copies_are_no_positives():
    """Multi-similarity with mining over real anchors, from the definition."""
    x, y = batches(1, 17, D, 5)[0]
    iaa = new(copies=2)
    iaa.estimate(*data())
    leaf = x.clone().requires_grad_()
    loss = IAALoss(losses.MultiSimilarityLoss(2, 40, 0.5, epsilon=0.1), iaa)(leaf, y)
    grad, = torch.autograd.grad(loss, leaf)

    iaa.draws.step = 0
    candidates, _ = iaa(leaf, y)
    s = torch.nn.functional.normalize(leaf) @ torch.nn.functional.normalize(candidates).T
    positive, negative = masks(y, 2)
    total = 0
    for i in range(len(y)):
        p, n = s[i][positive[i]], s[i][negative[i]]
        if len(p) and len(n):
            p, n = p[p - 0.1 < n.max()], n[n + 0.1 > p.min()]
        else:
            p, n = p[:0], n[:0]
        total = total + torch.log1p((-2 * (p - 0.5)).exp().sum()) / 2
        total = total + torch.log1p((40 * (n - 0.5)).exp().sum()) / 40
    assert torch.allclose(loss, total / len(y), rtol=1e-10)
    expected, = torch.autograd.grad(total / len(y), leaf)
    assert torch.allclose(grad, expected, atol=1e-10)


def test_rows_of_all_ranks_are_refused():
    with pytest.raises(ValueError, match=r"^loss: expected one of this process's rows"):
        IAALoss(wrap(losses.SupConLoss()), new())


def test_detached_copies_carry_no_gradient():
    x, y = batches(1, 9, D, 5)[0]
    leaf = x.clone().requires_grad_()
    for detach, reached in ((True, 1), (False, 4)):
        iaa = new(detach=detach)
        grad, = torch.autograd.grad(iaa(leaf, y)[0].sum(), leaf)
        assert torch.equal(grad, torch.full_like(grad, reached))


def test_schedule():
    iaa = new(strength=0.5)
    found = [iaa.scheduled_strength(e, 10) for e in (0, 4, 5, 6, 7, 8, 9, 10)]
    assert found == pytest.approx([0.5, 0.5, 0.45, 0.45, 0.375, 0.375, 0.3, 0.3])
    x, y = batches(1, 9, D, 5)[0]
    assert torch.equal(iaa(x, y, strength=0.0)[0], x.repeat(4, 1))


def test_resumes_bit_for_bit():
    one = new(seed=4)
    one.update(*data())
    run = batches(4, 9, D, 5)
    one(*run[0])
    two = new()
    two.load_state_dict(saved(one))
    for x, y in run[1:]:
        assert torch.equal(one(x, y)[0], two(x, y)[0])
        one.update(x, y), two.update(x, y)
    assert same_state(one, two)


def test_statistics_in_half_precision():
    x, y = data()
    iaa, wide = new().bfloat16(), new()
    for one, seen in ((iaa, x.bfloat16()), (wide, x)):
        one.estimate(seen, y)
    assert iaa.corrected.dtype == torch.bfloat16 and (iaa.corrected != iaa.variance).any()
    assert (iaa.corrected - wide.corrected).norm() < 0.02 * wide.corrected.norm()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e200])
def test_a_bad_class_is_forgotten(bad):
    """The others of its batch are not; 1e200 overflows in its square."""
    x, y, iaa, plain = randn(20, D), torch.arange(20) % C, new(), new()
    spoilt = x.clone()
    spoilt[0, 1] = bad
    left = y != y[0]
    for one, seen, labels in ((iaa, spoilt, y), (plain, x[left], y[left])):
        one.estimate(x, y)
        one.update(seen, labels)
    assert same_state(iaa, plain) and iaa.mean.isfinite().all()
    before = iaa.mean[y[0]].clone()
    iaa.estimate(spoilt, y)
    assert torch.equal(iaa.mean[y[0]], before)


def test_refuses():
    with pytest.raises(ValueError, match=r"gamma: expected a number in \[0, 1\]"):
        IntraClassAugmentation(C, D, gamma=1.5)
    with pytest.raises(ValueError, match="labels: expected values in"):
        new()(randn(2, D), torch.tensor([0, C]))
    with pytest.raises(ValueError, match="strength: expected"):
        new()(randn(2, D), torch.tensor([0, 1]), strength=-1)


def test_the_only_other_class_is_a_neighbour():
    """Of a class of one sample, which is nobody's neighbour."""
    iaa = IntraClassAugmentation(2, D).double()
    iaa.estimate(randn(6, D), torch.tensor([0] * 5 + [1]))
    assert torch.allclose(iaa.corrected[1], iaa.variance[0]) and iaa.variance[0].all()
    assert torch.equal(iaa.corrected[0], iaa.variance[0])  # it has no neighbour itself


def test_a_class_of_one_sample_has_all_others_to_choose_from():
    x, y = data()
    n, mean, var = statistics(x, y)
    iaa = new(neighbours=25)
    iaa.estimate(x, y)
    assert torch.allclose(iaa.corrected, corrected(n, mean, var, True, k=25), rtol=1e-10)
