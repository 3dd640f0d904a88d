"""All pairs by their score: how well one threshold tells right pairs from wrong ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..engine import library

# Different scores of right pairs are thresholds, and counts are exact, up to so many; of more, so many
# quantiles are. More would not fit in the cache.
THRESHOLDS = 1 << 15
SAMPLE = 1 << 20  # right pairs whose scores are looked at for that,
SAMPLED_QUERIES = 1 << 10  # of so many queries at least


class PairTally:
    """Numbers of right and of wrong pairs at each threshold and between thresholds.

    Cell 2 u + 1 holds the pairs whose score is threshold u, cell 2 u those between its neighbours.

    Attributes:
        thresholds: ``[T]`` ascending scores, edges of bins among them.
        right: ``[2 T + 1]`` right pairs.
    """

    def __init__(self, thresholds: np.ndarray, edges: np.ndarray | None = None) -> None:
        self.edges = edges
        if edges is not None:
            thresholds = np.unique(np.concatenate([thresholds, edges]))
        self.thresholds = thresholds
        self.right = np.zeros(2 * len(thresholds) + 1, dtype=np.int64)
        self._all = np.zeros_like(self.right)
        self._native: Any = None
        self._times = 1

    def native(self) -> Any:
        """The compiled library's counter, which a sweep adds to."""
        if self._native is None:
            compiled = library.load()
            assert compiled is not None
            double = self.thresholds.dtype == np.float64
            make = compiled.PairCounts64 if double else compiled.PairCounts32
            self._native = make(self.thresholds)
        return self._native

    def add(self, scores: torch.Tensor) -> None:
        """Pairs of either kind."""
        known = torch.from_numpy(self.thresholds).to(scores.device)
        place = torch.searchsorted(known, scores, right=True)
        at = (place > 0) & (known[(place - 1).clamp(min=0)] == scores)
        cells = torch.bincount(2 * place - at.long(), minlength=len(self._all))
        self._all += cells.cpu().numpy()

    def add_right(self, scores: np.ndarray, times: int = 1) -> None:
        """Right pairs. times: how often each is in the scores of all blocks together."""
        self._times = times
        place = np.searchsorted(self.thresholds, scores, side="right")
        at = (place > 0) & (self.thresholds[np.maximum(place - 1, 0)] == scores)
        self.right += np.bincount(2 * place - at, minlength=len(self.right))

    def finish(self, pairs: int) -> PairCounts:
        """pairs: how many there are."""
        every = self._all.copy()
        if self._native is not None:
            every += self._native.cells.astype(np.int64)
        every[0] = pairs - every[1:].sum()  # what lies below all thresholds need not be counted
        right = self.right // self._times
        return PairCounts(self.thresholds, right, every - right, self.edges)


class PairCounts:
    """Right and wrong pairs by score, ready to be asked.

    Attributes:
        thresholds: ``[T]`` ascending scores.
        right, wrong: ``[2 T + 1]`` pairs at and between them.
        edges: of the bins of :meth:`histogram`, or None.
    """

    def __init__(
        self,
        thresholds: np.ndarray,
        right: np.ndarray,
        wrong: np.ndarray,
        edges: np.ndarray | None = None,
    ) -> None:
        self.thresholds, self.right, self.wrong, self.edges = thresholds, right, wrong, edges

    def check(self, name: str) -> None:
        if not self.wrong.sum():
            raise ValueError(f"labels: expected a pair of different classes, which {name} needs")

    def auc(self) -> float:
        """Share of (right, wrong) pairs of pairs of which the right one scores higher; ties count half.

        Exact to `auc_resolution`, which is 0 up to 2^15 different scores of right pairs.
        """
        self.check("auc")
        below = np.cumsum(self.wrong) - self.wrong
        won = (self.right.astype(np.float64) * (below + self.wrong / 2)).sum()
        return float(won / (float(self.right.sum()) * float(self.wrong.sum())))

    def auc_resolution(self) -> float:
        """How far :meth:`auc` may be off, because pairs between two thresholds are not told apart."""
        undecided = (self.right[::2].astype(np.float64) * self.wrong[::2]).sum() / 2
        return float(undecided / (float(self.right.sum()) * float(self.wrong.sum())))

    def tar_at_far(self, far: float) -> float:
        """Largest share of right pairs that a threshold accepts while it accepts at most a share `far` of
        the wrong ones."""
        self.check("tar@far")
        # Acceptance begins at a threshold (odd cells) or right above it (even ones).
        rejected = np.cumsum(self.wrong) - self.wrong
        accepted = self.wrong.sum() - rejected
        allowed = np.flatnonzero(accepted / self.wrong.sum() <= far)  # 0.29 * 100 is below 29
        if not len(allowed):
            return 0.0
        return float(self.right[allowed[0] :].sum() / self.right.sum())

    def histogram(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(edges ``[b + 1]``, right and wrong pairs ``[b]``); the outer bins have what lies beyond, too."""
        if self.edges is None:
            raise ValueError("edges: expected bins, which only an evaluation for a report has")
        cuts = 2 * np.searchsorted(self.thresholds, self.edges[1:-1]) + 1
        right, wrong = (
            np.array([part.sum() for part in np.split(counts, cuts)])
            for counts in (self.right, self.wrong)
        )
        return self.edges, right, wrong

    def curve(self, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
        """(false, true) acceptance rates, ascending, at thresholds spread over the curve."""
        true = np.cumsum(self.right[::-1]) / self.right.sum()
        false = np.cumsum(self.wrong[::-1]) / max(1, self.wrong.sum())
        grid = np.concatenate([np.logspace(-6, 0, points), np.linspace(0, 1, points)])
        at = np.unique(np.searchsorted(false, np.sort(grid), side="right").clip(1, len(false)) - 1)
        return np.append(false[at], 1.0), np.append(true[at], 1.0)


def thresholds_of(scores: np.ndarray) -> np.ndarray:
    """Distinct ascending thresholds: the scores of right pairs, or quantiles where there are too many."""
    found = np.unique(scores)
    if len(found) > THRESHOLDS:
        ordered = np.sort(scores)
        found = np.unique(ordered[np.linspace(0, len(ordered) - 1, THRESHOLDS).astype(np.int64)])
    return found
