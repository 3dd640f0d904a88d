"""Functions of the row as a user writes them, and the library's described losses."""

import fastdml.losses  # noqa: F401
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
from fastdml.language.described import Described


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


def examples():
    """(name, number, description) of the library's described losses with their example parameters."""
    for name, kind in LOSSES.items():
        if issubclass(kind, Described):
            for k, description in enumerate(kind.examples()):
                yield name, k, description
