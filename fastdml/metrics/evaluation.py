"""All metrics of a set of embeddings from one sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..engine import check
from . import clusters, definitions, inputs, pairs
from .definitions import Asked, Ranking
from .pairs import PairCounts, PairTally
from .problem import Problem
from .problem import problem as make_problem
from .relevance import Relation, members
from .relevance import relation as make_relation
from .result import Evaluation
from .sweep import BLOCK_BYTES, Found, Progress, Wanted, right_scores, sweep

UNIFORMITY_T = 2.0  # Wang & Isola, 2020
_SAFE_T = 20.0  # up to which exp(-t d^2) of d <= 2 is a normal number of float32
_BINS = 60  # of histograms of similarities


def evaluate(
    embeddings: Any,
    labels: Any = None,
    ref_emb: Any = None,
    ref_labels: Any = None,
    *,
    metrics: str | Iterable[str] | None = None,
    k: int | Iterable[int] = (1, 10, 100),
    far: float | Iterable[float] = (1e-3, 1e-2),
    similarity: str = "cosine",
    own_index: Any = None,
    relevance: Callable[[Any, Any], Any] | None = None,
    neighbours: int = 0,
    seed: int = 0,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
    progress: Progress | None = None,
) -> Evaluation:
    """Any of the metrics, exact over all candidates, from one sweep over the similarities.

    Args:
        embeddings: ``[N, D]`` queries of any norm: a tensor, an array, which may be a mapped file, or nested
            lists; float16, bfloat16, float32 or float64. Arithmetic is in float32, with float64 in float64.
        labels: ``[N]`` integers or strings; or sets of labels (a list of collections, or a bool matrix
            ``[N, C]``), where candidates that share a label are right. May be None with `relevance`.
        ref_emb: ``[M, D]`` gallery; None (or `embeddings` itself) searches the queries, each without itself.
        ref_labels: the gallery's labels; given exactly when ``ref_emb`` is another set.
        metrics: names, or ``"all"``; None: all but those of clusters and of spread. "recall@k",
            "precision@k", "r_precision", "map@r", "map" (exact average precision), "map@k", "ndcg",
            "ndcg@k", "mrr", "auc", "tar@far", "alignment", "uniformity", "nmi", "ami". Those without a
            number where they take one mean every k (or rate) below.
        k: one or several numbers of neighbours; more than there are candidates means all of them.
        far: one or several false acceptance rates in (0, 1].
        similarity: one of the losses' names: "cosine", "dot", "distance", "raw_distance", ...
        own_index: ``[N]`` row of the gallery that is the query's own copy and no candidate, -1: none.
        relevance: function of (query indices ``[q]``, gallery indices ``[M]``) to a matrix ``[q, M]``: bool,
            or numbers of at least 0 that say how much a candidate is worth (graded nDCG; any gain above 0
            is right for the other metrics). Takes the place of labels.
        neighbours: how many nearest candidates of every query to return besides.
        seed: of the clustering.
        backend: "auto", "native" (the compiled library) or "chunked" (torch).
        block_bytes: of similarities held at once, at least one row of them.
        progress: called with (queries done, queries) as the sweep goes on.

    Returns:
        :class:`Evaluation`, a mapping of keys such as "recall@1" to values.

    Raises:
        ValueError: an argument is not as described, an embedding is not finite, or no query has a right
            candidate (or, for metrics of pairs, there is no wrong pair).
    """
    problem, relation = _setup(
        embeddings, labels, ref_emb, ref_labels, similarity, None, own_index, relevance, backend
    )
    ks, fars = inputs.integers(k, "k"), inputs.fractions(far, "far")
    asked = definitions.asked(metrics, ks, fars)
    block_bytes = inputs.block_bytes(block_bytes)
    neighbours = check.whole(neighbours, "neighbours", 0, problem.most)
    return run(problem, relation, asked, neighbours, inputs.seed(seed), block_bytes, progress)


def _setup(
    embeddings: Any,
    labels: Any,
    ref_emb: Any,
    ref_labels: Any,
    similarity: Any,
    distance: Any,
    own_index: Any,
    relevance: Callable[[Any, Any], Any] | None,
    backend: str,
) -> tuple[Problem, Relation]:
    problem = make_problem(embeddings, ref_emb, similarity, distance, own_index, backend)
    if relevance is None and labels is None:
        raise ValueError("labels: expected labels, or a relevance function in their place")
    if labels is not None and (ref_emb is None) != (ref_labels is None) and relevance is None:
        raise ValueError("ref_labels: expected exactly when ref_emb is given, and only then")
    if problem.one_set and ref_labels is not None and not _same(ref_labels, labels, problem):
        raise ValueError("ref_labels: expected the labels, as ref_emb is embeddings")
    relation = make_relation(
        labels,
        None if problem.one_set else ref_labels,
        relevance,
        len(problem.queries),
        len(problem.gallery),
        problem.own,
    )
    if not relation.symmetric or problem.metric.raw_anchors:  # s(i, j) is not s(j, i)
        problem = dataclasses.replace(problem, one_set=False)
    return problem, relation


def _same(ref_labels: Any, labels: Any, problem: Problem) -> bool:
    if ref_labels is labels:
        return True
    count = len(problem.queries)
    if inputs.is_sets(ref_labels) or inputs.is_sets(labels):
        return _sets(ref_labels, count, "ref_labels") == _sets(labels, count, "labels")
    theirs = inputs.labels(ref_labels, count, "ref_labels")
    return bool(np.array_equal(theirs, inputs.labels(labels, count, "labels")))


def _sets(labels: Any, count: int, name: str) -> list[set]:
    start, found = members(labels, count, name)
    return [set(row.tolist()) for row in np.split(found, start[1:-1])]


def run(
    problem: Problem,
    relation: Relation,
    asked: list[Asked],
    neighbours: int = 0,
    seed: int = 0,
    block_bytes: int = BLOCK_BYTES,
    progress: Progress | None = None,
    edges: bool = False,
) -> Evaluation:
    """edges: thresholds for histograms of similarities too."""
    answerable = relation.count > 0
    if not answerable.any():
        raise ValueError(
            "labels: expected at least one query with a candidate of its own class"
            if relation.label is not None
            else "labels: expected at least one query with a right candidate"
        )
    names = {a.name for a in asked}
    ranked = [a for a in asked if a.name in definitions.RANKED]
    values: dict[str, float] = {}
    per_query = {a.key: np.full(len(answerable), np.nan) for a in ranked}

    tally = None
    if names & set(definitions.PAIRED) or edges:
        tally = _tally(problem, relation, block_bytes, edges)
    fused = "uniformity" in names and _at_length_one(problem) is problem
    wanted = Wanted(
        relation=relation if ranked or tally else None,
        k=neighbours,
        tally=tally,
        spread=_spread_terms(problem) if fused else None,
    )
    nearest = []
    total = 0.0
    if ranked or tally or neighbours or fused:
        for found in sweep(problem, wanted, block_bytes, progress):
            _rank(found, problem, ranked, per_query)
            if found.index is not None:
                nearest.append((found.queries, found.index))
            if found.spread is not None:
                total += float(found.spread.sum())
    for a in ranked:
        values[a.key] = float(per_query[a.key][answerable].mean())

    counts = None if tally is None else tally.finish(_pairs(problem))
    if counts is not None:
        values |= _paired(counts, asked)
    if "alignment" in names:
        values["alignment"] = alignment_of(problem, relation, 2.0, block_bytes)
    if fused:
        values["uniformity"] = float(np.log(total / _pairs(problem)))
    elif "uniformity" in names:
        values["uniformity"] = uniformity_of(problem, UNIFORMITY_T, block_bytes)
    if clustered := [n for n in definitions.CLUSTERED if n in names]:
        values |= clusters.agreement(problem, relation, clustered, seed)

    index = None
    if neighbours:
        index = np.empty((len(answerable), neighbours), dtype=np.int64)
        for queries, some in nearest:
            index[queries] = some
    ordered = {a.key: values[a.key] for a in asked}
    return Evaluation(
        ordered, per_query, answerable, relation.label, relation.classes, counts, index
    )


def _rank(
    found: Found, problem: Problem, ranked: list[Asked], per_query: dict[str, np.ndarray]
) -> None:
    if found.ranks is None or found.right is None or not ranked:
        return
    ranking = Ranking(
        found.ranks, found.right.start, problem.candidates[found.queries], found.gains
    )
    known = ranking.count > 0
    for a in ranked:
        definition = definitions.RANKED[a.name][0]
        by_query = definition(ranking, None if a.at is None else int(a.at))
        per_query[a.key][found.queries[known]] = by_query[known]


def _pairs(problem: Problem) -> int:
    """How many pairs of different items there are."""
    if problem.one_set:
        return len(problem.queries) * (len(problem.queries) - 1) // 2
    return int(problem.candidates.sum())


def _tally(problem: Problem, relation: Relation, block_bytes: int, edges: bool) -> PairTally:
    right, queries = int(relation.count.sum()), int((relation.count > 0).sum())
    every = -(-right // pairs.SAMPLE)
    # Of many queries, and where that is too much, some scores of each.
    of_queries = min(every, max(1, queries // pairs.SAMPLED_QUERIES))
    step = -(-every // of_queries)
    scores = [s[::step].copy() for s in right_scores(problem, relation, block_bytes, of_queries)]
    thresholds = pairs.thresholds_of(np.concatenate(scores))
    if not edges:
        return PairTally(thresholds)
    low, high = float(thresholds[0]), float(thresholds[-1])
    if problem.metric.normalized and not problem.metric.raw_anchors:
        low, high = (-4.0, 0.0) if problem.difference else (-1.0, 1.0)
    grid: np.ndarray = np.linspace(low, high, _BINS + 1).astype(problem.dtype)
    return PairTally(thresholds, grid)


def _paired(counts: PairCounts, asked: list[Asked]) -> dict[str, float]:
    values = {}
    for a in asked:
        if a.name == "auc":
            values[a.key] = counts.auc()
        elif a.name == "tar@far":
            assert a.at is not None
            values[a.key] = counts.tar_at_far(a.at)
    return values


def _spread_terms(problem: Problem, t: float = UNIFORMITY_T) -> tuple[float, float]:
    """exp(-t |x - y|^2) of rows of length 1 as exp(by * score + shift)."""
    return (t, 0.0) if problem.difference else (2 * t, -2 * t)


def _at_length_one(problem: Problem) -> Problem:
    """The problem with scores that tell the distances of rows of length 1, itself where they do."""
    if not problem.metric.normalized or problem.metric.raw_anchors:
        problem = problem.with_metric("cosine")
    # A row of zeros stays one: its squared distance to another is 1, not 2 - 2 * 0.
    if not problem.difference and problem.has_zeros:
        problem = problem.with_metric("squared_distance")
    return problem


def uniformity_of(problem: Problem, t: float, block_bytes: int) -> float:
    problem = _at_length_one(problem)
    if not _pairs(problem):
        raise ValueError("embeddings: expected at least two, for uniformity")
    by, shift = _spread_terms(problem, t)
    largest = 0.0
    if t > _SAFE_T:
        # The exponentials of all pairs may be too small for the type: the largest one is taken out.
        found = sweep(problem, Wanted(k=1), block_bytes)
        nearest = [f.index_scores for f in found if f.index_scores is not None]
        largest = by * float(np.nanmax(np.concatenate(nearest))) + shift
    wanted = Wanted(spread=(by, shift - largest))
    sums = [f.spread for f in sweep(problem, wanted, block_bytes) if f.spread is not None]
    return largest + float(np.log(np.concatenate(sums).sum() / _pairs(problem)))


def alignment_of(problem: Problem, relation: Relation, alpha: float, block_bytes: int) -> float:
    problem = problem.with_metric("squared_distance")
    total = count = 0.0
    for scores in right_scores(problem, relation, block_bytes):
        total += float((np.maximum(-scores.astype(np.float64), 0) ** (alpha / 2)).sum())
        count += len(scores)
    return total / count
