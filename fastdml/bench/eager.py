"""Losses as one writes them in plain torch: the opponents without the library.

`spec_loss` differentiates a loss's own specification on the whole matrix. The functions of HAND are
written for speed of the plain operations, as a careful user would.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.loss import RowLoss
from ..engine.op import problem_of
from ..engine.problem import Problem
from ..engine.registry import handle


def problem(
    description: RowLoss, a: Tensor, c: Tensor | None, rows: Tensor, columns: Tensor | None
) -> Problem:
    """The engine's view of a call, for its masks and scalars."""
    return problem_of(a, c, rows, columns, [], [], None, handle(description), "")


def spec_rows(p: Problem, a: Tensor, c: Tensor, start: int, stop: int) -> Tensor:
    """[stop - start] row losses from the specification; differentiable in a [M, D] and c [N, D]."""
    metric = p.loss.metric
    s = metric.dense(a[start:stop]) @ metric.dense(c).t()
    return p.loss.spec(p.rows(s, start, stop))


def spec_loss(
    description: RowLoss, a: Tensor, c: Tensor | None, rows: Tensor, columns: Tensor | None
) -> Tensor:
    """The mean of the row losses, the whole matrix in autograd."""
    p = problem(description, a, c, rows, columns)
    return spec_rows(p, a, a if c is None else c, 0, a.shape[0]).mean()


def multi_similarity(
    x: Tensor, y: Tensor, *, alpha: float = 2, beta: float = 50, base: float = 0.5,
    epsilon: float | None = None,
) -> Tensor:
    x = F.normalize(x)
    s = x @ x.t()
    positive = y[:, None] == y[None, :]
    negative = ~positive
    positive.fill_diagonal_(False)
    if epsilon is not None:
        d = s.detach()
        hardest_positive = torch.where(positive, d, torch.inf).amin(1, keepdim=True)
        hardest_negative = torch.where(negative, d, -torch.inf).amax(1, keepdim=True)
        positive &= d < hardest_negative + epsilon
        negative &= d > hardest_positive - epsilon
    centred = s - base
    pull = (torch.exp(-alpha * centred) * positive).sum(1)
    push = (torch.exp(beta * centred) * negative).sum(1)
    return (pull.log1p() / alpha + push.log1p() / beta).mean()


def proxy_anchor(
    proxies: Tensor, x: Tensor, y: Tensor, *, margin: float = 0.1, alpha: float = 32
) -> Tensor:
    s = F.normalize(x) @ F.normalize(proxies).t()
    positive = F.one_hot(y, proxies.shape[0]).bool()
    pull = (torch.exp(-alpha * (s - margin)) * positive).sum(0)
    push = (torch.exp(alpha * (s + margin)) * ~positive).sum(0)
    present = positive.any(0).sum().clamp(min=1)
    return pull.log1p().sum() / present + push.log1p().mean()


def smooth_ap(x: Tensor, y: Tensor, *, temperature: float = 0.01) -> Tensor:
    """Needs classes of one size, in runs; else the padded list of the specification is the way."""
    x = F.normalize(x)
    s = x @ x.t()
    size = int((y == y[0]).sum())
    own = torch.arange(len(y), device=y.device) // size * size
    positives = own[:, None] + torch.arange(size, device=y.device)  # [B, size], with the query
    threshold = s.gather(1, positives)
    above = torch.sigmoid((s[:, None, :] - threshold[:, :, None]) / temperature)
    rank = 0.5 + above.sum(2)  # the pair j = k gives sigmoid(0) = 1/2
    among = 0.5 + above.gather(2, positives[:, None, :].expand(-1, size, -1)).sum(2)
    return (1 - (among / rank).mean(1)).mean()


HAND: dict[str, Callable[..., Tensor]] = {
    "multi_similarity": multi_similarity,
    "proxy_anchor": proxy_anchor,
    "smooth_ap": smooth_ap,
}
