"""Candidates chosen inside the row, for specifications and miners: csrc/rows/mining.h in torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..engine import check
from .philox import philox

# How one of a row's positives and one of its negatives are chosen.
STRATEGIES = {"all": 0, "hard": 1, "easy": 2, "semihard": 3, "nearest": 4}


def check_strategies(positive: str, negative: str, names: tuple[str, str]) -> None:
    known = list(STRATEGIES)
    for name, found, allowed in zip(names, (positive, negative), (known[:4], known), strict=True):
        check.one_of(found, name, allowed)
    if (positive, negative) == ("semihard", "nearest"):
        raise ValueError(
            f"{names[0]}: expected another strategy against nearest negatives, got {positive!r}"
        )
    if "semihard" in (positive, negative) and (
        positive == negative or "all" in (positive, negative)
    ):
        raise ValueError(
            f"{names[1]}: expected 'semihard' on one side, against 'hard' or 'easy' on the other, got "
            f"{names[0]} {positive!r} and {names[1]} {negative!r}"
        )


def choose(key: Tensor, eligible: Tensor) -> tuple[Tensor, Tensor]:
    """([R] first column whose key is the largest to rounding, [R] whether any is eligible).

    key, eligible: [R, N].
    """
    low = torch.finfo(key.dtype).min
    key = key.detach().masked_fill(~eligible, low)
    best = key.amax(1, keepdim=True)
    return (eligible & (key >= best - tie(best))).to(torch.uint8).argmax(1), eligible.any(1)


def chosen(
    near: Tensor, positive: Tensor, negative: Tensor, positives: str, negatives: str
) -> tuple[Tensor, Tensor]:
    """The masks of the pairs that two strategies of `STRATEGIES` other than "nearest" leave of a row.

    near: [R, N], larger where nearer. positive, negative: bool [R, N]. A semi-hard one is chosen after
    the other side's. Where one of each is chosen, a row that lacks either has none.
    """

    def one(mask: Tensor, key: Tensor) -> Tensor:
        column, found = choose(key, mask)
        return torch.zeros_like(mask).scatter(1, column[:, None], found[:, None])

    def value(mask: Tensor, missing: float) -> Tensor:
        return torch.where(mask, near, missing).amax(1, keepdim=True)

    near = near.detach()
    keys = {"hard": near, "easy": -near}  # of negatives; of positives the other way about
    if positives in keys:
        positive = one(positive, -keys[positives])
    if negatives in keys:
        negative = one(negative, keys[negatives])
    if negatives == "semihard":
        limit = value(positive, -torch.inf)
        negative = one(negative & (near < limit - tie(limit)), near)
    elif positives == "semihard":
        limit = value(negative, -torch.inf)
        positive = one(
            positive & (near > limit + tie(limit)) & negative.any(1, keepdim=True), -near
        )
    if "all" not in (positives, negatives):
        both = positive.any(1, keepdim=True) & negative.any(1, keepdim=True)
        positive, negative = positive & both, negative & both
    return positive, negative


def nearest(key: Tensor, eligible: Tensor, k: int) -> Tensor:
    """bool [R, N]: the k eligible candidates of the largest key, and those at the k-th's key to rounding.

    key, eligible: [R, N]. Rows with fewer keep all.
    """
    key = key.detach().masked_fill(~eligible, -torch.inf)
    kth = key.topk(min(k, key.shape[1]), dim=1).values[:, -1:]
    least = torch.where(kth.isneginf(), kth, kth - tie(kth))
    return eligible & (key >= least)


def tie(x: Tensor) -> Tensor:
    """How far from x a number must be to differ from it by more than rounding."""
    return 8 * torch.finfo(x.dtype).eps * x.detach().abs().clamp(min=1)


def poison(s: Tensor) -> Tensor:
    """[R] 0, or NaN where a row of s [R, N] holds one: a choice must not pass over it."""
    return (s.detach() * 0).sum(1)


def pick(s: Tensor, columns: Tensor) -> Tensor:
    """[R] values of s [R, N] at one column of each row."""
    return s.gather(1, columns[:, None])[:, 0]


# The least distance whose density is looked at: that of 0 is infinite.
LEAST = 1e-30


def distance_log_weight(d: Tensor, dimension: int, nearest: float) -> Tensor:
    """Log of the inverse density of distances d on the unit sphere: SPEC 2.14."""
    d = d.clamp(min=max(nearest, LEAST))
    bend = (3 - dimension) / 2
    return (2 - dimension) * d.log() + bend * (1 - d * d / 4).clamp(min=1e-8).log()


# Columns of a row fall into at most so many runs of a multiple of 16 columns: a draw chooses a run, then a
# column of it.
_RUNS = 256


def draw(log_weight: Tensor, eligible: Tensor, draws: int, stream: Tensor) -> tuple[Tensor, Tensor]:
    """([R, draws] columns drawn by weight with replacement, [R] whether any is eligible).

    log_weight, eligible: [R, N]. stream: [R, 3] a row's number and the two numbers of its stream.
    """
    rows, seed, step = stream.round().to(torch.int64)[:, :, None].unbind(1)
    number = torch.arange(draws, device=log_weight.device)
    zero = torch.zeros_like(number)
    # The last word keeps these apart from other draws with the same seed.
    words = philox((number, rows, zero, zero + 3), (seed, step))
    which_run, which = ((w.double() + 0.5) * 2.0**-32 for w in words[:2])
    length = 16 * (1 + max(0, log_weight.shape[1] - 1) // (16 * _RUNS))
    top = log_weight.masked_fill(~eligible, -torch.inf).amax(1, keepdim=True)
    weight = torch.where(eligible, (log_weight - top).exp(), 0.0).double()
    runs = pad(weight, (0, -weight.shape[1] % length)).unflatten(1, (-1, length))
    run = _fallen(runs.sum(2)[:, None], which_run)
    inside = runs.gather(1, run[..., None].expand(-1, -1, length))
    return run * length + _fallen(inside, which), eligible.any(1)


def _fallen(weight: Tensor, share: Tensor) -> Tensor:
    """[R, draws] where shares [R, draws] of the sum fall among weights [R, draws or 1, N]."""
    upto = weight.cumsum(2)
    # A share that rounds to all is the last one's that has a weight.
    return (upto <= share[..., None] * upto[..., -1:]).sum(2).minimum((upto < upto[..., -1:]).sum(2))
