"""Each loss in float64 on the whole matrix, written from its formula and not from the kernels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

INF = float("inf")


@dataclasses.dataclass
class Case:
    """spec(s, positive, pair, t, loss) -> [R]; positive and pair exclude the pair with oneself."""

    tile: str
    spec: Callable[..., Tensor]
    loss: SimpleNamespace
    rows: str = "samples"  # or "proxies", "classes" (columns are classes), "pairs", "towers"
    extra: tuple[float, ...] = ()  # parameters of the call, after the description's
    inputs: bool = False  # whether every row has a value; o.inputs, [R, 1]
    metric: str = "cosine"
    epsilon: float = 0.0
    teacher: str | None = None  # the teacher's metric
    keep_self: bool = False
    centres: int = 1
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
    return o.ratio * pull + lse(o.alpha * (s + o.margin), ~positive, True)


def supcon(s, positive, pair, t, o):
    z = s * o.scale
    positive = positive & pair
    count = positive.sum(1)
    mean = (z * positive).sum(1) / count.clamp(min=1)
    return torch.where(count > 0, lse(z, pair) - mean, torch.zeros_like(mean))


def contrastive(s, positive, pair, t, o):
    pull, push = o.sign * (s - o.pos_margin), o.sign * (o.neg_margin - s)
    terms = [(pull, positive & pair), (push, pair & ~positive)]
    sums = [(h.relu() * mask).sum(1) for h, mask in terms]
    counts = [(mask & ((h > 0) | (not o.active_only))).sum(1).to(s.dtype) for h, mask in terms]
    return torch.stack(sums + counts, 1)


def siglip(s, positive, pair, t, o):
    u = o.scalars[0] * s + o.scalars[1]
    return F.softplus(torch.where(positive, -u, u)).sum(1)


def mean_over(x, mask):
    return (x * mask).sum(1) / mask.sum(1).clamp(min=1)


def binomial_deviance(s, positive, pair, t, o):
    pull = F.softplus(-o.alpha * (s - o.base))
    push = F.softplus(o.beta * (s - o.base))
    return mean_over(pull, positive & pair) + mean_over(push, pair & ~positive)


def circle(s, positive, pair, t, o):
    far_p, far_n = (1 + o.m - s).relu().detach(), (s + o.m).relu().detach()
    z = lse(-o.gamma * far_p * (s - 1 + o.m), positive & pair)
    return F.softplus(z + lse(o.gamma * far_n * (s - o.m), pair & ~positive))


def cbml(s, positive, pair, t, o):
    negative = pair & ~positive
    positive = pair & positive & (s < o.max_positive)
    m = o.mean_mix * mean_over(s, positive) + (1 - o.mean_mix) * mean_over(s, negative)
    variance = ((s - m[:, None]).square() * negative).sum(1)
    low = s.masked_fill(~positive, INF).amin(1, keepdim=True)
    high = s.masked_fill(~negative, -INF).amax(1, keepdim=True)
    positive = positive & (s - o.mining_margin < high)
    negative = negative & (s + o.mining_margin > low)
    loss = (
        lse(-(s - o.pos_a) / o.pos_b, positive, True)
        + lse((s - o.neg_a) / o.neg_b, negative, True)
        + o.variance_weight * variance
    )
    return torch.where(positive.any(1) & negative.any(1), loss, torch.zeros_like(loss))


def n_pairs(s, positive, pair, t, o):
    gap = s - o.inputs
    if o.one_vs_one:
        return (F.softplus(gap) * ~positive).sum(1)
    return F.softplus(lse(gap, ~positive))


def nt_xent(s, positive, pair, t, o):
    z = s * o.scale
    positive = positive & pair
    wrong = lse(z, pair & ~positive)
    return o.scalars[0] * torch.where(positive, F.softplus(wrong[:, None] - z), 0.0).sum(1)


def softmax(s, positive, pair, t, o):
    z = o.scale * torch.where(positive, s - o.margin, s)
    target = torch.where(positive, 1 - o.smoothing, o.smoothing / (s.shape[1] - 1))
    mask = torch.ones_like(positive) if o.among else ~positive
    return lse(z, mask) - (target * z).sum(1) + o.constant


def arc_face(s, positive, pair, t, o):
    theta = s.clamp(-1 + 1e-9, 1 - 1e-9).acos() + o.margin
    turned = torch.where(theta < math.pi, theta.cos(), s - o.margin * math.sin(o.margin))
    z = o.scale * torch.where(positive, turned, s)
    return lse(z, torch.ones_like(positive)) - (z * positive).sum(1)


def soft_triple(s, positive, pair, t, o):
    x = s.reshape(s.shape[0], -1, o.centres)
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


def _o(**values):
    return SimpleNamespace(**values)


def _softmax(**values):
    plain = {"scale": 20.0, "smoothing": 0.0, "margin": 0.0, "among": True, "constant": 0.0}
    return _o(**{**plain, **values})


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
    "supcon": Case("sup_con", supcon, _o(scale=1 / 0.07, push=1.0, pull=1.0)),
    "clip": Case("sup_con", supcon, _o(scale=20.0, push=1.0, pull=1.0), rows="towers"),
    "proxy_anchor": Case(
        "proxy_anchor", proxy_anchor, _o(alpha=32.0, margin=0.1, ratio=1.7), "proxies", (1.7,)
    ),
    "contrastive_cosine": Case(
        "contrastive",
        contrastive,
        _o(pos_margin=1.0, neg_margin=0.1, sign=-1.0, active_only=True),
    ),
    "contrastive_distance": Case(
        "contrastive",
        contrastive,
        _o(pos_margin=0.3, neg_margin=1.2, sign=1.0, active_only=False),
        metric="distance",
    ),
    "contrastive_raw_distance": Case(
        "contrastive",
        contrastive,
        _o(pos_margin=0.5, neg_margin=9.0, sign=1.0, active_only=True),
        metric="raw_distance",
    ),
    "siglip": Case("siglip", siglip, _o(), "pairs", (7.0, -3.0)),
    "binomial_deviance": Case(
        "binomial_deviance", binomial_deviance, _o(alpha=2.0, beta=25.0, base=0.5)
    ),
    "circle": Case("circle", circle, _o(m=0.4, gamma=80.0), exponent=160.0),
    "contrastive_bayesian": Case(
        "contrastive_bayesian",
        cbml,
        _o(
            pos_a=0.5,
            pos_b=0.5,
            neg_a=1.0,
            neg_b=0.05,
            mining_margin=0.1,
            max_positive=1 - 1e-5,
            variance_weight=0.5,
            mean_mix=0.2,
        ),
    ),
    "n_pair": Case(
        "n_pair",
        n_pairs,
        _o(metric=SimpleNamespace(sign=1.0), one_vs_one=False, paired=False, padded=False),
        "pairs",
        inputs=True,
        metric="dot",
        exponent=150.0,
    ),
    "n_pair_one_vs_one": Case(
        "n_pair",
        n_pairs,
        _o(metric=SimpleNamespace(sign=1.0), one_vs_one=True, paired=False, padded=False),
        "pairs",
        inputs=True,
    ),
    "nt_xent": Case("nt_xent", nt_xent, _o(scale=5.0), extra=(0.3,)),
    "normalized_softmax": Case("softmax_cross_entropy", softmax, _softmax(), "classes"),
    "smoothed_softmax": Case(
        "softmax_cross_entropy", softmax, _softmax(smoothing=0.1, constant=0.3), "classes"
    ),
    "proxy_nca": Case("softmax_cross_entropy", softmax, _softmax(among=False), "classes"),
    "cosface": Case("softmax_cross_entropy", softmax, _softmax(margin=0.35), "classes"),
    "arcface": Case("arc_face", arc_face, _o(scale=20.0, margin=0.5, sub_centers=1), "classes"),
    "soft_triple": Case(
        "soft_triple",
        soft_triple,
        _o(scale=20.0, gamma=0.1, margin=0.01, centres=3),
        "classes",
        centres=3,
    ),
    "lsd": Case(
        "listwise_distillation", lsd, _o(temperature=0.5), teacher="cosine", keep_self=True, exponent=7.0),
    "relaxed_contrastive": Case(
        "relaxed_contrastive",
        relaxed_contrastive,
        _o(delta=1.0, sigma=1.0),
        extra=(0.0,),
        metric="raw_distance",
        teacher="squared_distance",
        keep_self=True,
    ),
}
