"""Whole steps over ranks: networks under DDP and FSDP, gradient caching, memories, what is sent."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from checks_losses import close, own, shards
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastdml
from fastdml import losses
from fastdml.distributed import cost, ranks, wrap
from fastdml.distributed.ranks import Ranks
from fastdml.distributed.ring import Ring, rounds
from fastdml.large_batch import GradientCache
from fastdml.wrappers import CrossBatchMemory

ROWS, DIM = 26, 8


def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(ROWS, 12, generator=g, dtype=torch.float64), torch.arange(ROWS) % 7


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, DIM)).double()


LOSSES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "SupCon": ("ring", losses.SupConLoss),
    "SmoothAP": ("gather", losses.SmoothAPLoss),
    "contrastive": ("ring", losses.ContrastiveLoss),
    "ProxyAnchor": ("gather", lambda: losses.ProxyAnchorLoss(7, DIM)),
}


def _loss(name: str) -> nn.Module:
    torch.manual_seed(3)
    return LOSSES[name][1]().double()


def step(name: str, way: str) -> None:
    """The gradient of a network that every rank has, as one process with the whole batch finds it."""
    x, y = batch()
    plain, loss = network(), _loss(name)
    value = loss(plain(x), y)
    value.backward()
    counts = shards(ROWS, dist.get_world_size(), False)
    mine, labels = own(x, counts), own(y, counts)
    shared = network()
    if way == "fsdp":
        from torch.distributed.fsdp import fully_shard

        fully_shard(shared)
    else:
        shared = DistributedDataParallel(shared)
    ours = _loss(name)
    together = wrap(ours, schedule=LOSSES[name][0])
    if way == "cached":
        result = fastdml.cached_step(shared, together, (mine, labels), chunk=5)
    elif way == "by hand":
        with GradientCache(chunk=4) as cache:
            result = together(cache.embed(shared, mine), labels)
            result.backward()
    else:
        result = together(shared(mine), labels)
        result.backward()
    close(result, value, "value")
    for p, (key, q) in zip(plain.parameters(), shared.named_parameters(), strict=True):
        g = q.grad
        close(g.full_tensor() if hasattr(g, "full_tensor") else g, p.grad, key)
    for (key, p), q in zip(loss.named_parameters(), ours.parameters(), strict=True):
        close(q.grad, p.grad, key)


def towers() -> None:
    """Two networks and a learnt scale; columns travel; in chunks."""
    x, _ = batch()
    queries, answers, loss = network(), network(), losses.CLIPLoss().double()
    value = loss(queries(x), answers(x.flip(1)))
    value.backward()
    counts = shards(ROWS, dist.get_world_size(), False)
    mine = own(x, counts)
    for schedule in ("gather", "ring"):
        a, b = (DistributedDataParallel(network()) for _ in range(2))
        ours = losses.CLIPLoss().double()
        together = wrap(ours, schedule=schedule)
        result = fastdml.cached_step((a, b), together, (mine, mine.flip(1)), chunk=3)
        close(result, value, "value")
        for one, other in ((queries, a), (answers, b), (loss, ours)):
            for p, q in zip(one.parameters(), other.parameters(), strict=True):
                close(q.grad, p.grad, schedule)


def memory_of_each() -> None:
    """Every rank keeps its own batches, and rows see the memories of all."""
    x, y = batch()
    x = x[:, :DIM].contiguous()
    size = dist.get_world_size()
    counts = shards(ROWS, size, False)
    starts = [sum(counts[:r]) for r in range(size)]
    memory = CrossBatchMemory(wrap(losses.ContrastiveLoss(), gradient="sum"), DIM, 2 * max(counts)).double()
    stored: list[list[Tensor]] = [[] for _ in range(size)]
    for k in range(3):
        rows = x.roll(5 * k, 0).clone().requires_grad_()
        labels = y.roll(5 * k)
        for r, (s, c) in enumerate(zip(starts, counts, strict=True)):
            stored[r].append(torch.arange(s, s + c) - 5 * k)
        # Each rank's queue: the latest that fit, wherever they stand in it.
        kept = [torch.cat(s)[-2 * max(counts) :] % ROWS for s in stored]
        every = torch.cat(kept)
        place = []
        for r, c in enumerate(counts):
            end = sum(len(p) for p in kept[: r + 1])
            place.append(torch.arange(end - c, end))
        value = losses.ContrastiveLoss()(rows, labels, None, x[every], y[every], own=torch.cat(place))
        (d,) = torch.autograd.grad(value, rows)
        mine = own(rows.detach(), counts).clone().requires_grad_()
        result = memory(mine, own(labels, counts))
        (found,) = torch.autograd.grad(result, mine)
        close(result, value, "value")
        close(found, own(d, counts), "gradient")


def memories_resume() -> None:
    """That of all from any rank's state, on any number of ranks: the same memory, and its loss; that of each
    rank's batches bit for bit on as many ranks."""
    x, y = batch()
    x, size = x[:, :DIM].contiguous(), dist.get_world_size()

    def step(memory: nn.Module, ranks: Ranks, k: int) -> tuple[Tensor, Tensor]:
        counts = shards(ROWS, ranks.size, False)
        mine = x.roll(5 * k, 0).split(counts)[ranks.rank].clone().requires_grad_()
        value = memory(mine, y.roll(5 * k).split(counts)[ranks.rank])
        return value.detach(), torch.autograd.grad(value, mine)[0]

    def of_all(group: Any = None) -> nn.Module:
        return wrap(CrossBatchMemory(losses.SupConLoss(), DIM, 40).double(), group)

    def of_each() -> nn.Module:
        return CrossBatchMemory(wrap(losses.SupConLoss()), DIM, 2 * ROWS).double()

    for made in (of_all, of_each):
        memory = made()
        for k in range(2):
            step(memory, Ranks(), k)
        state = {k: v.clone() for k, v in memory.state_dict().items()}
        true, last = step(memory, Ranks(), 2), memory.state_dict()
        again = made()
        again.load_state_dict(state)
        for found, t in zip(step(again, Ranks(), 2), true, strict=True):
            assert torch.equal(found, t)
        for key, found in again.state_dict().items():
            assert torch.equal(found, last[key]), key
        if made is of_all:
            fewer, kept = list(range(size - 1)), (state, true, last)
    group = dist.new_group(fewer)
    if dist.get_rank() in fewer:
        state, true, last = kept
        memory = of_all(group)
        memory.load_state_dict(state)
        close(step(memory, Ranks(group), 2)[0], true[0], "value")
        for key, found in memory.state_dict().items():
            assert torch.equal(found, last[key]), key


def some_ranks() -> None:
    """A group of the first and the last rank, whose numbers in it are not those among all."""
    size = dist.get_world_size()
    members = [0, size - 1]
    group = dist.new_group(members)
    if dist.get_rank() not in members:
        return
    x, y = batch()
    x = x[:, :DIM].contiguous()
    rows = slice(0, 10) if dist.get_rank() == 0 else slice(10, ROWS)
    leaf = x.clone().requires_grad_()
    value = losses.SupConLoss()(leaf, y)
    (d,) = torch.autograd.grad(value, leaf)
    for schedule in ("gather", "ring"):
        mine = x[rows].clone().requires_grad_()
        together = copy.deepcopy(wrap(losses.SupConLoss(), group, schedule))  # as a model's average is
        result = together(mine, y[rows])
        (found,) = torch.autograd.grad(result, mine)
        close(result, value, schedule)
        close(found, d[rows] * 2, schedule)


def half_precision() -> None:
    """Embeddings in bfloat16: derivatives are added up in single precision, and come in their type."""
    x, y = batch()
    x = x[:, :DIM].bfloat16()
    counts = shards(ROWS, dist.get_world_size(), False)
    leaf = x.clone().requires_grad_()
    value = losses.MultiSimilarityLoss()(leaf, y)
    (d,) = torch.autograd.grad(value * 1024, leaf)
    for schedule in ("gather", "ring"):
        mine = own(x, counts).clone().requires_grad_()
        result = wrap(losses.MultiSimilarityLoss(), None, schedule, "sum")(mine, own(y, counts))
        (found,) = torch.autograd.grad(result * 1024, mine)
        assert found.dtype == torch.bfloat16 and result.dtype == torch.float32
        close(result, value, schedule, 1e-5)
        close(found, own(d, counts), schedule, 0.02)


def in_autocast_and_compiled() -> None:
    """A compiled step has the loss of all ranks in it; autocast's types are the loss's."""
    x, y = batch()
    counts = shards(ROWS, dist.get_world_size(), False)
    mine, labels = own(x, counts), own(y, counts)
    loss, net = wrap(losses.SupConLoss()), network()

    def forward(inputs: Tensor) -> Tensor:
        return loss(net(inputs), labels) * 2

    true = losses.SupConLoss()(net(x), y) * 2
    close(torch.compile(forward, backend="eager")(mine), true, "compiled")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(forward(mine), losses.SupConLoss()(net(x), y) * 2, "autocast", 1e-3)


class Counted:
    """torch.distributed as `ranks` uses it, counting the bytes that this rank sends."""

    def __init__(self) -> None:
        self.sent = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(dist, name)

    def all_gather_single(self, out: Tensor, x: Tensor, group: Any = None) -> None:
        self.sent += (Ranks(group).size - 1) * x.numel() * x.element_size()
        ranks._named("all_gather_single", "all_gather_into_tensor", dist)(out, x, group=group)

    def reduce_scatter_single(self, out: Tensor, x: Tensor, group: Any = None) -> None:
        self.sent += (Ranks(group).size - 1) * out.numel() * out.element_size()
        ranks._named("reduce_scatter_single", "reduce_scatter_tensor", dist)(out, x, group=group)

    def all_reduce(self, x: Tensor, op: Any, group: Any = None) -> None:
        size = Ranks(group).size
        self.sent += 2 * (size - 1) * x.numel() * x.element_size() // size
        dist.all_reduce(x, op, group=group)

    def batch_isend_irecv(self, operations: list[Any]) -> Any:
        self.sent += sum(
            o.tensor.numel() * o.tensor.element_size() for o in operations if o.op is dist.isend
        )
        return dist.batch_isend_irecv(operations)


def what_is_sent() -> None:
    """Bytes are those of the formulas: of one set, of two, with columns that are swept first, with a value
    made of all rows, of rows that need no others."""
    size, rows = dist.get_world_size(), 10
    every = "embeddings stay where they are"
    for loss, schedule in (
        (losses.SmoothAPLoss(), "gather"),
        (losses.InfoNCELoss(), "gather"),
        (losses.CLIPLoss(), "gather"),
        (losses.CircleLoss(form="global"), "gather"),
        (losses.TripletMarginLoss(), "gather"),
        (losses.SupConLoss(reduction="mean"), "ring"),
        (losses.BinomialDevianceLoss(), "ring"),
        (losses.SigLIPLoss(), "ring"),
        (losses.CLIPLoss(), "ring"),
        (losses.ArcFaceLoss(10, DIM), every),
        (losses.MarginMSELoss(), every),
    ):
        counted = Counted()
        x, paired = torch.randn(rows, DIM, requires_grad=True), loss.paired
        further: tuple[Tensor, ...] = (torch.arange(rows),)
        told = 8 * rows
        if paired:
            further, told = (x.detach().clone().requires_grad_(),), 0
        elif isinstance(loss, losses.MarginMSELoss):
            further, told = (torch.randn(rows, 3, DIM), torch.randn(rows, 3)), 0
        ranks.dist = counted  # type: ignore[assignment]
        try:
            way = "gather" if schedule == every else schedule
            value = wrap(loss, schedule=way, gradient="sum")(x, *further)
            forward = counted.sent
            value.backward()
        finally:
            ranks.dist = dist
        sizes = cost.Sizes(size, rows, DIM, labelled=int(told > 0))
        if schedule == every:
            number = 8 if isinstance(loss, losses.ArcFaceLoss) else 4
            true = cost.Sent(cost.told(sizes) + 2 * (size - 1) * number // size, 0)
        elif schedule == "ring":
            true = cost.ring(sizes, loss.description())
        else:
            true = cost.gathered(sizes, loss.description())
        found = cost.Sent(forward, counted.sent - forward)
        assert found == true, f"{type(loss).__name__} {schedule}: {found} {true}"


def blocks_are_under_way() -> None:
    """The next block's receive is posted before the present block is worked on, and awaited afterwards; so
    are, one step later, the derivatives that others have made of it."""
    size, events = dist.get_world_size(), []
    posted, awaited, block = Ranks.pass_on, Ranks.wait, Ring._block

    def post(self: Ranks, blocks: Any, rooms: Any, tag: int = 0) -> list[Any]:
        works = posted(self, blocks, rooms, tag)
        kinds[id(works)] = ("derivatives" if tag % 2 else "columns", tag // 2)
        events.append(("post", *kinds[id(works)]))
        kept.append(works)
        return works

    def wait(self: Ranks, works: Any) -> None:
        if works:
            events.append(("wait", *kinds[id(works)]))
        awaited(self, works)

    def work(self: Ring, problem: Any, held: Any, source: int) -> Any:
        events.append(("work", "", (dist.get_rank() - source) % size))
        return block(self, problem, held, source)

    x, y = batch()
    mine, labels = own(x[:, :DIM], shards(ROWS, size, True)), own(y, shards(ROWS, size, True))
    for loss in (losses.ContrastiveLoss(), losses.SupConLoss()):
        sweeps = rounds(loss.description()) - 1
        kinds: dict[int, tuple[str, int]] = {}
        kept: list[Any] = []
        events.clear()
        Ranks.pass_on, Ranks.wait, Ring._block = post, wait, work  # type: ignore[method-assign]
        try:
            wrap(loss, schedule="ring")(mine.clone().requires_grad_(), labels).backward()
        finally:
            Ranks.pass_on, Ranks.wait, Ring._block = posted, awaited, block  # type: ignore[method-assign]
        first = [k for k, e in enumerate(events) if e == ("post", "columns", 0)]
        passes = [events[a:b] for a, b in zip(first, [*first[1:], None], strict=True)]
        assert len(passes) == sweeps + 1, events
        for k, found in enumerate(passes):
            at = {event: place for place, event in enumerate(found)}
            for step in range(size):
                here = at["work", "", step]
                if step < size - 1:
                    assert at["post", "columns", step] < here < at["wait", "columns", step], found
                if step > 0 and k == sweeps:
                    before = step - 1
                    assert at["post", "derivatives", before] < here < at["wait", "derivatives", before], found


def CHECKS(size: int) -> dict[str, Callable[[], None]]:
    found: dict[str, Callable[[], None]] = {}
    for name in LOSSES:
        for way in ("direct", "cached", "by hand"):
            found[f"{name} {way}"] = functools.partial(step, name, way)
    found["fsdp"] = functools.partial(step, "ProxyAnchor", "fsdp")
    found["towers"] = towers
    found["a memory of each"] = memory_of_each
    found["what is sent"] = what_is_sent
    found["half precision"] = half_precision
    found["autocast and compiled"] = in_autocast_and_compiled
    if size == 3:
        found["some ranks"] = some_ranks
        found["memories resume"] = memories_resume
        found["blocks are under way"] = blocks_are_under_way
    return found
