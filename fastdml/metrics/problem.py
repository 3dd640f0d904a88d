"""Queries, a gallery and a similarity: what every metric is computed from."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..engine import library
from ..engine.similarity import EPSILON, PRODUCT, SIMILARITIES, SQUARED_DISTANCE, Metric
from . import inputs
from .inputs import Embeddings

_FORMER = {"cosine": "cosine", "euclidean": "raw_distance", "dot": "dot"}  # values of `distance`
BACKENDS = ("auto", "native", "chunked")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A score for every pair of a query and a candidate; larger is nearer.

    Scores are products, or squared distances negated: they rank as the similarity does.

    Attributes:
        own: ``[Q]`` gallery row of each query itself, which is no candidate; -1: there is none.
        one_set: whether the gallery is the queries, and pairs (i, j) and (j, i) are one.
        query_scale: ``[Q]`` factors of the rows, in the type of the arithmetic, or None for 1.
        native: whether the compiled library sweeps.
    """

    queries: Embeddings
    gallery: Embeddings
    metric: Metric
    own: np.ndarray
    one_set: bool
    query_scale: np.ndarray | None
    gallery_scale: np.ndarray | None
    native: bool

    @property
    def difference(self) -> bool:
        """Whether scores come from differences of rows, as those of distances do: nothing cancels."""
        return self.metric.kind != PRODUCT

    @property
    def has_zeros(self) -> bool:
        """Whether a normalised row is 0."""
        return any(s is not None and not s.all() for s in (self.query_scale, self.gallery_scale))

    @property
    def double(self) -> bool:
        return self.queries.is_double or self.gallery.is_double

    @property
    def dtype(self) -> type:
        return np.float64 if self.double else np.float32

    @property
    def candidates(self) -> np.ndarray:
        """``[Q]`` how many candidates each query has."""
        return len(self.gallery) - (self.own >= 0)

    @property
    def most(self) -> int:
        """The largest number of candidates that a query has: of neighbours there are no more."""
        return int(self.candidates.max(initial=0))

    def similarity(self, score: np.ndarray) -> np.ndarray:
        """What the similarity calls its numbers, from scores."""
        if self.metric.kind == PRODUCT:
            return score
        return -score if self.metric.kind == SQUARED_DISTANCE else np.sqrt(-score)

    def with_metric(self, name: str) -> Problem:
        """The same rows, compared otherwise."""
        return make(self.queries, self.gallery, SIMILARITIES[name], self.own, self.one_set, self.native)


def metric_of(similarity: Any, distance: Any) -> Metric:
    """similarity: one of the losses' names. distance: the former argument, with names of its own."""
    if distance is not None:
        if not isinstance(distance, str) or distance not in _FORMER:
            raise ValueError(f"distance: expected 'cosine', 'euclidean' or 'dot', got {distance!r}")
        similarity = _FORMER[distance]
    if not isinstance(similarity, str) or similarity not in SIMILARITIES:
        raise ValueError(f"similarity: expected one of {sorted(SIMILARITIES)}, got {similarity!r}")
    return SIMILARITIES[similarity]


def problem(
    embeddings: Any,
    ref_emb: Any,
    similarity: Any,
    distance: Any,
    own_index: Any,
    backend: str,
) -> Problem:
    """Checks the arguments that all functions share."""
    metric = metric_of(similarity, distance)
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {BACKENDS}, got {backend!r}")
    queries = inputs.embeddings(embeddings, "embeddings")
    one_set = ref_emb is None or ref_emb is embeddings
    gallery = queries if one_set else inputs.embeddings(ref_emb, "ref_emb")
    inputs.same_space(queries, gallery)
    if own_index is not None:
        if one_set:
            raise ValueError("own_index: expected only with a ref_emb of its own")
        own = inputs.own_index(own_index, len(queries), len(gallery))
    else:
        own = np.arange(len(queries)) if one_set else np.full(len(queries), -1, dtype=np.int64)
    compiled = library.load() is not None and queries.device.type == "cpu"
    if backend == "native" and not compiled:
        raise ValueError("backend: expected 'auto' or 'chunked' here, there is no compiled library for it")
    return make(queries, gallery, metric, own, one_set, compiled and backend != "chunked")


def make(
    queries: Embeddings,
    gallery: Embeddings,
    metric: Metric,
    own: np.ndarray,
    one_set: bool,
    native: bool,
) -> Problem:
    if len(gallery) >= 1 << 31:
        raise ValueError(f"{gallery.name}: expected fewer than 2^31 rows, got {len(gallery)}")
    dtype = np.float64 if queries.is_double or gallery.is_double else np.float32
    norms = _norms_within_range(queries, metric, dtype)
    query_scale = _scale(norms, metric, dtype, anchors=True)
    if gallery is not queries:
        norms = _norms_within_range(gallery, metric, dtype)
    gallery_scale = _scale(norms, metric, dtype, anchors=False)
    return Problem(queries, gallery, metric, own, one_set, query_scale, gallery_scale, native)


def _norms_within_range(side: Embeddings, metric: Metric, dtype: type) -> np.ndarray:
    norms = side.norms()
    if not (metric.normalized or metric.clipped) or metric.raw_anchors:
        limit = np.sqrt(np.finfo(dtype).max) / 2
        if norms.max() > limit:
            raise ValueError(
                f"{side.name}: expected finite rows, found a squared norm that overflows "
                f"{np.dtype(dtype)} in row {int(norms.argmax())}"
            )
    return norms


def _scale(norms: np.ndarray, metric: Metric, dtype: type, anchors: bool) -> np.ndarray | None:
    if metric.clipped:
        return (1 / np.maximum(norms, 1)).astype(dtype)
    if not metric.normalized or (anchors and metric.raw_anchors):
        return None
    with np.errstate(divide="ignore"):
        return np.where(norms <= EPSILON, 0, 1 / norms).astype(dtype)
