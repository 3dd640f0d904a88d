"""pytorch-metric-learning's AccuracyCalculator over the sweep: its options, its k, no faiss, no list of all
neighbours. Where results differ, and why: docs/metrics.md."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine import check
from . import inputs
from .definitions import Ranking
from .extras import require
from .problem import Problem, metric_of
from .problem import problem as make_problem
from .relevance import ByFunction, Relation, SameClass
from .sweep import Wanted, sweep

_LOGGER = logging.getLogger("fastdml")
_PREFIX = "calculate_"


class AccuracyCalculator:
    """Takes the place of ``pytorch_metric_learning.utils.accuracy_calculator.AccuracyCalculator``.

    Args:
        include, exclude: names of metrics: "precision_at_1", "r_precision", "mean_average_precision",
            "mean_average_precision_at_r", "mean_reciprocal_rank", "NMI", "AMI" (which need scikit-learn), and
            those of ``calculate_`` methods that a subclass adds. include empty: all.
        avg_of_avgs: the mean over classes of the mean of each.
        return_per_class: lists with a value per class of the queries, in the order of the labels.
        k: neighbours that are looked at: None: all, "max_bin_count": as many as the largest class has,
            or a number.
        label_comparison_fn: function of labels of queries ``[n, 1, ...]`` and of references ``[n, m, ...]``,
            to bool ``[n, m]``.
        device: where tensors are put; None: CUDA where there is some, else the CPU.
        knn_func: function (query, k, reference, ref_includes_query) to (distances, indices), instead of the
            exact search.
        kmeans_func: function (embeddings, clusters) to cluster numbers, instead of scikit-learn's.
        similarity: how embeddings are compared; theirs compares by the distance of raw embeddings.

    Raises:
        ValueError: an argument is not as described.
        NotImplementedError: "NMI" or "AMI" with a label_comparison_fn, as theirs.
    """

    def __init__(
        self,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        avg_of_avgs: bool = False,
        return_per_class: bool = False,
        k: int | str | None = None,
        label_comparison_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        device: torch.device | str | None = None,
        knn_func: Callable[..., Any] | None = None,
        kmeans_func: Callable[..., Any] | None = None,
        *,
        similarity: str = "raw_distance",
    ) -> None:
        methods = [name for name in dir(self) if name.startswith(_PREFIX)]
        known = {name.removeprefix(_PREFIX): getattr(self, name) for name in methods}
        self.original_function_dict = known
        self.original_function_dict = self._chosen(include, exclude)
        self.curr_function_dict = dict(self.original_function_dict)
        if avg_of_avgs and return_per_class:
            raise ValueError("avg_of_avgs and return_per_class are mutually exclusive")
        if k is not None and k != "max_bin_count":
            k = check.whole(k, "k", 1, check.BYTES, ", None or 'max_bin_count'")
        if label_comparison_fn is not None:
            if not callable(label_comparison_fn):
                raise ValueError(f"label_comparison_fn: expected a function, got {label_comparison_fn!r}")
            if set(self.requires_clustering()) & set(self.original_function_dict):
                raise NotImplementedError("Unsupported: clustering + custom label comparison")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.avg_of_avgs, self.return_per_class, self.k = avg_of_avgs, return_per_class, k
        self.label_comparison_fn, self.device = label_comparison_fn, torch.device(device)
        self.knn_func, self.kmeans_func = knn_func, kmeans_func or _kmeans
        self.similarity = metric_of(similarity, None).name

    def get_accuracy(
        self,
        query: Any,
        query_labels: Any,
        reference: Any = None,
        reference_labels: Any = None,
        ref_includes_query: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The metrics of queries against a reference set.

        Args:
            query: ``[N, D]`` tensor, array or list.
            query_labels: ``[N]``, or ``[N, ...]`` with a label_comparison_fn.
            reference: ``[M, D]``; None: the queries themselves.
            reference_labels: ``[M]`` or ``[M, ...]``.
            ref_includes_query: whether the first N rows of the reference are the queries.
            include, exclude: of the calculator's metrics, for this call.

        Returns:
            ``{name: value}``, values as `avg_of_avgs` and `return_per_class` say; NaN where no query has a
            right candidate.
        """
        one_set = reference is None
        query = self._tensor(query, "query")
        query_labels = self._labels(query_labels, "query_labels")
        if one_set:
            reference, reference_labels, ref_includes_query = query, query_labels, True
        else:
            reference = self._tensor(reference, "reference")
            reference_labels = self._labels(reference_labels, "reference_labels")
        if len(query) != len(query_labels) or len(reference) != len(reference_labels):
            raise ValueError("embeddings and labels must have the same length")
        if ref_includes_query and not one_set:
            first, labels = reference[: len(query)], reference_labels[: len(query)]
            same = first.shape == query.shape and torch.allclose(query, first.to(query.dtype))
            if not (same and labels.shape == query_labels.shape and bool((query_labels == labels).all())):
                raise ValueError(
                    "ref_includes_query: expected the first rows of reference and of reference_labels to "
                    "be those of query"
                )
        self.curr_function_dict = self._chosen(include, exclude)
        given: dict[str, Any] = {
            "query": query,
            "reference": reference,
            "query_labels": query_labels,
            "reference_labels": reference_labels,
            "ref_includes_query": ref_includes_query,
            "label_comparison_fn": self.label_comparison_fn or torch.eq,
        }
        mine = {name for name in self.curr_function_dict if _is_ours(self, name)}
        ranked = mine - set(self.requires_clustering())
        # All neighbours of all queries are listed for none that asks for clusters only.
        clustered = set(self.requires_clustering()) - set(self.requires_knn())
        foreign = set(self.curr_function_dict) - mine - clustered
        if ranked or foreign:
            given |= self._search(given, one_set, bool(ranked), bool(foreign))
        if set(self.requires_clustering()) & set(self.curr_function_dict):
            given["cluster_labels"] = self.get_cluster_labels(**given)
        return {name: metric(**given) for name, metric in self.curr_function_dict.items()}

    def _search(
        self, given: dict[str, Any], one_set: bool, ranked: bool, foreign: bool
    ) -> dict[str, Any]:
        query, reference = given["query"], given["reference"]
        own = None
        if given["ref_includes_query"] and not one_set:
            own = np.arange(len(query))
        problem = make_problem(query, None if one_set else reference, self.similarity, None, own, "auto")
        relation = self._relation(problem, given)
        known = relation.count > 0
        if not known.any():
            _LOGGER.warning("None of the query labels are in the reference set.")
        num_k = self.determine_k(relation.count, len(reference), given["ref_includes_query"])
        found: dict[str, Any] = {
            "not_lone_query_mask": torch.from_numpy(known),
            "right_candidates": relation.count,
            "classes": _classes(given["query_labels"]),
        }
        if self.knn_func is not None or foreign:
            distances, index = self._neighbours(problem, given, num_k)
            found |= {"knn_distances": distances, "knn_labels": given["reference_labels"][index]}
        if foreign:
            labels, of = given["query_labels"].unique(dim=0, return_inverse=True)
            count = torch.zeros(len(labels), dtype=torch.int64, device="cpu")
            count[of.cpu()] = torch.from_numpy(relation.count)
            # Theirs counts the query itself.
            found["label_counts"] = (labels, count + int(given["ref_includes_query"]))
            found["lone_query_labels"] = labels[(count == 0).to(labels.device)]
        if ranked and self.knn_func is None:
            found["per_query"] = _by_query(problem, relation, num_k)
        elif ranked:
            found["per_query"] = self._by_neighbours(found["knn_labels"], given, relation, num_k)
        return found

    def _relation(self, problem: Problem, given: dict[str, Any]) -> Relation:
        mine, theirs = given["query_labels"], given["reference_labels"]
        if self.label_comparison_fn is None:
            if mine.ndim != 1 or theirs.ndim != 1:
                raise ValueError("query_labels: expected [N], but with a label_comparison_fn")
            both = check.array(torch.cat([mine, theirs]))
            classes, numbers = np.unique(both, return_inverse=True)
            return SameClass(numbers[: len(mine)], numbers[len(mine) :], classes, problem.own)
        compare = self.label_comparison_fn

        def right(queries: Tensor, references: Tensor) -> Tensor:
            of, to = mine[queries.to(mine.device)], theirs[references.to(theirs.device)]
            return compare(of[:, None], to[None].expand(len(of), *to.shape))

        return ByFunction(right, len(mine), len(theirs), problem.own)

    def _neighbours(self, problem: Problem, given: dict[str, Any], k: int) -> tuple[Tensor, Tensor]:
        if self.knn_func is not None:
            return self.knn_func(given["query"], k, given["reference"], given["ref_includes_query"])
        parts = []
        for found in sweep(problem, Wanted(k=k)):
            assert found.index_scores is not None and found.index is not None
            parts.append((problem.similarity(found.index_scores), found.index))
        scores, index = (torch.from_numpy(np.concatenate(p)).to(self.device) for p in zip(*parts))
        return scores, index

    def _by_neighbours(
        self, knn_labels: Tensor, given: dict[str, Any], relation: Relation, k: int
    ) -> dict[str, np.ndarray]:
        """The same metrics from lists of neighbours that another search has found."""
        right = check.array(given["label_comparison_fn"](given["query_labels"][:, None], knn_labels))
        query, place = np.nonzero(right)
        start = np.concatenate([[0], np.cumsum(np.bincount(query, minlength=len(right)))])
        candidates = np.full(len(right), len(given["reference"]))
        return _values(Ranking(place + 1, start, candidates), relation.count, k)

    def determine_k(self, right: np.ndarray, references: int, ref_includes_query: bool) -> int:
        """How many neighbours count. right: ``[N]`` right candidates of every query."""
        candidates = references - int(ref_includes_query)
        most = int(right.max(initial=0))
        if self.k is None:
            return candidates
        if self.k == "max_bin_count":
            return max(1, most)
        k = int(self.k)
        if k < most and {"r_precision", "mean_average_precision_at_r"} & set(self.curr_function_dict):
            _LOGGER.warning(
                "k: %d is less than the largest class has (%d): r_precision and "
                "mean_average_precision_at_r are cut there; k='max_bin_count' would not", k, most
            )
        return min(k, candidates)

    # The metrics. A subclass adds its own: a method calculate_NAME that takes what theirs take.

    def calculate_precision_at_1(self, **given: Any) -> Any:
        return self._average("precision_at_1", given)

    def calculate_r_precision(self, **given: Any) -> Any:
        return self._average("r_precision", given)

    def calculate_mean_average_precision(self, **given: Any) -> Any:
        return self._average("mean_average_precision", given)

    def calculate_mean_average_precision_at_r(self, **given: Any) -> Any:
        return self._average("mean_average_precision_at_r", given)

    def calculate_mean_reciprocal_rank(self, **given: Any) -> Any:
        return self._average("mean_reciprocal_rank", given)

    def calculate_NMI(self, query_labels: Tensor, cluster_labels: Tensor, **given: Any) -> float:
        metrics = require("sklearn.metrics", "NMI needs", "metrics")
        return float(metrics.normalized_mutual_info_score(_numpy(query_labels), _numpy(cluster_labels)))

    def calculate_AMI(self, query_labels: Tensor, cluster_labels: Tensor, **given: Any) -> float:
        metrics = require("sklearn.metrics", "AMI needs", "metrics")
        return float(metrics.adjusted_mutual_info_score(_numpy(query_labels), _numpy(cluster_labels)))

    def get_cluster_labels(self, query: Tensor, query_labels: Tensor, **given: Any) -> Any:
        return self.kmeans_func(query, len(query_labels.flatten().unique()))

    def requires_clustering(self) -> list[str]:
        return ["NMI", "AMI"]

    def requires_knn(self) -> list[str]:
        return [*_RANKED]

    def get_curr_metrics(self) -> list[str]:
        return list(self.curr_function_dict)

    def description(self) -> str:
        return "avg_of_avgs" if self.avg_of_avgs else ""

    def _average(self, name: str, given: dict[str, Any]) -> Any:
        known = given["not_lone_query_mask"].numpy()
        values, classes = given["per_query"][name][known], given["classes"]
        if not len(values):
            count = len(np.unique(classes))
            return [float("nan")] * count if self.return_per_class else float("nan")
        if not (self.avg_of_avgs or self.return_per_class):
            return float(values.mean())
        _, of = np.unique(classes[known], return_inverse=True)
        means = np.bincount(of, weights=values) / np.bincount(of)
        return means.tolist() if self.return_per_class else float(means.mean())

    def _chosen(self, include: Sequence[str], exclude: Sequence[str]) -> dict[str, Any]:
        known = self.original_function_dict
        for given in (include, exclude):
            if not isinstance(given, (tuple, list)):
                raise TypeError(f"Arguments must be of type tuple, not {type(given)}.")
            if unknown := [name for name in given if name not in known]:
                raise ValueError(f"include, exclude: expected names among {list(known)}, got {unknown}")
        return {n: f for n, f in known.items() if (not include or n in include) and n not in exclude}

    def _tensor(self, x: Any, name: str) -> Tensor:
        given = inputs.embeddings(x, name)
        type_ = torch.float64 if given.is_double else torch.float32
        return given.tensor(0, len(given), type_, self.device)

    def _labels(self, y: Any, name: str) -> Tensor:
        try:
            found = y.detach() if isinstance(y, Tensor) else torch.from_numpy(np.array(y))
        except (TypeError, ValueError):
            raise ValueError(f"{name}: expected numbers: a tensor, an array or a list") from None
        return found.to(self.device)


def _is_ours(calculator: AccuracyCalculator, name: str) -> bool:
    """Whether a metric is one of this file's, and no subclass has its own."""
    return getattr(type(calculator), _PREFIX + name) is getattr(AccuracyCalculator, _PREFIX + name, None)


def _by_query(problem: Problem, relation: Relation, k: int) -> dict[str, np.ndarray]:
    values = {name: np.full(len(relation.count), np.nan) for name in _RANKED}
    for found in sweep(problem, Wanted(relation=relation)):
        assert found.ranks is not None and found.right is not None
        ranking = Ranking(found.ranks, found.right.start, problem.candidates[found.queries])
        for name, some in _values(ranking, ranking.count, k).items():
            values[name][found.queries] = some
    return values


def _values(r: Ranking, right: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Metrics by query from the first k neighbours alone; right: R of every query."""
    seen = r.ranks <= k
    inside = seen & (r.ranks <= right[r.query])
    precision = r.place / r.ranks
    of = np.maximum(right, 1)
    first = np.full(len(right), np.inf)
    np.minimum.at(first, r.query[seen], r.ranks[seen])
    return {
        "precision_at_1": (first <= 1).astype(np.float64),
        "r_precision": r.sum(inside) / np.minimum(of, k),
        "mean_average_precision": r.sum(precision * seen) / of,
        "mean_average_precision_at_r": r.sum(precision * inside) / of,
        "mean_reciprocal_rank": 1 / first,
    }


_RANKED = (
    "precision_at_1",
    "mean_average_precision",
    "mean_average_precision_at_r",
    "r_precision",
    "mean_reciprocal_rank",
)


def _classes(labels: Tensor) -> np.ndarray:
    """Class numbers of labels ``[N, ...]``, in the order of the labels."""
    found = _numpy(labels)
    return np.unique(found, axis=0, return_inverse=True)[1].reshape(-1)


def _numpy(x: Any) -> np.ndarray:
    return check.array(x) if isinstance(x, Tensor) else np.asarray(x)


def _kmeans(embeddings: Tensor, clusters: int) -> Tensor:
    cluster = require("sklearn.cluster", "NMI and AMI need", "metrics")
    found = cluster.KMeans(clusters, n_init=1, max_iter=20, random_state=0)
    return torch.from_numpy(found.fit_predict(_numpy(embeddings)))
