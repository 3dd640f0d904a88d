"""Results of an evaluation: means, values by query and by class, confidence intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from ..engine import check
from . import inputs
from .pairs import PairCounts

_DRAWS = 1 << 22  # indices drawn at once by the bootstrap


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation(Mapping[str, float]):
    """A mapping of metrics to their values, such as ``result["recall@1"]``, with more to ask.

    Attributes:
        means: mean over the queries that have a right candidate; of metrics of pairs or clusters the value.
        per_query: ``[Q]`` float64 by metric, NaN for queries without a right candidate.
        answerable: ``[Q]`` bool, which queries have one.
        labels: ``[Q]`` index into `classes` of every query; None where labels are sets.
        classes: the labels themselves, sorted.
        pairs: counts of all pairs by score, where a metric of pairs was asked for.
        neighbours: ``[Q, k]`` indices of the nearest candidates, where ``neighbours=k`` asked for them.
    """

    means: dict[str, float]
    per_query: dict[str, np.ndarray]
    answerable: np.ndarray
    labels: np.ndarray | None = None
    classes: np.ndarray | None = None
    pairs: PairCounts | None = None
    neighbours: np.ndarray | None = None

    def __getitem__(self, key: str) -> float:
        return self.means[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.means)

    def __len__(self) -> int:
        return len(self.means)

    def __repr__(self) -> str:
        shown = ", ".join(f"{k}: {v:.4f}" for k, v in self.means.items())
        return f"Evaluation({shown}; {int(self.answerable.sum())} of {len(self.answerable)} queries)"

    def per_class(self, metric: str) -> dict[int | str, float]:
        """Mean of a metric over the queries of each class that has a query with a right candidate.

        Raises:
            ValueError: it is not a metric of queries, or labels are sets.
        """
        values, labels = self._of_queries(metric), self._labels()
        assert self.classes is not None
        count = np.bincount(labels[self.answerable], minlength=len(self.classes))
        total = np.bincount(
            labels[self.answerable], weights=values[self.answerable], minlength=len(self.classes)
        )
        return {
            self.classes[c].item(): float(total[c] / count[c]) for c in np.flatnonzero(count)
        }

    def interval(
        self,
        metric: str,
        level: float = 0.95,
        samples: int = 1000,
        seed: int = 0,
        by: str = "query",
    ) -> tuple[float, float]:
        """Percentile bootstrap of the mean (Efron, Tibshirani, 1993, section 13.3).

        Args:
            metric: a metric of queries.
            level: of confidence, between 0 and 1.
            samples: how often the queries are drawn again.
            seed: of the draws.
            by: ``"query"``, or ``"class"`` to draw whole classes: queries of one class are alike, and new
                classes are what one wants to know about.

        Returns:
            (low, high).

        Raises:
            ValueError: an argument is not as described.
        """
        values = self._of_queries(metric)[self.answerable]
        if not isinstance(level, (int, float)) or not 0 < level < 1:
            raise ValueError(f"level: expected a number between 0 and 1, got {level!r}")
        samples = check.whole(samples, "samples", 1)
        seed = inputs.seed(seed)
        if by not in ("query", "class"):
            raise ValueError(f"by: expected 'query' or 'class', got {by!r}")
        weight = np.ones(len(values))
        if by == "class":
            group = np.unique(self._labels()[self.answerable], return_inverse=True)[1]
            weight = np.bincount(group).astype(np.float64)
            values = np.bincount(group, weights=values)
        rng = np.random.default_rng(seed)
        means = np.empty(samples)
        step = max(1, _DRAWS // len(values))
        for start in range(0, samples, step):
            drawn = rng.integers(0, len(values), (min(step, samples - start), len(values)))
            means[start : start + step] = values[drawn].sum(1) / weight[drawn].sum(1)
        low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def _of_queries(self, metric: str) -> np.ndarray:
        if metric not in self.per_query:
            raise ValueError(f"metric: expected one of {sorted(self.per_query)}, got {metric!r}")
        return self.per_query[metric]

    def _labels(self) -> np.ndarray:
        if self.labels is None:
            raise ValueError("labels: expected one class per query, which results by class need")
        return self.labels
