"""Each loss in float64 on the whole matrix, written from its formula and not from the kernels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

INF = float("inf")


@dataclasses.dataclass
class Case:
    """spec(s, positive, pair, t, loss) -> [R]; positive and pair exclude the pair with oneself."""

    tile: str
    spec: Callable[..., Tensor]
    loss: SimpleNamespace
    rows: str = "samples"  # or "proxies", "classes" (columns are classes), "towers"
    extra: tuple[float, ...] = ()


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
    return o.ratio * pull + lse(o.alpha * (s + o.margin), ~positive, True)


def supcon(s, positive, pair, t, o):
    z = s / o.temperature
    positive = positive & pair
    count = positive.sum(1)
    mean = (z * positive).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, lse(z, pair) - mean, torch.zeros_like(mean))


def _o(**values):
    return SimpleNamespace(**values)


CASES: dict[str, Case] = {
    "multi_similarity": Case(
        "multi_similarity",
        multi_similarity,
        _o(alpha=2.0, beta=50.0, base=0.5, epsilon=None, max_positive=INF),
    ),
    "multi_similarity_mined": Case(
        "multi_similarity",
        multi_similarity,
        _o(alpha=2.0, beta=40.0, base=0.5, epsilon=0.1, max_positive=1 - 1e-5),
    ),
    "supcon": Case("supcon", supcon, _o(temperature=0.07)),
    "clip": Case("supcon", supcon, _o(temperature=0.05), rows="towers"),
    "proxy_anchor": Case(
        "proxy_anchor", proxy_anchor, _o(alpha=32.0, margin=0.1, ratio=1.7), "proxies", (1.7,)
    ),
}
