"""L2A-NC: its two steps against their formulas, who receives gradients, and resumption."""

import copy

import pytest
import torch
from method_tools import batches, randn, same_state, saved
from torch import nn
from torch.nn import functional as F

from fastdml import losses
from fastdml.methods import NovelClasses, sinkhorn_divergence

C, D, NOVEL = 4, 6, 3


def new(**kwargs):
    torch.manual_seed(0)
    host = losses.ProxyAnchorLoss(C + NOVEL, D)
    return NovelClasses(host, C, D, NOVEL, hidden=8, noise=5, per_class=2, **kwargs).double()


def generated(generator, labels, noise):
    """The network layer by layer, with the batch's own statistics."""
    x = noise
    for k in range(2):
        x = x @ generator.layers[k].weight.T
        if generator.training:
            mean, var = x.mean(0), x.var(0, correction=0)
        else:
            norm = generator.norms[k].norm
            mean, var = norm.running_mean, norm.running_var
        x = (x - mean) / (var + 1e-5).sqrt()
        x = x * generator.norms[k].gain[labels] + generator.norms[k].bias[labels]
        x = torch.where(x > 0, x, 0.2 * x)
    x = x @ generator.last.weight.T + generator.last.bias
    return x / x.norm(dim=1, keepdim=True)


def drawn(l2a, batch, real=0):
    """Novel labels and noise of the next step, from a copy of its stream."""
    source = copy.deepcopy(l2a.draws).next("cpu")
    classes = C + torch.randperm(NOVEL, generator=source)[: min(NOVEL, batch // 2)]
    made_up = classes.repeat_interleave(2)
    return made_up, torch.randn(real + len(made_up), 5, generator=source, dtype=torch.float64)


def unrolled(x, y, blur=0.05, iterations=400):
    """Transport through the graph of all iterations."""
    x, y = F.normalize(x), F.normalize(y)
    cost = 1 - x @ y.T
    f, g = torch.zeros(len(x)).double(), torch.zeros(len(y)).double()
    for _ in range(iterations):
        f = -blur * ((g - cost) / blur).logsumexp(1) + blur * torch.tensor(len(y)).log()
        g = -blur * ((f[:, None] - cost) / blur).logsumexp(0) + blur * torch.tensor(len(x)).log()
    return f.mean() + g.mean()


def test_sinkhorn_divergence_and_its_gradient():
    x, y = randn(5, 4).requires_grad_(), randn(7, 4, seed=1).requires_grad_()
    found = sinkhorn_divergence(x, y, iterations=400)
    true = unrolled(x, y) - unrolled(x, x) / 2 - unrolled(y, y) / 2
    assert torch.allclose(found, true, atol=1e-9)
    grads = [torch.autograd.grad(v, (x, y)) for v in (found, true)]
    for mine, theirs in zip(*grads):
        assert torch.allclose(mine, theirs, atol=1e-6)
    assert found > 0
    assert abs(sinkhorn_divergence(x, 3 * x, iterations=400)) < 1e-9


def test_step_of_the_network():
    l2a, (x, y) = new(warm_up=1), batches(1, 12, D, C)[0]
    x = x.requires_grad_()
    assert not l2a.ready and torch.equal(l2a(x, y), l2a.loss(x, y))
    assert l2a.ready
    made_up, noise = drawn(l2a, 12)
    found = l2a(x, y)
    made = generated(copy.deepcopy(l2a.generator).eval(), made_up, noise)
    true = l2a.loss(torch.cat([F.normalize(x), made.detach()]), torch.cat([y, made_up]))
    assert torch.allclose(found, true)
    found.backward()
    assert x.grad.abs().sum() > 0 and l2a.loss.proxies.grad.abs().sum() > 0
    assert all(p.grad is None for p in l2a.generator.parameters())
    assert l2a.generator.training


def test_the_host_has_embeddings_as_they_are():
    """In the warm-up and after it, for hosts that do not normalise."""
    host = losses.SmoothedCrossEntropyLoss(C + NOVEL, D)
    torch.nn.init.normal_(host.weight)
    l2a = NovelClasses(host, C, D, NOVEL, hidden=8, noise=5, per_class=2, warm_up=1).double()
    x, y = batches(1, 12, D, C)[0]
    assert torch.equal(l2a(3 * x, y), host(3 * x, y))
    made_up, noise = drawn(l2a, 12)
    made = generated(copy.deepcopy(l2a.generator).eval(), made_up, noise)
    true = host(torch.cat([3 * x, made]), torch.cat([y, made_up]))
    assert torch.allclose(l2a(3 * x, y), true)


def test_step_of_the_generator():
    l2a, (x, y) = new(divergence=0.7), batches(1, 12, D, C)[0]
    leaf = x.clone().requires_grad_()
    made_up, noise = drawn(l2a, 12, real=12)
    every = torch.cat([y, made_up])
    found = l2a.generator_loss(leaf, y)
    made = generated(l2a.generator, every, noise)
    true = l2a.loss(made, every) + 0.7 * sinkhorn_divergence(made[:12], x)
    assert torch.allclose(found, true)
    weights = list(l2a.generator.parameters())
    expected = torch.autograd.grad(true, weights)
    found.backward()
    assert all(torch.allclose(p.grad, g, atol=1e-8) for p, g in zip(weights, expected))
    assert leaf.grad is None and l2a.loss.proxies.grad is None


def test_training_resumes_in_the_middle_of_an_epoch_and_the_generator_learns():
    def start():
        l2a = new(warm_up=2)
        model = nn.Linear(5, D).double()
        nn.init.constant_(model.weight, 0.1), nn.init.eye_(model.weight)
        own = [*model.parameters(), *l2a.loss.parameters()]
        return l2a, model, torch.optim.SGD(own, 0.01), torch.optim.Adam(l2a.generator.parameters(), 0.01)

    def steps(l2a, model, optimizer, generator_optimizer, run):
        values = []
        for x, y in run:
            embeddings = model(x)
            if l2a.ready:
                generator_optimizer.zero_grad()
                loss = l2a.generator_loss(embeddings, y)
                loss.backward()
                generator_optimizer.step()
                values.append(loss.item())
            optimizer.zero_grad()
            l2a(embeddings, y).backward()
            optimizer.step()
        return values

    run = batches(60, 12, 5, C)
    one, two = start(), start()
    first = steps(*one, run[:30])
    for mine, theirs in zip(two[:2], one[:2]):
        mine.load_state_dict(saved(theirs))
    for mine, theirs in zip(two[2:], one[2:]):
        mine.load_state_dict(copy.deepcopy(theirs.state_dict()))
    last = steps(*one, run[30:])
    assert last == steps(*two, run[30:])
    assert same_state(one[0], two[0]) and same_state(one[1], two[1])
    assert sum(last[-5:]) < 0.9 * sum(first[:5])


def test_refuses():
    with pytest.raises(ValueError, match="loss: expected one of 8 classes"):
        NovelClasses(losses.ProxyAnchorLoss(C, D), C, D)
    with pytest.raises(ValueError, match=f"loss: expected one of {D} dimensions, got {D + 1}"):
        NovelClasses(losses.ProxyAnchorLoss(2 * C, D + 1), C, D)
    for step in (new(warm_up=9), new(warm_up=9).generator_loss):
        with pytest.raises(ValueError, match=f"embeddings: expected {D} dimensions, got {D + 1}"):
            step(randn(2, D + 1), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="labels: expected values in"):
        new()(randn(2, D), torch.tensor([0, C]))


def test_a_batch_without_rows():
    """The generator's step is on novel classes alone; nothing is apart from nothing."""
    l2a, x, y = NovelClasses(losses.ProxyAnchorLoss(10, 8), 5, 8), randn(3, 8), torch.arange(3)
    value = l2a.generator_loss(x[:0].float(), y[:0])
    value.backward()
    assert value.isfinite() and all(p.grad.isfinite().all() for p in l2a.generator.parameters())
    l2a.per_class = 1
    with pytest.raises(ValueError, match="embeddings: expected rows beside the one novel embedding"):
        l2a.generator_loss(x[:0].float(), y[:0])
    assert l2a.eval().generator_loss(x[:0].float(), y[:0]).isfinite()
    for one, other in ((x[:0], x), (x, x[:0]), (x[:0], x[:0])):
        one, other = one.clone().requires_grad_(), other.clone().requires_grad_()
        apart = sinkhorn_divergence(one, other)
        apart.backward()
        assert apart == 0 and not one.grad.any() and not other.grad.any()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision(kind):
    """A row of zeros, and one that is longer than float16 holds."""
    x = randn(6, D).to(kind)
    x[1], x[2] = 0, 5e4
    found = []
    for points in (x, x.double()):
        leaf = points.clone().requires_grad_()
        value = sinkhorn_divergence(leaf, points[3:])
        found.append((value, *torch.autograd.grad(value, leaf)))
    (value, grad), (true, expected) = found
    assert value.dtype == torch.float32 and torch.allclose(value.double(), true, rtol=1e-5)
    assert not grad[1].any() and torch.allclose(grad.double(), expected, rtol=1e-2, atol=1e-6)
    leaf = x.clone().requires_grad_()
    new().float()(leaf, torch.arange(6) % C).backward()
    assert leaf.grad[0].any() and not leaf.grad[1].any() and leaf.grad.isfinite().all()


def test_divergence_in_autocast():
    x = randn(16, 32).float()
    y = x + 0.1 * randn(16, 32, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = sinkhorn_divergence(x, y)
    assert torch.equal(found, sinkhorn_divergence(x, y))
