"""Losses as one writes them in plain torch: the opponents without the library.

`evaluate` stands in for the engine and differentiates the specification of a loss on the whole
matrix. The functions of HAND are written for the speed of plain operations, as a careful user would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.call import Call
from ..engine.executors.dense import outputs_of
from ..engine.problem import Problem


def scalars_of(p: Problem, given: Tensor | None) -> Tensor | None:
    """The scalars of a problem, those of the call among them with their graph."""
    if given is None or p.all_scalars is None:
        return p.all_scalars
    return torch.cat([given.to(p.statistic), p.all_scalars[given.numel() :]])


def total(parts: list[Any]) -> Tensor:
    """What the parts of a loss add up to, every call the whole matrix in torch's autograd."""
    values = [evaluate(p) if isinstance(p, Call) else p.evaluate() for p in parts]
    return sum(values[1:], values[0])


def evaluate(call: Call) -> Tensor:
    """The loss of a call, the whole matrix in torch's autograd."""
    if call.before is not None:
        first = [_slopes(c) if call.before.slopes else evaluate(c) for c in call.before.calls]
        call = call.before.fill(call.replace(before=None), first)
    value = _reduced(call)
    return call.weight * (value if call.finish is None else call.finish(value))


def _slopes(call: Call) -> Tensor:
    assert call.scalars is not None
    scalars = call.scalars.detach().requires_grad_()
    return torch.autograd.grad(_reduced(call.replace(scalars=scalars)), scalars)[0]


def _reduced(call: Call) -> Tensor:
    p = Problem.of(call)
    scalars = scalars_of(p, call.scalars)
    a = call.anchors.to(p.statistic)
    c = a if call.candidates is None else call.candidates.to(p.statistic)
    outputs = outputs_of(p, a, c, scalars, call.row_values, call.col_values)
    if p.loss.combined:
        return p.loss.combine(outputs, call.reduction)
    losses = outputs[:, 0]
    if p.row_weight is not None:
        losses = losses * p.row_weight
    if call.reduction == "nonzero":
        return losses.sum() / (losses > 0).sum().clamp(min=1)
    if call.reduction == "mean" and p.loss.counted:
        return losses.sum() / outputs[:, 1].detach().sum().clamp(min=1)
    return losses if call.reduction == "none" else getattr(losses, call.reduction)()


def multi_similarity(
    x: Tensor,
    y: Tensor,
    *,
    alpha: float = 2,
    beta: float = 50,
    base: float = 0.5,
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
