"""Losses in float64 on the whole matrix, written from their formulas and not from kernels or descriptions.

One of every kind of schedule; test_public_losses.py has all losses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import fastdml.losses  # noqa: F401  (they are registered)
from fastdml.engine.loss import RowLoss
from fastdml.engine.registry import LOSSES

INF = float("inf")


@dataclasses.dataclass
class Case:
    """spec(s, positive, pair, t, loss) -> [R]; positive and pair exclude the pair with oneself."""

    loss: RowLoss
    spec: Callable[..., Tensor]
    rows: str = "samples"  # or "proxies", "classes" (columns are classes), "pairs"
    extra: tuple[float, ...] = ()  # values of the call: o.scalars
    # Largest exponent of float32 weights. One of size z is known to eps z only, and so is its weight:
    # log2(e) and the inverse norms are rounded once, the same way for all pairs, where torch's
    # roundings average out. A difference of such logarithms is known to the same.
    exponent: float = 0.0


def lse(z: Tensor, mask: Tensor, one: bool = False) -> Tensor:
    z = z.masked_fill(~mask, -INF)
    if one:
        z = torch.cat([z.new_zeros(z.shape[0], 1), z], 1)
    empty = ~torch.isfinite(z).any(1, keepdim=True)
    return torch.where(empty[:, 0], z.new_tensor(-INF), z.masked_fill(empty, 0.0).logsumexp(1))


def multi_similarity(s, positive, pair, t, o):
    negative = pair & ~positive
    positive = pair & positive & (s < o.max_positive)
    if o.epsilon is not None:
        low = s.masked_fill(~positive, INF).amin(1, keepdim=True)
        high = s.masked_fill(~negative, -INF).amax(1, keepdim=True)
        positive, negative = positive & (s < high + o.epsilon), negative & (s > low - o.epsilon)
    return (
        lse(-o.alpha * (s - o.base), positive, True) / o.alpha
        + lse(o.beta * (s - o.base), negative, True) / o.beta
    )


def proxy_anchor(s, positive, pair, t, o):
    pull = lse(-o.alpha * (s - o.margin), positive, True)
    return o.scalars[0] * pull + lse(o.alpha * (s + o.margin), ~positive, True)


def supcon(s, positive, pair, t, o):
    z = s / o.temperature
    positive = positive & pair
    count = positive.sum(1)
    mean = (z * positive).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, lse(z, pair) - mean, torch.zeros_like(mean))


def contrastive(s, positive, pair, t, o):
    nearer = -1 if o.similarity == "cosine" else 1
    pull, push = nearer * (s - o.pos_margin), nearer * (o.neg_margin - s)
    terms = [(pull, positive & pair), (push, pair & ~positive)]
    sums = [(h.relu() * mask).sum(1) for h, mask in terms]
    every = o.pos_aggregation != "active"
    counts = [(mask & ((h > 0) | every)).sum(1).to(s.dtype) for h, mask in terms]
    return torch.stack(sums + counts, 1)


def siglip(s, positive, pair, t, o):
    u = o.scalars[0] * s + o.scalars[1]
    return F.softplus(torch.where(positive, -u, u)).sum(1)


def arc_face(s, positive, pair, t, o):
    theta = s.clamp(-1 + 1e-9, 1 - 1e-9).acos() + o.margin
    turned = torch.where(theta < math.pi, theta.cos(), s - o.margin * math.sin(o.margin))
    z = o.scale * torch.where(positive, turned, s)
    return lse(z, torch.ones_like(positive)) - (z * positive).sum(1)


def soft_triple(s, positive, pair, t, o):
    x = s.reshape(s.shape[0], -1, o.size)
    value = ((x / o.gamma).softmax(2) * x).sum(2)
    z = o.scale * (value - o.margin * positive)
    return lse(z, torch.ones_like(positive)) - (z * positive).sum(1)


def lsd(s, positive, pair, t, o):
    log_p, log_q = (t / o.temperature).log_softmax(1), (s / o.temperature).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def relaxed_contrastive(s, positive, pair, t, o):
    r = s / s.mean(1, keepdim=True)
    alike = torch.exp(-t / o.sigma)
    term = alike * r.square() + (1 - alike) * (o.delta - r).relu().square()
    return torch.where(s > 0, term, torch.zeros_like(term)).sum(1)


CASES: dict[str, Case] = {
    "multi_similarity_mined": Case(
        LOSSES["multi_similarity"](2.0, 40.0, 0.5, 0.1, 1 - 1e-5), multi_similarity
    ),
    "supcon": Case(LOSSES["sup_con"](0.07), supcon),
    "proxy_anchor": Case(LOSSES["proxy_anchor"](32.0, 0.1), proxy_anchor, "proxies", (1.7,)),
    "contrastive_cosine": Case(LOSSES["contrastive"](1.0, 0.1, similarity="cosine"), contrastive),
    "contrastive_distance": Case(
        LOSSES["contrastive"](0.3, 1.2, "pairs", "pairs"), contrastive
    ),
    "contrastive_raw_distance": Case(
        LOSSES["contrastive"](0.5, 9.0, similarity="raw_distance"), contrastive
    ),
    "siglip": Case(LOSSES["siglip"](), siglip, "pairs", (7.0, -3.0)),
    "arcface": Case(LOSSES["arc_face"](0.5, 20.0), arc_face, "classes"),
    "soft_triple": Case(LOSSES["soft_triple"](3, 20.0, 0.1, 0.01), soft_triple, "classes"),
    "lsd": Case(LOSSES["listwise_distillation"](0.5, similarity="cosine"), lsd, exponent=7.0),
    "relaxed_contrastive": Case(LOSSES["relaxed_contrastive"](1.0, 1.0), relaxed_contrastive),
}
