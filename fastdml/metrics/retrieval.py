"""Recall@k and MAP@R, exact, one block of queries at a time: no N x N matrix ever exists.

Every function takes either one set (each item queries all the others, itself excluded) or
queries plus a gallery in ``ref_emb`` and ``ref_labels`` (every gallery item is a candidate).
Queries whose class has no candidate cannot be answered and are left out of the mean.

A tie between a right and a wrong candidate counts against the query: an embedding that maps
everything to one point scores 0, not 1. Low-precision embeddings (bf16, fp16) are compared in
float32, float64 ones in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

_BLOCK_BYTES = 32 << 20  # of similarities held at once, unless the caller says otherwise


def recall_at_k(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    k: int | Iterable[int] = (1, 4),
    ref_emb: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    distance: str = "cosine",
    block_bytes: int = _BLOCK_BYTES,
) -> dict[int, float]:
    """Share of queries with an item of their class among their ``k`` nearest candidates.

    Jégou, Douze, Schmid, *Product quantization for nearest neighbor search*, TPAMI 2011, in the
    form usual in metric learning (Oh Song et al., CVPR 2016).

    Args and errors as in :func:`retrieval_metrics`.

    Returns:
        ``{k: recall}``, each in [0, 1].
    """
    ks = _as_ks(k)
    values = _evaluate(embeddings, labels, ks, False, ref_emb, ref_labels, distance, block_bytes)
    return {k: values[f"recall@{k}"] for k in ks}


def map_at_r(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    ref_emb: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    distance: str = "cosine",
    block_bytes: int = _BLOCK_BYTES,
) -> float:
    r"""Mean average precision at R (Musgrave, Belongie, Lim, ECCV 2020, eq. 4 and 5).

    :math:`\mathrm{mean}_q \frac1R \sum_{i=1}^{R} P(i)\,\mathrm{rel}(i)`, with ``R`` the number of
    candidates of the query's class and ``P(i)`` the precision of its first ``i`` neighbours.

    Args and errors as in :func:`retrieval_metrics`.

    Returns:
        A number in [0, 1].
    """
    values = _evaluate(embeddings, labels, [], True, ref_emb, ref_labels, distance, block_bytes)
    return values["map@r"]


def retrieval_metrics(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    k: int | Iterable[int] = (1, 4),
    ref_emb: torch.Tensor | None = None,
    ref_labels: torch.Tensor | None = None,
    *,
    distance: str = "cosine",
    block_bytes: int = _BLOCK_BYTES,
) -> dict[str, float]:
    """:func:`recall_at_k` and :func:`map_at_r` from one sweep over the similarities.

    Args:
        embeddings: ``[N, D]`` floating point queries, of any norm.
        labels: ``[N]`` integer classes, any values.
        k: one or several neighbour counts, each at least 1 (more than there are candidates is
            allowed and means all of them).
        ref_emb: ``[M, D]`` gallery; None searches ``embeddings`` itself without the query.
        ref_labels: ``[M]`` classes of the gallery; given exactly when ``ref_emb`` is.
        distance: ``"cosine"``, ``"euclidean"`` or ``"dot"`` (largest product is nearest).
        block_bytes: upper bound of the similarities held at once, at least one row of them.

    Returns:
        ``{"recall@1": ..., "recall@4": ..., "map@r": ...}``, each in [0, 1].

    Raises:
        ValueError: shapes, types or devices do not fit, an embedding is not finite, or no query
            has a candidate of its own class.
    """
    return _evaluate(
        embeddings, labels, _as_ks(k), True, ref_emb, ref_labels, distance, block_bytes
    )


def nearest_neighbours(
    embeddings: torch.Tensor,
    k: int,
    ref_emb: torch.Tensor | None = None,
    *,
    distance: str = "cosine",
    block_bytes: int = _BLOCK_BYTES,
) -> torch.Tensor:
    """Indices ``[N, k]`` of the ``k`` nearest candidates of every query, nearest first.

    Arguments and errors as in :func:`retrieval_metrics`; ``k`` may not exceed the number of
    candidates.
    """
    _check_embeddings("embeddings", embeddings)
    if ref_emb is not None:
        _check_gallery(embeddings, ref_emb)
    candidates = len(embeddings) - 1 if ref_emb is None else len(ref_emb)
    if not 1 <= k <= candidates:
        raise ValueError(f"k: expected 1 to {candidates} (the candidates), got {k}")
    blocks = _score_blocks(embeddings, ref_emb, distance, block_bytes)
    return torch.cat([scores.topk(k, dim=1).indices for _, scores in blocks])


@torch.no_grad()
def _evaluate(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    ks: list[int],
    want_map: bool,
    ref_emb: torch.Tensor | None,
    ref_labels: torch.Tensor | None,
    distance: str,
    block_bytes: int,
) -> dict[str, float]:
    _check_embeddings("embeddings", embeddings)
    _check_labels("labels", labels, embeddings)
    if (ref_emb is None) != (ref_labels is None):
        raise ValueError("ref_labels: expected exactly when ref_emb is given, and only then")
    gallery_labels = labels
    if ref_emb is not None and ref_labels is not None:
        _check_gallery(embeddings, ref_emb)
        _check_labels("ref_labels", ref_labels, ref_emb)
        gallery_labels = ref_labels

    relevant = _count_candidates(labels, gallery_labels) - (1 if ref_emb is None else 0)
    answerable = int((relevant > 0).sum())
    if not answerable:
        raise ValueError("labels: expected at least one query with a candidate of its own class")

    hits = torch.zeros(len(ks), dtype=torch.int64, device=labels.device)
    precision = torch.zeros((), dtype=torch.float64, device=labels.device)
    for rows, scores in _score_blocks(embeddings, ref_emb, distance, block_bytes):
        query, r = labels[rows, None], relevant[rows]
        same = query == gallery_labels
        # One step down for every right candidate: it now ranks below a wrong one of equal score.
        scores[same] = torch.nextafter(scores[same], scores.new_tensor(-torch.inf))
        depth = max([*ks, int(r.max()) if want_map else 1])
        found = scores.topk(min(depth, scores.shape[1]), dim=1).indices
        right = gallery_labels[found] == query
        if ref_emb is None:  # the query itself comes last, and is seen when all are asked for
            right &= found != torch.arange(rows.start, rows.stop, device=found.device)[:, None]
        for slot, k in enumerate(ks):
            hits[slot] += right[:, :k].any(dim=1).sum()
        if want_map:
            place = torch.arange(1, right.shape[1] + 1, device=right.device)
            counted = right & (place <= r[:, None])
            share = counted.cumsum(dim=1).to(torch.float64) / place * counted
            precision += (share.sum(dim=1) / r.clamp(min=1)).sum()

    values = {f"recall@{k}": int(hit) / answerable for k, hit in zip(ks, hits, strict=True)}
    if want_map:
        values["map@r"] = float(precision) / answerable
    return values


@torch.no_grad()
def _score_blocks(
    embeddings: torch.Tensor, ref_emb: torch.Tensor | None, distance: str, block_bytes: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yields (rows, scores ``[rows, M]``), larger is nearer; the self pair scores -inf."""
    if distance not in ("cosine", "euclidean", "dot"):
        raise ValueError(f"distance: expected 'cosine', 'euclidean' or 'dot', got {distance!r}")
    if block_bytes < 1:
        raise ValueError(f"block_bytes: expected a positive number, got {block_bytes}")
    queries = _compute_type(embeddings)
    gallery = queries if ref_emb is None else _compute_type(ref_emb).to(queries.dtype)
    offset = None
    if distance == "cosine":
        queries = torch.nn.functional.normalize(queries)
        gallery = queries if ref_emb is None else torch.nn.functional.normalize(gallery)
    elif distance == "euclidean":
        # -|x - y|^2 / 2 = x.y - |y|^2 / 2 - |x|^2 / 2, whose last term no ranking sees. Distances
        # do not change with the origin; near the data, less is lost to cancellation.
        origin = gallery.mean(dim=0)
        queries = queries - origin
        gallery = queries if ref_emb is None else gallery - origin
        offset = gallery.square().sum(dim=1) / -2
    step = max(1, block_bytes // (len(gallery) * queries.element_size()))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        scores = queries[rows] @ gallery.T
        if offset is not None:
            scores += offset
        if ref_emb is None:
            scores.diagonal(start).fill_(-torch.inf)
        yield rows, scores


def _compute_type(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def _count_candidates(labels: torch.Tensor, gallery_labels: torch.Tensor) -> torch.Tensor:
    """Number of gallery items of each query's class."""
    classes, counts = gallery_labels.unique(return_counts=True)
    at = torch.searchsorted(classes, labels).clamp(max=len(classes) - 1)
    return torch.where(classes[at] == labels, counts[at], 0)


def _as_ks(k: int | Iterable[int]) -> list[int]:
    ks = [k] if isinstance(k, int) else list(k)
    if not ks or any(not isinstance(v, int) or v < 1 for v in ks):
        raise ValueError(f"k: expected one or more integers of at least 1, got {k!r}")
    return ks


def _check_embeddings(name: str, x: torch.Tensor) -> None:
    if x.ndim != 2 or 0 in x.shape or not x.is_floating_point():
        raise ValueError(
            f"{name}: expected a non-empty floating point [N, D] tensor, "
            f"got {x.dtype} of shape {tuple(x.shape)}"
        )
    if not bool(_compute_type(x).square().sum(dim=1).isfinite().all()):
        raise ValueError(
            f"{name}: expected finite rows, found NaN, infinity or a squared norm that overflows"
        )


def _check_gallery(embeddings: torch.Tensor, ref_emb: torch.Tensor) -> None:
    _check_embeddings("ref_emb", ref_emb)
    if ref_emb.shape[1] != embeddings.shape[1] or ref_emb.device != embeddings.device:
        raise ValueError(
            f"ref_emb: expected dimension {embeddings.shape[1]} on {embeddings.device} as in "
            f"embeddings, got {ref_emb.shape[1]} on {ref_emb.device}"
        )


def _check_labels(name: str, labels: torch.Tensor, embeddings: torch.Tensor) -> None:
    if labels.ndim != 1 or len(labels) != len(embeddings) or labels.is_floating_point():
        raise ValueError(
            f"{name}: expected {len(embeddings)} integers, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if labels.device != embeddings.device:
        raise ValueError(
            f"{name}: expected on {embeddings.device} like the embeddings, got {labels.device}"
        )
