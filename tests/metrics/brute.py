"""Every metric as its definition says, one query and one candidate at a time, in float64."""

from __future__ import annotations

import math

import numpy as np


def similarity(name, x, g):
    """One number for every pair; the larger, the nearer."""
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)

    def unit(v):
        n = np.linalg.norm(v)
        return v / n if n > 1e-12 else np.zeros_like(v)

    def ball(v):
        return v / max(np.linalg.norm(v), 1.0)

    out = np.empty((len(x), len(g)))
    for i, a in enumerate(x):
        for j, b in enumerate(g):
            if name in ("cosine", "distance", "squared_distance"):
                u, v = unit(a), unit(b)
            elif name == "projection":
                u, v = a, unit(b)
            elif name == "ball_distance":
                u, v = ball(a), ball(b)
            else:
                u, v = a, b
            far = "distance" in name
            out[i, j] = -((u - v) ** 2).sum() if far else (u * v).sum()
    return out


def rankings(s, gain, own):
    """Per query the gains in order of places, ties with the lowest gain first; and R."""
    found = []
    for i in range(len(s)):
        some = [(-s[i, j], gain[i, j]) for j in range(s.shape[1]) if j != own[i]]
        found.append([g for _, g in sorted(some)])
    return found


def ranked(gains, ks):
    """All metrics of one query from its gains in order of places."""
    rel = [g > 0 for g in gains]
    R, n = sum(rel), len(rel)
    if not R:
        return None
    precision = [sum(rel[: i + 1]) / (i + 1) for i in range(n)]
    out = {
        "r_precision": sum(rel[:R]) / R,
        "map@r": sum(precision[i] for i in range(R) if rel[i]) / R,
        "map": sum(precision[i] for i in range(n) if rel[i]) / R,
        "mrr": 1 / (rel.index(True) + 1),
    }

    def dcg(values, k):
        return sum(v / math.log2(i + 2) for i, v in enumerate(values[:k]))

    best = sorted(gains, reverse=True)
    out["ndcg"] = dcg(gains, n) / dcg(best, n)
    for k in ks:
        out[f"recall@{k}"] = float(any(rel[:k]))
        out[f"precision@{k}"] = sum(rel[:k]) / min(k, n)
        out[f"map@{k}"] = sum(precision[i] for i in range(min(k, n)) if rel[i]) / min(R, k)
        out[f"ndcg@{k}"] = dcg(gains, k) / dcg(best, k)
    return out


def paired(s, gain, own, one_set, fars):
    right, wrong = [], []
    for i in range(len(s)):
        for j in range(s.shape[1]):
            if j != own[i] and not (one_set and j < i):
                (right if gain[i, j] > 0 else wrong).append(s[i, j])
    right, wrong = np.sort(right), np.sort(wrong)
    below = np.searchsorted(wrong, right, side="left")
    ties = np.searchsorted(wrong, right, side="right") - below
    out = {"auc": (below + ties / 2).sum() / (len(right) * len(wrong))}
    for far in fars:
        best = 0.0
        for t in np.unique(np.concatenate([right, wrong])):
            for strict in (False, True):
                accepted = (wrong > t) if strict else (wrong >= t)
                taken = (right > t) if strict else (right >= t)
                if accepted.mean() <= far:
                    best = max(best, taken.mean())
        out[f"tar@far={far:g}"] = best
    return out


def spread(x, g, gain, own, one_set, t=2.0, alpha=2.0):
    def unit(v):
        return v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300)  # zeros stay zeros

    x, g = unit(np.asarray(x, np.float64)), unit(np.asarray(g, np.float64))
    d2 = ((x[:, None] - g[None]) ** 2).sum(-1)
    keep = np.ones_like(d2, dtype=bool)
    for i, j in enumerate(own):
        if j >= 0:
            keep[i, j] = False
    right = keep & (gain > 0)
    counted = np.triu(keep, 1) if one_set else keep
    return {
        "alignment": (d2[right] ** (alpha / 2)).mean(),
        "uniformity": math.log(np.exp(-t * d2[counted]).mean()),
    }


def everything(x, g, gain, own, one_set, name, ks, fars):
    s = similarity(name, x, g)
    per_query = [ranked(r, ks) for r in rankings(s, gain, own)]
    known = [r for r in per_query if r is not None]
    out = {k: float(np.mean([r[k] for r in known])) for k in known[0]}
    return out | paired(s, gain, own, one_set, fars) | spread(x, g, gain, own, one_set), per_query
