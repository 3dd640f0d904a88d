"""Losses of the library described in the language, as their files will hold them: name -> function of the
row, the library's description, and how the one's keyword arguments come from the other's fields."""

import dataclasses
from collections.abc import Callable

from fastdml.engine.registry import LOSSES
from fastdml.language import (
    amax,
    amin,
    count,
    detach,
    log_sum_exp,
    maximum,
    relu,
    softplus,
    sum,
    where,
)  # fmt: skip


def multi_similarity(p, alpha, beta, base, max_positive, epsilon=None):
    positive, negative = p.positive & (p.s < max_positive), p.negative
    if epsilon is not None:
        hardest_positive = amin(p.s, where=positive)
        hardest_negative = amax(p.s, where=negative)
        positive = positive & (p.s < hardest_negative + epsilon)
        negative = negative & (p.s > hardest_positive - epsilon)
    pull = log_sum_exp(-alpha * (p.s - base), where=positive, one=True)
    push = log_sum_exp(beta * (p.s - base), where=negative, one=True)
    return pull / alpha + push / beta


def binomial_deviance(p, alpha, beta, base, max_positive):
    kept = p.positive & (p.s < max_positive)
    pull = sum(softplus(-alpha * (p.s - base)), where=kept)
    push = sum(softplus(beta * (p.s - base)), where=p.negative)
    return pull / maximum(count(where=kept), 1) + push / maximum(count(where=p.negative), 1)


def nt_xent(p, scale):
    level = log_sum_exp(scale * p.s, where=p.negative)
    return p.scalar(0) * sum(softplus(level - scale * p.s), where=p.positive)


def sup_con(p, scale, pull, push):
    positives = count(where=p.positive)
    level = log_sum_exp(scale * p.s, where=p.pair)
    target = sum(scale * p.s, where=p.positive) / maximum(positives, 1)
    return where(positives > 0, push * level - pull * target, 0.0)


def contrastive(p, pos_margin, neg_margin, sign, pos_active=True, neg_active=True, squared=False,
                relative=False):  # fmt: skip
    s = p.s * p.row_value(0) if relative else p.s
    sums, counts = [], []
    for term, mask, active in (
        (sign * (s - pos_margin), p.positive, pos_active),
        (sign * (neg_margin - s), p.negative, neg_active),
    ):
        cost = relu(term)
        sums.append(sum(cost * cost if squared else cost, where=mask))
        counts.append(count(where=mask & (term > 0) if active else mask))
    return (*sums, *counts)


def circle(p, m, gamma):
    z_p = -gamma * relu(1 + m - detach(p.s)) * (p.s - (1 - m))
    z_n = gamma * relu(detach(p.s) + m) * (p.s - m)
    both = log_sum_exp(z_p, where=p.positive) + log_sum_exp(z_n, where=p.negative)
    kept = (count(where=p.positive) > 0) & (count(where=p.negative) > 0)
    return where(kept, softplus(where(kept, both, 0.0)), 0.0)


def softmax_cross_entropy(p, scale, margin, smoothing, constant, among=True, biased=False,
                          smoothed=True):  # fmt: skip
    z = scale * p.s + p.column(0) if biased else scale * p.s
    others = count(where=p.negative)
    valid = (count(where=p.positive) > 0) & (others > 0)
    target = sum(z, where=p.positive) - scale * margin
    gap = log_sum_exp(z, where=p.negative) - target
    loss = softplus(gap) if among else gap
    if smoothed:
        spread = sum(z, where=p.negative) / maximum(count(where=p.pair) - 1, 1)
        loss = loss + smoothing * (target - spread)
    return where(valid, loss, 0.0) + constant


def proxy_anchor(p, alpha, margin):
    pull = log_sum_exp(-alpha * (p.s - margin), where=p.positive, one=True)
    push = log_sum_exp(alpha * (p.s + margin), where=p.negative, one=True)
    return p.scalar(0) * pull + push


def siglip(p):
    u = p.scalar(0) * p.s + p.scalar(1)
    return sum(softplus(-u), where=p.positive) + sum(softplus(u), where=p.negative)


@dataclasses.dataclass(frozen=True)
class Described:
    function: Callable
    arguments: Callable  # of the library's description: (open parameters, bound ones)
    loss: str


def _fields(*names):
    return lambda d: ({n: getattr(d, n) for n in names}, {})


def _multi_similarity(d):
    opened, bound = _fields("alpha", "beta", "base", "max_positive")(d)
    return (opened, {}) if d.epsilon is None else ({**opened, "epsilon": d.epsilon}, bound)


def _contrastive(d):
    opened = {"pos_margin": d.pos_margin, "neg_margin": d.neg_margin, "sign": d.sign}
    active = {f"{k}_active": getattr(d, f"{k}_aggregation") == "active" for k in ("pos", "neg")}
    return opened, {**active, "squared": d.squared, "relative": d.relative}


def _softmax(d):
    opened = {n: getattr(d, n) for n in ("scale", "margin", "smoothing", "constant")}
    return opened, {"among": d.among, "biased": d.biased, "smoothed": d.smoothing > 0}


DESCRIBED = {
    d.loss: d
    for d in (
        Described(multi_similarity, _multi_similarity, "multi_similarity"),
        Described(binomial_deviance, _fields("alpha", "beta", "base", "max_positive"), "binomial_deviance"),
        Described(nt_xent, _fields("scale"), "nt_xent"),
        Described(sup_con, _fields("scale", "pull", "push"), "sup_con"),
        Described(contrastive, _contrastive, "contrastive"),
        Described(circle, _fields("m", "gamma"), "circle"),
        Described(softmax_cross_entropy, _softmax, "softmax_cross_entropy"),
        Described(proxy_anchor, _fields("alpha", "margin"), "proxy_anchor"),
        Described(siglip, lambda d: ({}, {}), "siglip"),
    )
}  # fmt: skip


def examples():
    """(name, number, Described, the library's description with its example parameters)"""
    for name, described in DESCRIBED.items():
        for k, description in enumerate(LOSSES[name].examples()):
            yield name, k, described, description
