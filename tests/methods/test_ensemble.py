"""Ensembles of losses against their formula, with the running means kept by hand."""

import pytest
import torch
from method_tools import batches, randn, same_state, saved
from torch.nn import functional as F

from fastdml import losses
from fastdml.methods import CompressionHead, LossEnsemble, proportion_loss
from fastdml.methods.ensemble import mean_head_distance

PRIOR = [2.0, 1.0, 3.0]


def members():
    return [
        losses.MultiSimilarityLoss(),
        losses.TripletMarginLoss(margin=1.0),
        losses.BinomialDevianceLoss(),
    ]


@pytest.mark.parametrize("heads", [False, True])
def test_values_and_gradients_over_steps(heads):
    ensemble = LossEnsemble(members(), PRIOR, eta=0.3, diversity=0.5).double()
    sums = [0.0] * 3
    for step, (x, y) in enumerate(batches(4, 14, 6, 4), 1):
        leaf = x.requires_grad_()
        parts = [F.normalize(leaf), F.normalize(leaf[:, :4]), F.normalize(leaf**3)]
        parts = [F.normalize(F.pad(p, (0, 6 - p.shape[1]))) for p in parts] if heads else [leaf] * 3
        found = ensemble(parts if heads else leaf, y)
        values = [loss(p, y) for loss, p in zip(members(), parts)]
        sums = [s + v.item() for s, v in zip(sums, values)]
        means = [s / step for s in sums]
        whole = sum(means) / 3
        w = ensemble.c**2 + 1 / 12
        true = sum(w[j] * whole / means[j] * values[j] for j in range(3))
        true = true + 100 * 0.3 * (w.sum() - 1) ** 2
        if heads:
            apart = [(parts[j] - parts[k]).norm(dim=1).mean() for j, k in ((0, 1), (0, 2), (1, 2))]
            true = true + 0.5 * (2 - sum(apart) / 3).clamp(min=0)
        assert torch.allclose(found, true, rtol=1e-7)
        inputs = [leaf, ensemble.c]
        grads = [torch.autograd.grad(v, inputs, retain_graph=True) for v in (found, true)]
        for mine, theirs in zip(*grads):
            assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-7)
        with torch.no_grad():
            ensemble.c.add_(0.05)


def test_weights_begin_at_the_prior_and_embed():
    ensemble = LossEnsemble(members(), PRIOR)
    assert torch.allclose(ensemble.weights, torch.tensor(PRIOR) / 6)
    assert (ensemble.eta, ensemble.diversity) == (100, 0.01)
    heads = [randn(5, 3, seed=k) for k in range(3)]
    found = ensemble.embed(heads)
    squared = sum(w * torch.cdist(h, h) ** 2 for w, h in zip(ensemble.weights, heads))
    assert torch.allclose(torch.cdist(found, found) ** 2, squared, atol=1e-6)


def test_resumes_bit_for_bit():
    run = batches(4, 14, 6, 4)
    one = LossEnsemble(members(), PRIOR).double()
    one(*run[0])
    two = LossEnsemble(members()).double()
    two.load_state_dict(saved(one))
    for x, y in run[1:]:
        assert torch.equal(one(x, y), two(x, y))
    assert same_state(one, two)
    one.eval()
    one(*run[0])
    assert same_state(one, two)


def dense_proportions(z, x):
    d, e = torch.cdist(x, x) ** 2, torch.cdist(z, z) ** 2
    return len(x) ** 2 * (d / d.sum() - e / e.sum()).norm()


def test_proportions_of_distances():
    x, z = randn(9, 6), randn(9, 4, seed=1).requires_grad_()
    found, true = proportion_loss(z, x), dense_proportions(z, x)
    assert torch.allclose(found, true)
    grads = [torch.autograd.grad(v, z)[0] for v in (found, true)]
    assert torch.allclose(*grads, atol=1e-9)
    assert proportion_loss(3 * x + 1, x) < 1e-5  # similar figures
    assert proportion_loss(z.float(), x.float()).dtype == torch.float32
    same = randn(1, 4).repeat(9, 1).requires_grad_()  # whose mean is another number
    proportion_loss(same, x).backward()
    assert not same.grad.any()
    assert proportion_loss(same.detach(), randn(1, 6).repeat(9, 1)) < 1e-9


def test_compression_head_learns():
    torch.manual_seed(0)
    head, x = CompressionHead(6, 4), randn(40, 2, dtype=torch.float32) @ randn(2, 6, dtype=torch.float32)
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    first = head.loss(x).item()
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(x).backward()
        optimizer.step()
    assert head.loss(x).item() < 0.4 * first
    leaf = x.clone().requires_grad_()  # the proportions to keep are constants
    grads = [torch.autograd.grad(v, leaf)[0] for v in (head.loss(leaf), proportion_loss(head(leaf), x))]
    assert torch.equal(*grads)


def test_refuses():
    for prior in ([0.01, 1, 1], [1, 10, 1]):  # the second: shares of a
        with pytest.raises(ValueError, match=r"prior: expected shares above 0\.0833333 of the sum"):
            LossEnsemble(members(), prior)
    with pytest.raises(ValueError, match="prior: expected 3 numbers"):
        LossEnsemble(members(), [1, 1])
    with pytest.raises(ValueError, match="embeddings: expected 3 heads"):
        LossEnsemble(members())([randn(2, 3)], torch.zeros(2, dtype=torch.long))
    wide = LossEnsemble(members()[:2])
    with pytest.raises(ValueError, match=r"expected heads of one shape.* \[\(4, 3\), \(4, 5\)\]"):
        wide([randn(4, 3), randn(4, 5)], torch.arange(4) // 2)
    assert wide.steps.eq(0).all()
    with pytest.raises(ValueError, match="teacher: expected 3 rows"):
        proportion_loss(randn(3, 2), randn(2, 2))
    with pytest.raises(ValueError, match=r"losses: expected one number of SupConLoss, got \(4,\)"):
        LossEnsemble([losses.SupConLoss(reduction="none")])(randn(4, 3), torch.arange(4) // 2)


def test_a_batch_without_rows():
    """No diversity is asked of heads without samples."""
    ensemble, y = LossEnsemble([losses.MultiSimilarityLoss()] * 2), torch.empty(0, dtype=torch.int64)
    heads = [torch.empty(0, 8, requires_grad=True) for _ in range(2)]
    value = ensemble(heads, y)
    value.backward()
    assert value == 0 and not ensemble.c.grad.any() and all(h.grad is not None for h in heads)


def test_heads_in_half_precision():
    """Far from each other: their distance is more than float16 holds."""
    heads = [randn(5, 8, seed=k).half() * 2e4 for k in range(3)]
    found = mean_head_distance(heads)
    assert found.dtype == torch.float32
    assert torch.allclose(found, mean_head_distance([h.float() for h in heads]))


def test_evaluation_before_any_step():
    """Without a history the present value is the mean."""
    (x, y), = batches(1, 14, 6, 4)
    ensemble, other = (LossEnsemble(members(), PRIOR).double() for _ in range(2))
    assert torch.equal(ensemble.eval()(x, y), other(x, y)) and not ensemble.steps


def test_a_bad_batch_is_forgotten():
    ensemble, other = LossEnsemble(members()), LossEnsemble(members())
    (x, y), (z, labels) = batches(2, 14, 6, 4)
    bad = z.clone()
    bad[0, 0] = float("nan")
    assert ensemble(bad, labels).isnan()
    assert torch.equal(ensemble(x, y), other(x, y)) and same_state(ensemble, other)


def test_means_keep_their_digits():
    """In a module of another type: sums of many steps would stop to grow."""
    ensemble = LossEnsemble(members()).to(torch.bfloat16)
    assert ensemble.totals.dtype == torch.float64
    x, y = next(iter(batches(1, 14, 6, 4)))
    for _ in range(300):
        ensemble(x, y)
    values = torch.stack([loss(x, y) for loss in members()])
    assert torch.allclose(ensemble.totals / ensemble.steps, values)
