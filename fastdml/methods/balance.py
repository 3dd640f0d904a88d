"""Search for the balance of a contrastive loss, and what must be balanced with it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ..engine import check

Setting = dict[str, float]
Evaluate = Callable[[Setting, int], float]


@dataclasses.dataclass(frozen=True)
class Coordinate:
    """A positive number to search for, on a logarithmic scale.

    start, low, high: where the search begins and its bounds. power_of_two: only those, as of batch sizes.
    """

    start: float
    low: float
    high: float
    power_of_two: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "start", "high"):
            check.positive(getattr(self, name), name)
        if not self.low <= self.start <= self.high:
            raise ValueError(
                f"start: expected a number from {self.low:g} to {self.high:g}, got {self.start:g}"
            )
        if self.power_of_two and not self.low <= self.first <= self.high:
            raise ValueError(f"low, high: expected a power of two from {self.low:g} to {self.high:g}")

    @property
    def first(self) -> float:
        """Where the search begins: start, or the nearest power of two within the bounds."""
        value = _rounded(self.start, self.power_of_two)
        if self.power_of_two and not self.low <= value <= self.high:
            value *= 0.5 if value > self.high else 2.0
        return value

    def grid(self, at: float, ratio: float, points: int) -> list[float]:
        """Geometric grid around a value, the value itself left out; nearest first."""
        if self.power_of_two and ratio < 2:
            return []
        found = []
        for k in range(1, points // 2 + 1):
            for step in (ratio**-k, ratio**k):
                value = _rounded(at * step, self.power_of_two)
                if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9):
                    found.append(value)
        return found


@dataclasses.dataclass(frozen=True)
class Trial:
    """One evaluation: its setting, seed, score (larger is better) and seconds."""

    setting: Setting
    seed: int
    score: float
    seconds: float


@dataclasses.dataclass
class Found:
    """What a search came to.

    Attributes:
        best: the setting with the best mean score over seeds; score: that mean.
        trials: every evaluation that the path needed, in order.
        path: the incumbents, with their scores.
        complete: whether a whole cycle at the finest ratio changed nothing; else the budget ended.
    """

    best: Setting
    score: float
    trials: list[Trial]
    path: list[tuple[Setting, float]]
    complete: bool

    def plot(self, file: Path | str) -> None:
        """Scores over each coordinate, the path of incumbents as a line. Needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise ImportError(
                "plots need matplotlib, which is not installed: pip install fastdml[methods]"
            ) from error
        names = list(self.best)
        figure = Figure(figsize=(3.2 * len(names), 3.2), layout="constrained")
        axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        seen = [t for t in self.trials if math.isfinite(t.score)]
        for name, axis in zip(names, axes, strict=True):
            axis.scatter([t.setting[name] for t in seen], [t.score for t in seen], s=12, alpha=0.5)
            axis.plot([s[name] for s, _ in self.path], [v for _, v in self.path], "o-", ms=4, lw=1)
            axis.axvline(self.best[name], lw=0.8, ls=":")
            axis.set(xscale="log", xlabel=name.replace("_", " "))
        axes[0].set_ylabel("score")
        figure.savefig(file, dpi=150)


class _BudgetSpent(Exception):
    """No evaluation may follow."""


def balance_search(
    evaluate: Evaluate,
    space: Mapping[str, Coordinate],
    budget: int,
    *,
    seconds: float = math.inf,
    seeds: Sequence[int] = (0,),
    points: int = 3,
    ratios: Sequence[float] = (2.0, 2**0.5, 2**0.25),
    cache: Path | str | None = None,
    progress: bool = False,
) -> Found:
    """Coordinate descent for the balance of a loss's two terms and what moves with it.

    *Simple and Effective Balance of Contrastive Losses*, Sors et al., 2021 (arXiv 2112.11743): losses like
    `BalancedNTXentLoss` and `BalancedContrastiveLoss` have a positive and an entropy term, whose best balance
    depends on temperature or margin, batch size and learning rate. That a coordinate descent finds it
    is the abstract's; the search itself is inferred: of each coordinate in turn a few values around the
    incumbent, on a geometric grid, move it to the best; a cycle without a move refines the grid.

    Args:
        evaluate: `evaluate(setting, seed)` trains and returns a validation score, larger is better (of
            classes that are neither trained nor tested on); NaN counts as minus infinity.
        space: coordinates by name; the order is that of the descent.
        budget: how many evaluations may be made; those in the cache are free.
        seconds: beyond which no evaluation begins.
        seeds: every setting is tried with the same ones, and scored by the mean.
        points: of the grid, the incumbent included: odd, 3 or more.
        ratios: of the grid, coarsest first.
        cache: a file, a line of JSON per evaluation, appended as they are made: a search that was
            interrupted, called again, goes on where it stopped.
        progress: whether to show a bar (needs rich).

    Returns:
        The best setting found, and all that was seen.
    """
    check.integer(budget, "budget", 0, 1 << 62)
    if check.integer(points, "points", 3, 99) % 2 == 0:
        raise ValueError(f"points: expected an odd number, got {points}")
    seeds = check.sequence(seeds, "seeds", "a list of integers")
    seeds = [check.whole(s, "seeds", -check.LARGEST_SEED, check.LARGEST_SEED) for s in seeds]
    ratios = check.sequence(ratios, "ratios", "a list of numbers")
    if not space or not seeds or not ratios:
        raise ValueError("space: expected at least one coordinate, one seed and one ratio")
    if cache is not None and (Path(cache).is_dir() or not Path(cache).parent.is_dir()):
        raise ValueError(f"cache: expected a file in a folder that is there, got {str(cache)!r}")
    known = _read(cache)
    trials: list[Trial] = []
    made, deadline = 0, time.monotonic() + seconds
    with _bar(progress, budget) as bar:

        def score(setting: Setting) -> float:
            """The mean over seeds."""
            nonlocal made
            values = []
            for seed in seeds:
                key = _key(setting, seed)
                if key not in known:
                    if made >= budget or time.monotonic() > deadline:
                        raise _BudgetSpent
                    began = time.monotonic()
                    value = float(evaluate(dict(setting), seed))
                    value = -math.inf if math.isnan(value) else value
                    known[key] = Trial(dict(setting), seed, value, time.monotonic() - began)
                    _append(cache, known[key])
                    made += 1
                    bar(value)
                if known[key] not in trials:
                    trials.append(known[key])
                values.append(known[key].score)
            return sum(values) / len(values)

        here = {name: c.first for name, c in space.items()}
        path: list[tuple[Setting, float]] = []
        complete = False
        try:
            path.append((here, score(here)))
            for ratio in ratios:
                while _cycle(path, space, score, ratio, points):
                    pass
            complete = True
        except _BudgetSpent:
            if not path:
                raise ValueError(
                    f"budget: expected enough for the first setting, {len(seeds)} evaluations, got {budget}"
                ) from None
    return Found(*path[-1], trials, path, complete)


def _cycle(
    path: list[tuple[Setting, float]],
    space: Mapping[str, Coordinate],
    score: Callable[[Setting], float],
    ratio: float,
    points: int,
) -> bool:
    """One pass over the coordinates; whether the incumbent, the path's last, has moved."""
    began = len(path)
    for name, coordinate in space.items():
        here, best = path[-1]
        for value in coordinate.grid(here[name], ratio, points):
            setting = {**here, name: value}
            found = score(setting)
            if found > best:
                best = found
                path.append((setting, found))
    return len(path) > began


def _rounded(value: float, power_of_two: bool) -> float:
    """Six digits, so that a setting is found again in the cache."""
    if power_of_two:
        return float(2 ** round(math.log2(value)))
    return float(f"{value:.6g}")


def _key(setting: Setting, seed: int) -> str:
    return json.dumps([sorted(setting.items()), seed])


def _read(cache: Path | str | None) -> dict[str, Trial]:
    if cache is None or not Path(cache).exists():
        return {}
    known = {}
    for line in Path(cache).read_text().splitlines():
        try:
            trial = Trial(**json.loads(line))
        except (json.JSONDecodeError, TypeError):  # the last line of an interrupted run
            continue
        known[_key(trial.setting, trial.seed)] = trial
    return known


def _append(cache: Path | str | None, trial: Trial) -> None:
    if cache is None:
        return
    with Path(cache).open("ab+") as file:
        # What an interrupted run has left without an end is a line of its own.
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(dataclasses.asdict(trial)) + "\n").encode())


def _bar(progress: bool, budget: int) -> AbstractContextManager[Callable[[float], None]]:
    return _Bar(budget) if progress else nullcontext(lambda score: None)


class _Bar:
    """Evaluations made, the last score and the best."""

    def __init__(self, budget: int) -> None:
        try:
            from rich import progress
        except ModuleNotFoundError as error:
            raise ImportError(
                "a progress bar needs rich, which is not installed: pip install fastdml[methods]"
            ) from error
        self._bars: Any = progress.Progress(
            progress.TextColumn("balance search"),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(),
            progress.TextColumn("best {task.fields[best]:.4f}  last {task.fields[last]:.4f}"),
            progress.TimeElapsedColumn(),
        )
        self._task = self._bars.add_task("", total=budget, best=-math.inf, last=-math.inf)
        self._best = -math.inf

    def __enter__(self) -> Callable[[float], None]:
        self._bars.start()
        return self._show

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def _show(self, score: float) -> None:
        self._best = max(self._best, score)
        self._bars.update(self._task, advance=1, best=self._best, last=score)
