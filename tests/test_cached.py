"""Gradient caching: the gradients of the direct step, with a chunk's activations."""

import copy
import random
from collections import namedtuple
from datetime import timedelta

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

import fastdml
from fastdml.large_batch import GradientCache, cached_step
from fastdml.losses import MultiSimilarityLoss, ProxyAnchorLoss

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
every_type = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


class Net(nn.Module):
    """Dropout twice, batch-norm, and notes of what it was asked for."""

    def __init__(self, inputs=6, outputs=4, dropout=0.3):
        super().__init__()
        self.first = nn.Linear(inputs, 12)
        self.norm = nn.BatchNorm1d(12)
        self.second = nn.Linear(12, outputs)
        self.dropout = dropout
        self.sizes = {True: [], False: []}  # rows of each call, by whether it had a graph

    def forward(self, x):
        self.sizes[torch.is_grad_enabled()].append(len(x))
        drop = self.dropout > 0  # training or not: batch-norm is in evaluation mode
        hidden = F.dropout(torch.tanh(self.norm(self.first(x))), self.dropout, drop)
        return F.dropout(self.second(hidden), self.dropout, drop)


def net(dtype=torch.float64, seed=0, **arguments):
    torch.manual_seed(seed)
    made = Net(**arguments).to(dtype).eval()
    made.norm.running_mean.normal_()
    return made


def data(rows=23, dtype=torch.float64, seed=1):
    torch.manual_seed(seed)
    return torch.randn(rows, 6, dtype=dtype), torch.arange(rows) // 3


def softmax_loss(a, b, *rest):
    """Two towers; weights if there are any."""
    found = F.cross_entropy(a @ b.T, torch.arange(len(a)), reduction="none")
    return (found * rest[0]).sum() if rest else found.mean()


def gradients(*modules):
    found = [p.grad for m in modules for p in m.parameters()]
    for m in modules:
        m.zero_grad()
    return found


def close(got, want, dtype):
    got, want = list(got), list(want)
    assert len(got) == len(want) > 0
    for a, b in zip(got, want):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).norm() <= TOLERANCE[dtype] * max(float(b.norm()), 1e-3)


def in_chunks(model, x, chunk):
    """What the direct step is: the same draws of dropout, with a graph all along."""
    return torch.cat([model(part) for part in x.split(chunk)])


@every_type
@pytest.mark.parametrize("chunk", [1, 5, 23, 64])
def test_a_cached_step_is_the_direct_one(dtype, chunk):
    model, (x, y), plain = net(dtype), data(dtype=dtype), MultiSimilarityLoss(epsilon=0.1)

    def loss(e, y):
        return plain(e, y) * (1 + torch.rand(()))  # draws between the passes

    torch.manual_seed(2)
    want = loss(in_chunks(model, x, chunk), y)
    want.backward()
    drawn, expected = torch.rand(3), gradients(model)
    model.sizes[True].clear()
    torch.manual_seed(2)
    got = cached_step(model, loss, (x, y), chunk=chunk)
    assert not got.requires_grad
    close([got], [want.detach()], dtype)
    close(gradients(model), expected, dtype)
    assert torch.equal(torch.rand(3), drawn), "the generator has moved on by one pass"
    parts = [len(part) for part in x.split(chunk)]
    assert model.sizes == {True: parts, False: parts}


def test_without_dropout_it_is_the_whole_batch_at_once():
    model, (x, y), loss = net(dropout=0.0), data(), ProxyAnchorLoss(8, 4).double()
    want = loss(model(x), y)
    want.backward()
    expected = gradients(model, loss)
    got = fastdml.cached_step(model, loss, (x, y), chunk=7)
    close([got], [want.detach()], torch.float64)
    close(gradients(model, loss), expected, torch.float64)  # the proxies too


@every_type
def test_towers_of_nested_batches(dtype):
    """A mapping, a tuple with names, an array, texts, and what has no rows; one tower twice."""

    Pair = namedtuple("Pair", "left right")

    class Left(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(dtype)

        def forward(self, ids, extra, scale):
            assert set(extra) == {"deep"} and len(extra["deep"][0]) == len(ids)
            return self.net(ids + extra["deep"][0]) * scale

    class Right(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(dtype, seed=3)

        def forward(self, pair, lengths, texts):
            assert isinstance(pair, Pair) and isinstance(lengths, np.ndarray)
            assert [len(t) for t in texts] == lengths.tolist()
            lengths = torch.from_numpy(lengths)[:, None].to(dtype)
            return self.net(pair.left * lengths), self.net(pair.right)

    left, right, shared = Left(), Right(), net(dtype, seed=4)
    x, _ = data(dtype=dtype)
    texts = ["word" * (i % 5) for i in range(len(x))]
    lengths = np.array([len(t) for t in texts])
    weights = torch.rand(len(x), dtype=dtype)
    batch = (
        {"ids": x, "extra": {"deep": [x + 1]}, "scale": 0.5},
        (Pair(x * 2, x * 3), lengths, texts),
        x + 2,
        x + 3,
        weights,
    )

    def loss(a, b, c, d, e, w):
        return softmax_loss(a, b, w) + softmax_loss(b, c) + softmax_loss(d, e)

    def part(start, stop):
        return (
            left(x[start:stop], {"deep": [x[start:stop] + 1]}, 0.5),
            *right(
                Pair(x[start:stop] * 2, x[start:stop] * 3), lengths[start:stop], texts[start:stop]
            ),
            shared(x[start:stop] + 2),
            shared(x[start:stop] + 3),
        )

    for module in (left.net, right.net, shared):
        module.dropout = 0.0
    parts = [part(i, i + 6) for i in range(0, len(x), 6)]
    loss(*map(torch.cat, zip(*parts)), weights).backward()
    expected = gradients(left, right, shared)
    cached_step((left, right, shared, shared), loss, batch, chunk=6)
    close(gradients(left, right, shared), expected, dtype)


def test_inputs_alone():
    x, _ = data()
    loss = lambda e: e.square().sum()  # noqa: E731
    model = net(dropout=0.0)
    loss(model(x)).backward()
    expected = gradients(model)
    for batch in (x, (x,), [x], {"x": x}, ({"x": x},), ((x,),)):
        cached_step(model, loss, batch, chunk=4)
        close(gradients(model), expected, torch.float64)


def test_texts_are_one_argument():
    """A list of them, or a tuple, as which a DataLoader has those of pairs."""

    class Texts(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(256, 4)

        def forward(self, texts):
            return torch.cat([self.bag(torch.tensor([list(t.encode())])) for t in texts])

    model, loss, y = Texts(), MultiSimilarityLoss(), torch.arange(12) // 2
    texts = [f"text {k}" for k in range(12)]
    loss(model(texts), y).backward()
    expected = gradients(model)
    (loaded,) = DataLoader(list(zip(texts, y, strict=True)), batch_size=12)
    assert isinstance(loaded[0], tuple)
    for batch in ((texts, y), [texts, y], ((texts,), y), loaded):
        cached_step(model, loss, batch, chunk=5)
        close(gradients(model), expected, torch.float32)


def test_a_hand_written_loop():
    """Two losses, a backward for each, an auxiliary loss beside them, gradients of inputs."""
    model, (x, y) = net(dropout=0.0), data()
    x.requires_grad_()
    other = torch.randn(4, 6).double()
    one, two = MultiSimilarityLoss(), lambda e: e.square().sum()

    e = model(x)
    (one(e, y) + two(e) + model(other).sum()).backward()
    expected = [*gradients(model), x.grad]
    x.grad = None
    with GradientCache(chunk=5) as cache:
        beside = model(other).sum()
        e = cache.embed(model, x)
        assert e.is_leaf and e.requires_grad
        one(e, y).backward()
        two(e).backward()
        beside.backward()
    close([*gradients(model), x.grad], expected, torch.float64)


def test_inputs_that_have_a_graph():
    """What they are made of gets its gradient once: two towers and a number that is no rows share it."""
    (one, two, stem), (x, y) = (net(seed=s, dropout=0.0) for s in (0, 1, 2)), data()
    stem = nn.Sequential(stem, nn.Linear(4, 6).double())
    beside, loss = x.clone().requires_grad_(), lambda a, b: softmax_loss(a, b) + MultiSimilarityLoss()(a, y)

    def inputs():
        made = stem(x)
        return made, {"x": made + beside, "more": [made.mean()]}

    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = two

        def forward(self, x, more):
            return self.net(x) * more[0]

    a, b = inputs()
    loss(one(a), Tower()(**b)).backward()
    expected = [*gradients(one, two, stem), beside.grad]
    beside.grad = None
    for chunk in (5, 23):
        a, b = inputs()
        cached_step((one, Tower()), loss, (a, b), chunk=chunk)
        assert a.grad_fn is not None and b["more"][0].grad_fn is not None
        close([*gradients(one, two, stem), beside.grad], expected, torch.float64)
        beside.grad = None


def test_a_cache_may_be_used_again():
    model, (x, y), loss = net(), data(), MultiSimilarityLoss()
    cache, found = GradientCache(chunk=5), []
    for _ in range(2):
        torch.manual_seed(0)
        with cache:
            loss(cache.embed(model, x), y).backward()
        found.append(gradients(model))
    close(*found, torch.float64)


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["python", "numpy"])
def test_other_generators_are_replayed(draw):
    """As layer-drop does it."""
    inner, (x, _) = net(dropout=0.0), data()

    def model(x):
        return inner(x) * draw()

    loss = lambda e: (e**3).sum()  # noqa: E731
    for step in ("direct", "cached"):
        random.seed(0), np.random.seed(0)
        if step == "direct":
            loss(in_chunks(model, x, 5)).backward()
            expected = gradients(inner)
        else:
            cached_step(model, loss, x, chunk=5)
            close(gradients(inner), expected, torch.float64)


def test_running_statistics_and_power_iterations_move_once():
    x, _ = data(24)

    def made():
        torch.manual_seed(0)
        linear = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
        return nn.Sequential(linear, nn.BatchNorm1d(6)).double().train()

    loss = lambda e: (e**3).sum()  # noqa: E731
    direct, cached = made(), made()
    loss(in_chunks(direct, x, 8)).backward()
    cached_step(cached, loss, x, chunk=8)
    for (name, a), b in zip(direct.named_buffers(), cached.buffers()):
        assert torch.equal(a, b), name
    close(gradients(cached), gradients(direct), torch.float64)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_inside_the_model(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.net = nn.Linear(6, 6), Net()

        def forward(self, x):
            return checkpoint(self.net, self.enter(x), use_reentrant=reentrant)

    torch.manual_seed(0)
    model, (x, y), loss = Checkpointed().double().eval(), data(), MultiSimilarityLoss()
    torch.manual_seed(2)
    loss(in_chunks(model, x, 5), y).backward()
    expected = gradients(model)
    torch.manual_seed(2)
    cached_step(model, loss, (x, y), chunk=5)
    close(gradients(model), expected, torch.float64)


def test_autocast():
    """bfloat16 embeddings; no backward pass is within autocast."""
    model, (x, y), loss = net(torch.float32, dropout=0.0), data(dtype=torch.float32), MultiSimilarityLoss()
    seen = []
    model.second.register_full_backward_hook(
        lambda *_: seen.append(torch.is_autocast_enabled("cpu"))
    )
    with torch.autocast("cpu", torch.bfloat16):
        want = loss(in_chunks(model, x, 5), y)
    want.backward()
    expected = gradients(model)
    with torch.autocast("cpu", torch.bfloat16):
        got = cached_step(model, loss, (x, y), chunk=5)
    assert torch.equal(got, want.detach()) and not any(seen)
    for a, b in zip(gradients(model), expected, strict=True):
        assert b.norm() > 0 and (a - b).norm() <= 0.02 * b.norm()  # of sums rounded to bfloat16


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_autocast_of_the_forward_pass_alone(kind):
    """As torch recommends: the context is left outside; where it is left within, the passes need not be."""
    model, (x, y), loss = net(torch.float32, dropout=0.0), data(dtype=torch.float32), MultiSimilarityLoss()
    x, kinds = x.to(kind), []
    model.first.register_forward_hook(lambda module, given, found: kinds.append(found.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(in_chunks(model, x, 12), y)
    value.backward()
    expected = gradients(model)
    with GradientCache(chunk=12) as cache:
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(cache.embed(model, x), y)
        cache.backward(value)
    assert kinds == [torch.bfloat16] * 6
    for a, b in zip(gradients(model), expected, strict=True):
        assert b.norm() > 0 and (a - b).norm() <= 0.02 * b.norm()
    cache, off = GradientCache(chunk=12), torch.autocast("cpu", enabled=False)
    with torch.autocast("cpu", torch.bfloat16), cache, off:
        loss(cache.embed(model, x.float()), y).backward()
    assert kinds[6:] == [torch.float32] * 4


def test_grad_scaler():
    model, (x, y), loss = net(dropout=0.0), data(), ProxyAnchorLoss(8, 4).double()
    loss(model(x), y).backward()
    expected = gradients(model, loss)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], 0.1)
    cached_step(model, loss, (x, y), chunk=5, scaler=scaler)
    assert model.first.weight.grad.norm() > 1000 * expected[0].norm()
    scaler.unscale_(optimizer)
    close(gradients(model, loss), expected, torch.float64)


def test_locked_and_unused_towers():
    one, two, (x, _) = net(dropout=0.0), net(seed=2, dropout=0.0), data()
    softmax_loss(one(x), two(x)).backward()
    expected = gradients(one)
    gradients(two)
    two.requires_grad_(False)
    for n in (one, two):
        n.sizes = {True: [], False: []}
    cached_step((one, two), softmax_loss, (x, x), chunk=5)
    close(gradients(one), expected, torch.float64)
    assert two.sizes == {True: [], False: [5, 5, 5, 5, 3]}
    # A tower that the loss does not use has no gradient, as without caching.
    two.requires_grad_(True)
    cached_step((one, two), lambda a, b: (a**2).sum(), (x, x), chunk=5)
    assert all(g is None for g in gradients(two)) and one.first.weight.grad is not None


def test_progress():
    told = []
    model, (x, y) = net(), data()
    cached_step(model, MultiSimilarityLoss(), (x, y), chunk=10, progress=lambda *a: told.append(a))
    assert told == [(w, i, 3) for w in ("embed", "gradient") for i in (1, 2, 3)]


def test_an_error_inside_runs_no_second_pass():
    model, (x, _) = net(), data()
    cache = GradientCache(chunk=5)
    with pytest.raises(KeyError), cache:
        cache.embed(model, x).sum().backward()
        raise KeyError
    assert all(g is None for g in gradients(model))
    with cache:  # and may be entered again
        cache.embed(model, x).sum().backward()


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda m, x: cached_step(m, sum, x, chunk=0), "chunk: expected an integer of at least 1, got 0"),
        (lambda m, x: cached_step(m, sum, x, chunk=2.0), "chunk: expected an integer"),
        (lambda m, x: cached_step((m, m), sum, x, chunk=2), "batch: .* inputs of 2 towers, got Tensor"),
        (lambda m, x: cached_step((m, m), sum, (x,), chunk=2), "batch: .* 2 towers, got a tuple of 1"),
        (lambda m, x: cached_step(m, sum, 3, chunk=2), "batch: expected tensors whose first"),
        (
            lambda m, x: cached_step(m, sum, ((x, x[:3]),), chunk=2),
            r"batch: expected the same number of rows everywhere, got 23 in .*\[0\] and 3 in .*\[1\]",
        ),
        (lambda m, x: cached_step(lambda x: x.sum(), sum, x, chunk=2), "model: expected embeddings of 2"),
        (lambda m, x: cached_step(lambda x: {"e": x}, sum, x, chunk=2), "model: .* got dict"),
        (lambda m, x: cached_step(lambda x: x.long(), sum, x, chunk=2), r"model: .* got torch.int64"),
        (lambda m, x: cached_step(m, lambda e: e, x, chunk=9), r"loss: .* one number, got \(23, 4\)"),
        (lambda m, x: cached_step(m, lambda e: 1.0, x, chunk=9), r"loss: .* one number, got float"),
        (lambda m, x: GradientCache(chunk=1).embed(m, x), "GradientCache.embed: .* within the context"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(net(), data()[0])


def test_an_optimizer_in_the_backward_pass_is_named():
    """One chunk, or one of each of two towers, is one step; more would step between."""
    (x, _), towers = data(), [net(seed=k) for k in range(2)]
    steps = []
    for tower in towers:
        tower.second.weight.register_post_accumulate_grad_hook(steps.append)
    cached_step(towers, softmax_loss, (x, x), chunk=23)
    assert len(steps) == 2
    for model, inputs, chunk in ((towers[0], (x, x), 5), (towers[:1] * 2, (x, x), 23)):
        with pytest.raises(ValueError, match="model: expected parameters without hooks"):
            cached_step(model, softmax_loss, inputs, chunk=chunk)
    towers[0].second.weight.requires_grad_(False)  # whose hook never runs
    cached_step((towers[0], nn.Linear(6, 4).double()), softmax_loss, (x, x), chunk=5)
    assert len(steps) == 2


def test_a_forgotten_backward_is_named():
    with pytest.raises(ValueError, match=r"GradientCache: expected backward\(\)"), GradientCache(
        chunk=5
    ) as cache:
        cache.embed(net(), data()[0]).sum()
    cache = GradientCache(chunk=5)
    with cache, pytest.raises(ValueError, match="one context at a time"), cache:
        pass


# Several processes.

COUNTS = ((9, 9), (13, 3), (0, 5))  # also unequal numbers of chunks, and a rank without rows


def ddp_rank(rank: int, folder: str) -> None:
    from torch import distributed as dist

    torch.set_num_threads(1)
    # Ranks that synchronise a different number of times would wait for each other.
    dist.init_process_group(
        "gloo", f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        torch.save([ddp_step(rank, counts) for counts in COUNTS], f"{folder}/{rank}.pt")
        dist.barrier()  # no rank leaves while another one still sends
    finally:
        dist.destroy_process_group()


def ddp_step(rank: int, counts: tuple[int, int]):
    """Gradients, and how many numbers were sent for them."""
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
    from torch.nn.parallel import DistributedDataParallel

    models, sent = [], []

    def hook(state, bucket):
        sent.append(bucket.buffer().numel())
        return default_hooks.allreduce_hook(state, bucket)

    for seed in (0, 1):
        models.append(DistributedDataParallel(net(seed=seed, dropout=0.0)))
        models[-1].register_comm_hook(None, hook)
    x, _ = data(sum(counts))
    own = slice(0, counts[0]) if rank == 0 else slice(counts[0], None)
    one, two = models
    # The first model twice, the second once: one synchronisation of each.
    batch = x[own], x[own], x[own] + 1
    cached_step((one, two, one), lambda a, b, c: ((a * b) ** 2 * c).sum(), batch, chunk=4)
    return gradients(*models), sum(sent)


def test_ddp_synchronises_once(tmp_path):
    torch.multiprocessing.spawn(ddp_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case, counts in enumerate(COUNTS):
        one, two = net(seed=0, dropout=0.0), net(seed=1, dropout=0.0)
        x, _ = data(sum(counts))
        (((one(x) * two(x)) ** 2 * one(x + 1)).sum() / 2).backward()  # DDP averages
        expected = gradients(one, two)
        for rank in ranks:
            got, sent = rank[case]
            close(got, expected, torch.float64)
            assert sent == sum(g.numel() for g in expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_dropout_is_replayed():
    model, (x, y), loss = net().cuda(), data(), MultiSimilarityLoss()
    x, y = x.cuda(), y.cuda()
    torch.manual_seed(2)
    loss(in_chunks(model, x, 5), y).backward()
    expected = gradients(model)
    torch.manual_seed(2)
    cached_step(model, loss, (x, y), chunk=5)
    close(gradients(model), expected, torch.float64)


class Rebinding(nn.Module):
    """Running statistics that are bound anew, not written in place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("first", None)

    def forward(self, x):
        hidden = self.layer(x)
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * hidden.detach().mean(0)
            self.first = hidden.detach()[0] if self.first is None else self.first
        return torch.tanh(hidden - self.mean + self.first)


def test_buffers_that_are_bound_anew():
    torch.manual_seed(0)
    model = Rebinding().double()
    plain = copy.deepcopy(model)
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.arange(8) // 2
    cached_step(model, MultiSimilarityLoss(), (x, y), chunk=4)
    MultiSimilarityLoss()(torch.cat([plain(x[:4]), plain(x[4:])]), y).backward()
    assert torch.equal(model.mean, plain.mean) and torch.equal(model.first, plain.first)
    torch.testing.assert_close(model.layer.weight.grad, plain.layer.weight.grad, rtol=1e-12, atol=1e-14)
