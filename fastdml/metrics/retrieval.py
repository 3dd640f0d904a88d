"""One metric at a time: functions over :func:`fastdml.metrics.evaluate`.

Every function takes either one set (each item queries all the others, itself excluded) or queries plus a
gallery in ``ref_emb`` and ``ref_labels``. Embeddings may be tensors, arrays or lists. Queries without a right
candidate cannot be answered and are left out of the mean.

A tie between a right and a wrong candidate counts against the query: an embedding that maps everything to one
point scores 0, not 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from ..engine import check
from . import definitions, inputs
from .evaluation import UNIFORMITY_T, _setup, alignment_of, run, uniformity_of
from .problem import problem as make_problem
from .sweep import BLOCK_BYTES, Wanted, sweep

Relevance = Callable[[Any, Any], Any]


def recall_at_k(
    embeddings: Any,
    labels: Any,
    k: int | Iterable[int] = (1, 4),
    ref_emb: Any = None,
    ref_labels: Any = None,
    *,
    similarity: str = "cosine",
    distance: str | None = None,
    own_index: Any = None,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
) -> dict[int, float]:
    """Share of queries with an item of their class among their ``k`` nearest candidates.

    Jégou, Douze, Schmid, *Product quantization for nearest neighbor search*, TPAMI 2011, in the
    form usual in metric learning (Oh Song et al., CVPR 2016).

    Args and errors as in :func:`retrieval_metrics`.

    Returns:
        ``{k: recall}``, each in [0, 1].
    """
    given = (ref_emb, ref_labels, similarity, distance, own_index, None, backend, block_bytes)
    return _at_ks("recall", embeddings, labels, k, given)


def precision_at_k(
    embeddings: Any,
    labels: Any,
    k: int | Iterable[int] = (1, 4),
    ref_emb: Any = None,
    ref_labels: Any = None,
    *,
    similarity: str = "cosine",
    own_index: Any = None,
    relevance: Relevance | None = None,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
) -> dict[int, float]:
    """Mean share of the ``k`` nearest candidates that is right, ``{k: precision}``.

    Args and errors as in :func:`fastdml.metrics.evaluate`.
    """
    given = (ref_emb, ref_labels, similarity, None, own_index, relevance, backend, block_bytes)
    return _at_ks("precision", embeddings, labels, k, given)


def ndcg_at_k(
    embeddings: Any,
    labels: Any,
    k: int | Iterable[int] = (1, 4),
    ref_emb: Any = None,
    ref_labels: Any = None,
    *,
    similarity: str = "cosine",
    own_index: Any = None,
    relevance: Relevance | None = None,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
) -> dict[int, float]:
    """Mean normalised discounted cumulative gain of the ``k`` nearest, ``{k: nDCG}``.

    Järvelin, Kekäläinen, TOIS 2002, discounts 1 / log2(1 + place). The gain of a right candidate is 1; with
    sets of labels, how many it shares with the query; with ``relevance``, what the function says.

    Args and errors as in :func:`fastdml.metrics.evaluate`.
    """
    given = (ref_emb, ref_labels, similarity, None, own_index, relevance, backend, block_bytes)
    return _at_ks("ndcg", embeddings, labels, k, given)


def map_at_r(
    embeddings: Any,
    labels: Any,
    ref_emb: Any = None,
    ref_labels: Any = None,
    *,
    similarity: str = "cosine",
    distance: str | None = None,
    own_index: Any = None,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
) -> float:
    r"""Mean average precision at R (Musgrave, Belongie, Lim, ECCV 2020, eq. 4 and 5).

    :math:`\mathrm{mean}_q \frac1R \sum_{i=1}^{R} P(i)\,\mathrm{rel}(i)`, with ``R`` the number of
    candidates of the query's class and ``P(i)`` the precision of its first ``i`` neighbours.

    Args and errors as in :func:`retrieval_metrics`.

    Returns:
        A number in [0, 1].
    """
    given = (ref_emb, ref_labels, similarity, distance, own_index, None, backend, block_bytes)
    return _one("map@r", embeddings, labels, given)


def r_precision(
    embeddings: Any,
    labels: Any,
    ref_emb: Any = None,
    ref_labels: Any = None,
    *,
    similarity: str = "cosine",
    own_index: Any = None,
    relevance: Relevance | None = None,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
) -> float:
    """Mean share of the R nearest candidates that is right, R being how many there are.

    Args and errors as in :func:`fastdml.metrics.evaluate`.
    """
    given = (ref_emb, ref_labels, similarity, None, own_index, relevance, backend, block_bytes)
    return _one("r_precision", embeddings, labels, given)


def mean_average_precision(
    embeddings: Any,
    labels: Any,
    ref_emb: Any = None,
    ref_labels: Any = None,
    *,
    k: int | None = None,
    similarity: str = "cosine",
    own_index: Any = None,
    relevance: Relevance | None = None,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
) -> float:
    """Mean average precision over all candidates, or of the first ``k``, over min(R, k).

    Args and errors as in :func:`fastdml.metrics.evaluate`.
    """
    given = (ref_emb, ref_labels, similarity, None, own_index, relevance, backend, block_bytes)
    name = "map" if k is None else f"map@{check.whole(k, 'k', 1)}"
    return _one(name, embeddings, labels, given)


def mean_reciprocal_rank(
    embeddings: Any,
    labels: Any,
    ref_emb: Any = None,
    ref_labels: Any = None,
    *,
    similarity: str = "cosine",
    own_index: Any = None,
    relevance: Relevance | None = None,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
) -> float:
    """Mean of 1 / place of the first right candidate.

    Args and errors as in :func:`fastdml.metrics.evaluate`.
    """
    given = (ref_emb, ref_labels, similarity, None, own_index, relevance, backend, block_bytes)
    return _one("mrr", embeddings, labels, given)


def pair_auc(
    embeddings: Any,
    labels: Any,
    ref_emb: Any = None,
    ref_labels: Any = None,
    *,
    similarity: str = "cosine",
    own_index: Any = None,
    relevance: Relevance | None = None,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
) -> float:
    """Area under the ROC curve of all pairs: the chance that a right pair is more alike than a wrong one.

    Exact up to 2^15 different scores of right pairs; with more, to within 2^-16 of the true value
    (``Evaluation.pairs.auc_resolution()`` says how close; usually it is far closer).

    Args and errors as in :func:`fastdml.metrics.evaluate`.
    """
    given = (ref_emb, ref_labels, similarity, None, own_index, relevance, backend, block_bytes)
    return _one("auc", embeddings, labels, given)


def tar_at_far(
    embeddings: Any,
    labels: Any,
    far: float | Iterable[float] = (1e-3, 1e-2),
    ref_emb: Any = None,
    ref_labels: Any = None,
    *,
    similarity: str = "cosine",
    own_index: Any = None,
    relevance: Relevance | None = None,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
) -> dict[float, float]:
    """Share of right pairs accepted by the threshold that accepts at most a share ``far`` of wrong ones.

    The verification rate of face recognition (Grother, NIST FRVT). Exact up to 2^15 different scores of right
    pairs; with more, thresholds are that many quantiles, and it may be lower by about 3e-5.

    Args and errors as in :func:`fastdml.metrics.evaluate`.
    """
    fars = inputs.fractions(far, "far")
    asked = definitions.asked("tar@far", [1], fars)
    given = (ref_emb, ref_labels, similarity, None, own_index, relevance, backend, block_bytes)
    values = _run(asked, embeddings, labels, given)
    return {f: values[a.key] for f, a in zip(fars, asked, strict=True)}


def alignment(
    embeddings: Any,
    labels: Any,
    ref_emb: Any = None,
    ref_labels: Any = None,
    *,
    alpha: float = 2.0,
    own_index: Any = None,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
) -> float:
    """Mean of |x - y|^alpha over right pairs, of rows brought to length 1 (Wang, Isola, ICML 2020, eq. 2)."""
    power = check.positive(alpha, "alpha")
    problem, relation = _setup(
        embeddings, labels, ref_emb, ref_labels, "cosine", None, own_index, None, backend
    )
    if not relation.count.any():
        raise ValueError("labels: expected at least one query with a candidate of its own class")
    return alignment_of(problem, relation, power, inputs.block_bytes(block_bytes))


def uniformity(
    embeddings: Any,
    ref_emb: Any = None,
    *,
    t: float = UNIFORMITY_T,
    own_index: Any = None,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
) -> float:
    """Logarithm of the mean of exp(-t |x - y|^2) over all pairs, of rows brought to length 1
    (Wang, Isola, ICML 2020, eq. 3)."""
    rate = check.positive(t, "t")
    problem = make_problem(embeddings, ref_emb, "cosine", None, own_index, backend)
    return uniformity_of(problem, rate, inputs.block_bytes(block_bytes))


def nmi(embeddings: Any, labels: Any, *, similarity: str = "cosine", seed: int = 0) -> float:
    """Normalised mutual information of k-means clusters and classes; needs scikit-learn."""
    given = (None, None, similarity, None, None, None, "auto", BLOCK_BYTES)
    return _one("nmi", embeddings, labels, given, inputs.seed(seed))


def ami(embeddings: Any, labels: Any, *, similarity: str = "cosine", seed: int = 0) -> float:
    """The same, adjusted for chance (Vinh, Epps, Bailey, JMLR 2010)."""
    given = (None, None, similarity, None, None, None, "auto", BLOCK_BYTES)
    return _one("ami", embeddings, labels, given, inputs.seed(seed))


def retrieval_metrics(
    embeddings: Any,
    labels: Any,
    k: int | Iterable[int] = (1, 4),
    ref_emb: Any = None,
    ref_labels: Any = None,
    *,
    similarity: str = "cosine",
    distance: str | None = None,
    own_index: Any = None,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
) -> dict[str, float]:
    """:func:`recall_at_k` and :func:`map_at_r` from one sweep over the similarities.

    Args:
        embeddings: ``[N, D]`` floating point queries, of any norm: a tensor, an array or nested lists.
        labels: ``[N]`` integers or strings, any values.
        k: one or several neighbour counts, each at least 1 (more than there are candidates is
            allowed and means all of them).
        ref_emb: ``[M, D]`` gallery; None searches ``embeddings`` itself without the query.
        ref_labels: ``[M]`` classes of the gallery; given exactly when ``ref_emb`` is.
        similarity: one of the losses' names; distances rank the nearest first.
        distance: the former name of that argument: ``"cosine"``, ``"euclidean"`` (raw_distance) or ``"dot"``.
        own_index: ``[N]`` row of the gallery that is the query itself, -1: none.
        backend: "auto", "native" or "chunked".
        block_bytes: upper bound of the similarities held at once, at least one row of them.

    Returns:
        ``{"recall@1": ..., "recall@4": ..., "map@r": ...}``, each in [0, 1].

    Raises:
        ValueError: shapes, types or devices do not fit, an embedding is not finite, or no query
            has a candidate of its own class.
    """
    asked = definitions.asked(("recall", "map@r"), inputs.integers(k, "k"), [1])
    given = (ref_emb, ref_labels, similarity, distance, own_index, None, backend, block_bytes)
    return _run(asked, embeddings, labels, given)


def nearest_neighbours(
    embeddings: Any,
    k: int,
    ref_emb: Any = None,
    *,
    similarity: str = "cosine",
    distance: str | None = None,
    own_index: Any = None,
    with_similarities: bool = False,
    backend: str = "auto",
    block_bytes: int = BLOCK_BYTES,
) -> Any:
    """Indices ``[N, k]`` of the ``k`` nearest candidates of every query, nearest first.

    Of equally near candidates the one of the lower index comes first.

    Args:
        embeddings, ref_emb, similarity, distance, own_index, backend, block_bytes: as in
            :func:`retrieval_metrics`.
        k: how many, at most the number of candidates.
        with_similarities: return (indices, similarities) instead.

    Returns:
        int64, a tensor on the device of ``embeddings`` where that is a tensor, else an array. Where
        ``own_index`` leaves a query fewer than k candidates, -1 (and NaN) fills up.

    Raises:
        ValueError: as in :func:`retrieval_metrics`.
    """
    problem = make_problem(embeddings, ref_emb, similarity, distance, own_index, backend)
    k = check.whole(k, "k", 1, problem.most)
    block_bytes = inputs.block_bytes(block_bytes)
    index = np.empty((len(problem.queries), k), dtype=np.int64)
    numbers: np.ndarray = np.empty((len(problem.queries), k), dtype=problem.dtype)
    for found in sweep(problem, Wanted(k=k), block_bytes):
        assert found.index is not None and found.index_scores is not None
        index[found.queries] = found.index
        numbers[found.queries] = problem.similarity(found.index_scores)
    if isinstance(embeddings, torch.Tensor):
        found_index = torch.from_numpy(index).to(embeddings.device)
        if not with_similarities:
            return found_index
        return found_index, torch.from_numpy(numbers).to(embeddings.device)
    return (index, numbers) if with_similarities else index


def _run(asked: list[definitions.Asked], embeddings: Any, labels: Any, given: tuple, seed: int = 0) -> dict:
    *about, block_bytes = given
    problem, relation = _setup(embeddings, labels, *about)
    block_bytes = inputs.block_bytes(block_bytes)
    return run(problem, relation, asked, seed=seed, block_bytes=block_bytes).means


def _one(name: str, embeddings: Any, labels: Any, given: tuple, seed: int = 0) -> float:
    asked = [a for a in definitions.asked(name, [1], [1.0]) if a.key == name]
    return _run(asked, embeddings, labels, given, seed)[name]


def _at_ks(name: str, embeddings: Any, labels: Any, k: Any, given: tuple) -> dict[int, float]:
    ks = inputs.integers(k, "k")
    values = _run([definitions.Asked(f"{name}@{n}", name, n) for n in ks], embeddings, labels, given)
    return {n: values[f"{name}@{n}"] for n in ks}
