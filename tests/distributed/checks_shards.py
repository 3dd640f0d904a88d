"""Proxies of which every rank has some against one process with all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.distributed as dist
from checks_losses import close, own, shards
from conftest import CASES

from fastdml import losses
from fastdml.distributed import shard
from fastdml.reducers import ClassWeightedReducer, SumReducer, ThresholdReducer
from fastdml.regularizers import (
    LpRegularizer,
    RegularFaceRegularizer,
    SparseCentersRegularizer,
    ZeroMeanRegularizer,
)

CLASSES, DIM = 11, 19
MADE: dict[str, Callable[[int], losses.ArcFaceLoss]] = {
    "arc face": lambda n: losses.ArcFaceLoss(n, DIM, scale=20),
    "cos face": lambda n: losses.CosFaceLoss(n, DIM, scale=20, reduction="sum"),
    "sphere face": lambda n: losses.SphereFaceLoss(n, DIM),
    "normalised softmax": lambda n: losses.NormalizedSoftmaxLoss(
        n, DIM, weight_regularizer=lambda w: w.square().sum(), embedding_regularizer=lambda x: x.abs().mean()
    ),
    "a mean of weights": lambda n: losses.CosFaceLoss(
        n, DIM, weight_regularizer=LpRegularizer(power=2), weight_reg_weight=3
    ),
    "a sum of weights": lambda n: losses.MultiProxyAnchorLoss(
        n, DIM, proxies_per_class=2, weight_regularizer=ZeroMeanRegularizer(reducer=SumReducer())
    ),
    "proxy nca": lambda n: losses.ProxyNCALoss(n, DIM, positive_in_denominator=False, smoothing=0.1),
    "cross-entropy": lambda n: losses.SmoothedCrossEntropyLoss(n, DIM),
    "losses of rows": lambda n: losses.ArcFaceLoss(n, DIM, reduction="none"),
    "proxy anchor": lambda n: losses.ProxyAnchorLoss(n, DIM),
    "several proxies": lambda n: losses.MultiProxyAnchorLoss(n, DIM, proxies_per_class=3),
}  # fmt: skip


# Penalties of proxies with each other, of those that are long enough, of so many and no others.
OF_ALL = RegularFaceRegularizer()
SOME = LpRegularizer(reducer=ThresholdReducer(low=1))
CLASSES_ALONE = SparseCentersRegularizer(3, 2)


def _state(alone: torch.nn.Module) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(4)
    return {
        k: torch.randn(v.shape, generator=g, dtype=torch.float64) for k, v in alone.state_dict().items()
    }


def check_loss(name: str, sample: float = 1.0) -> None:
    case, size = CASES["ragged"](), dist.get_world_size()
    labels = case.y.unique(return_inverse=True)[1] * 3 % CLASSES
    alone = MADE[name](CLASSES).double()
    alone.load_state_dict(_state(alone))
    loss = shard(MADE[name], CLASSES, sample=sample).double()
    loss.load_full_state_dict({f"loss.{k}": v for k, v in _state(alone).items()} | {"step": loss.step})
    counts = shards(len(case.x), size, False)
    leaf, x = case.x.clone().requires_grad_(), own(case.x, counts).clone().requires_grad_()
    weight = torch.arange(1.0, len(leaf) + 1).double()
    result = loss(x, own(labels, counts))
    if sample < 1:
        _check_sampled(loss, alone, leaf, labels, result)
        return
    value = alone(leaf, labels)
    close(result, own(value, counts) if value.dim() else value, "value")
    (value * weight if value.dim() else value).sum().backward()
    (result * own(weight, counts) if value.dim() else result).sum().backward()
    close(x.grad, own(leaf.grad, counts) * size, "embeddings")
    for key, p in alone.named_parameters():
        dim = loss._dimension(f"loss.{key}")
        each = p.shape[dim] // CLASSES
        mine = p.grad.narrow(dim, loss.classes.start * each, len(loss.classes) * each)
        close(dict(loss.loss.named_parameters())[key].grad, mine, key)
    for key, x in loss.full_state_dict().items():
        if key != "step":
            assert torch.equal(x, _state(alone)[key.removeprefix("loss.")]), key


def _check_sampled(loss, alone, leaf, labels, result) -> None:
    """Of the classes that were drawn, which are the same on any number of ranks."""
    every = torch.arange(CLASSES)
    loss.step -= 1
    kept = loss._drawn(every, labels)
    assert (kept.tolist(), int(loss.step)) == (SAMPLED, 0)
    assert set(labels.tolist()) < set(SAMPLED)
    place = torch.full((CLASSES,), -1)
    place[kept] = torch.arange(len(kept))
    from fastdml import functional

    value = functional.arc_face(leaf, place[labels], alone.W.t()[kept], scale=20)
    close(result, value, "value")


# Of 11 classes of which all but 2, 5, 8 and 10 have samples; seed 0, step 0, a share of 0.2.
SAMPLED = [0, 1, 2, 3, 4, 6, 7, 9]


def resumes() -> None:
    """A checkpoint of all proxies goes on bit for bit, the draws of classes too; on fewer ranks with the same
    proxies and draws, and partial sums in another order."""
    case, size = CASES["ragged"](), dist.get_world_size()
    labels = case.y.unique(return_inverse=True)[1] * 3 % CLASSES

    def made(group: object = None) -> torch.nn.Module:
        torch.manual_seed(6)
        return shard(MADE["cos face"], CLASSES, group, sample=0.3, seed=5).double()

    def steps(loss: torch.nn.Module, count: int) -> list[float]:
        counts = shards(len(case.x), loss.ranks.size, False)
        x, y = (t.split(counts)[loss.ranks.rank] for t in (case.x, labels))
        optimizer = torch.optim.SGD(loss.parameters(), 0.1)
        found = []
        for _ in range(count):
            optimizer.zero_grad()
            value = loss(x.clone().requires_grad_(), y)
            value.backward()
            optimizer.step()
            found.append(value.item())
        return found

    def resumed(state: dict[str, torch.Tensor], group: object = None) -> torch.nn.Module:
        loss = made(group)
        loss.load_full_state_dict(state)
        for key, x in loss.full_state_dict().items():
            assert torch.equal(x, state[key]), key
        return loss

    first, second = made(), made()
    whole, before = steps(first, 4), steps(second, 2)
    state = {k: v.clone() for k, v in second.full_state_dict().items()}
    third = resumed(state)
    assert before + steps(third, 2) == whole
    last = first.full_state_dict()
    for key, x in third.full_state_dict().items():
        assert torch.equal(x, last[key]), key
    fewer = list(range(max(1, size - 1)))
    group = dist.new_group(fewer)
    if dist.get_rank() in fewer:
        other = resumed(state, group)
        close(*(torch.tensor(v, dtype=torch.float64) for v in (steps(other, 2), whole[2:])), "losses")
        for key, x in other.full_state_dict().items():
            close(x, last[key], key)


def refused() -> None:
    for make, words in (
        (lambda n: losses.SubCenterArcFaceLoss(n, DIM), "several proxies of a class"),
        (lambda n: losses.SoftTripleLoss(n, DIM), "soft_triple"),
        (lambda n: losses.LargeMarginSoftmaxLoss(n, DIM), "the proxy of every row"),  # with no gradient too
        (lambda n: losses.ArcFaceLoss(n + 1, DIM), "expected a loss over"),
        (lambda n: losses.ArcFaceLoss(n, DIM, reducer=ClassWeightedReducer(torch.ones(n))), "a reduction"),
        (lambda n: losses.ArcFaceLoss(n, DIM, weight_regularizer=OF_ALL), "a sum or a mean"),
        (lambda n: losses.ArcFaceLoss(n, DIM, weight_regularizer=SOME), "a sum or a mean"),
        (lambda n: losses.ArcFaceLoss(n, DIM, weight_regularizer=lambda w: w.norm()), "a sum or a mean"),
        (lambda n: losses.ArcFaceLoss(n, DIM, weight_regularizer=CLASSES_ALONE), "a sum or a mean"),
    ):
        try:
            shard(make, CLASSES)
        except ValueError as error:
            assert words in str(error), error
        else:
            raise AssertionError(words)


def CHECKS(size: int) -> dict[str, Callable[[], None]]:
    found = {name: functools.partial(check_loss, name) for name in MADE}
    found["a share of the classes"] = functools.partial(check_loss, "arc face", 0.2)
    found["resumes"] = resumes
    found["what cannot be shared out"] = refused
    return found
