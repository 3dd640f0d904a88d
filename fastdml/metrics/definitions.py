"""Every metric of a ranking is a function of the places of the right candidates.

Of one query with R right candidates at places r_1 < r_2 < ... < r_R among all candidates; the p-th of them
has p right ones up to its place, so precision there is p / r_p. A candidate of equal score that is wrong
comes first: an embedding that maps everything to one point scores 0.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Places of the right candidates of q queries.

    Attributes:
        ranks: ``[P]`` places, ascending within a query.
        start: ``[q + 1]`` where a query's begin.
        candidates: ``[q]`` how many candidates a query has.
        gains: ``[P]`` what each is worth; None: 1.
    """

    ranks: np.ndarray
    start: np.ndarray
    candidates: np.ndarray
    gains: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = np.diff(self.start)
        query = np.repeat(np.arange(len(count)), count)
        # p of r_p, and the query of each.
        object.__setattr__(self, "count", count)
        object.__setattr__(self, "query", query)
        object.__setattr__(self, "place", np.arange(1, len(query) + 1) - self.start[query])

    count: np.ndarray = dataclasses.field(init=False)
    query: np.ndarray = dataclasses.field(init=False)
    place: np.ndarray = dataclasses.field(init=False)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """``[q]`` sums of a value of every right candidate, in float64."""
        return np.bincount(self.query, weights=values, minlength=len(self.count))

    def first(self) -> np.ndarray:
        """``[q]`` place of the first right candidate, of queries that have one."""
        at = np.minimum(self.start[:-1], max(0, len(self.ranks) - 1))
        return self.ranks[at] if len(self.ranks) else np.ones(len(self.count))

    def cut(self, k: int) -> np.ndarray:
        """``[q]`` how many of the first k there are: k, or all candidates."""
        return np.minimum(k, self.candidates)


def recall(r: Ranking, k: int) -> np.ndarray:
    """1 where one of the first k is right (Jégou et al., TPAMI 2011, as usual in metric learning)."""
    return (r.first() <= k).astype(np.float64)


def precision(r: Ranking, k: int) -> np.ndarray:
    """Share of the first k (of all, where there are fewer) that is right."""
    return r.sum(r.ranks <= k) / np.maximum(r.cut(k), 1)


def r_precision(r: Ranking, k: int | None = None) -> np.ndarray:
    """Share of the first R that is right (Musgrave et al., ECCV 2020, section 3.3)."""
    return r.sum(r.ranks <= r.count[r.query]) / np.maximum(r.count, 1)


def map_at_r(r: Ranking, k: int | None = None) -> np.ndarray:
    """Sum of the precisions at right candidates among the first R, over R (Musgrave et al., eq. 4, 5)."""
    inside = r.ranks <= r.count[r.query]
    return r.sum(r.place / r.ranks * inside) / np.maximum(r.count, 1)


def average_precision(r: Ranking, k: int | None = None) -> np.ndarray:
    """Mean precision at the right candidates; at k: of those among the first k, over min(R, k)
    (Weyand et al., CVPR 2020, eq. 1)."""
    if k is None:
        return r.sum(r.place / r.ranks) / np.maximum(r.count, 1)
    return r.sum(r.place / r.ranks * (r.ranks <= k)) / np.maximum(np.minimum(r.count, k), 1)


def ndcg(r: Ranking, k: int | None = None) -> np.ndarray:
    """Sum of gain / log2(1 + place), of the first k, over its largest value (Järvelin, Kekäläinen,
    TOIS 2002, with the discount of Burges et al. 2005 and gains as they are)."""
    gains = np.ones(len(r.ranks)) if r.gains is None else r.gains.astype(np.float64)
    best = gains
    if r.gains is not None:
        best = gains[np.lexsort((-gains, r.query))]
    limit = np.inf if k is None else k
    found = r.sum(gains / np.log2(1.0 + r.ranks) * (r.ranks <= limit))
    ideal = r.sum(best / np.log2(1.0 + r.place) * (r.place <= limit))
    return found / np.where(ideal > 0, ideal, 1)


def reciprocal_rank(r: Ranking, k: int | None = None) -> np.ndarray:
    """1 / place of the first right candidate (Voorhees, TREC-8)."""
    return 1 / r.first()


Definition = Callable[[Ranking, Any], np.ndarray]
# name -> (definition, whether it takes k: always, never or either way)
RANKED: dict[str, tuple[Definition, str]] = {
    "recall": (recall, "always"),
    "precision": (precision, "always"),
    "r_precision": (r_precision, "never"),
    "map@r": (map_at_r, "never"),
    "map": (average_precision, "maybe"),
    "ndcg": (ndcg, "maybe"),
    "mrr": (reciprocal_rank, "never"),
}
PAIRED = ("auc", "tar@far")
SPREAD = ("alignment", "uniformity")
CLUSTERED = ("nmi", "ami")
NAMES = (*RANKED, *PAIRED, *SPREAD, *CLUSTERED)
DEFAULT = (*RANKED, *PAIRED)


@dataclasses.dataclass(frozen=True)
class Asked:
    """One number to compute: its key in the results, the metric, and its k or false acceptance rate."""

    key: str
    name: str
    at: float | None = None


def at_rate(far: float) -> Asked:
    """TAR at a false acceptance rate, which its key tells exactly."""
    short = f"{far:g}"
    return Asked(f"tar@far={short if float(short) == far else repr(far)}", "tar@far", far)


def asked(
    metrics: str | Iterable[str | Asked] | None, ks: Sequence[int], fars: Sequence[float]
) -> list[Asked]:
    """The keys of some metrics: "recall" at every k, "recall@5" at 5, "tar@far" at every rate.

    None: the default ones; "all": every one there is.
    """
    if metrics is None:
        metrics = DEFAULT
    elif isinstance(metrics, str):
        metrics = NAMES if metrics == "all" else (metrics,)
    elif not isinstance(metrics, Iterable):
        raise ValueError(f"metrics: expected names of metrics, got {metrics!r}")
    found: list[Asked] = []
    for given in metrics:
        found += _expand(given, ks, fars)
    if not found:
        raise ValueError("metrics: expected at least one name")
    return list({a.key: a for a in found}.values())


def _expand(given: Any, ks: Sequence[int], fars: Sequence[float]) -> list[Asked]:
    if isinstance(given, Asked):
        return [given]
    if given == "tar@far":
        return [at_rate(f) for f in fars]
    if given in ("recall", "precision"):
        return [Asked(f"{given}@{k}", given, k) for k in ks]
    if given in ("map", "ndcg"):
        return [Asked(given, given), *(Asked(f"{given}@{k}", given, k) for k in ks)]
    if given in NAMES:
        return [Asked(given, given)]
    if isinstance(given, str):
        if match := re.fullmatch(r"(recall|precision|map|ndcg)@([1-9][0-9]{0,17})", given):
            return [Asked(given, match[1], int(match[2]))]
        if match := re.fullmatch(r"tar@far=([0-9.e+-]+)", given):
            try:
                far = float(match[1])
            except ValueError:
                far = 0.0
            if 0 < far <= 1:
                return [at_rate(far), Asked(given, "tar@far", far)]  # as it was spelt, too
    raise ValueError(
        f"metrics: expected names among {', '.join(NAMES)} (recall, precision, map and ndcg also as "
        f"'recall@10', tar@far as 'tar@far=0.001'), got {given!r}"
    )
