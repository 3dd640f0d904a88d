"""Trains every loss and every method at equal budget on real images, and writes docs/leaderboard.md.

    python benchmarks/leaderboard.py [--minutes M] [--stages tune,runs,longer,...]

Stages, each resumable: what is in the output folder is not done again, and after `--minutes` no training
begins. With `--part 1/2` and `--part 2/2` two processes share the work.

tune    learning rates of every entry by coordinate descent (fastdml.methods.balance_search), by MAP@R of the
        validation classes of the icons, with a quarter of the steps and a seed of its own; where the lowest
        rate is the best, the search goes on below it
starts  what the network that all begin from finds
runs    every entry, three seeds, both sets of images
longer  the losses that stay low on the icons, with four times the steps
trials  some of these with one thing changed, on the validation classes
sizes   six losses against batch size, at equal numbers of images seen
costs   time and memory of a step of these at those sizes, and pytorch-metric-learning's
report  tables and plots of what is there
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from board import data, report  # noqa: E402
from board.entries import entries  # noqa: E402
from board.plan import Budget, Plan  # noqa: E402
from board.reasons import TRIALS, tried  # noqa: E402
from board.run import evaluate, fit, measure  # noqa: E402

from fastdml.methods import Coordinate, balance_search  # noqa: E402
from fastdml.metrics.extras import require  # noqa: E402

STAGES = ("tune", "starts", "runs", "longer", "trials", "sizes", "costs", "report")
STEPS = 320
BATCH = 128
# Steps of classification before every run but those of `sizes`: both sets begin where more than half of the
# nearest neighbours are right.
PRETRAINING = {"icons": 640, "glyphs": 320}
SIZED = ("multi_similarity", "proxy_anchor", "smooth_ap", "sup_con", "triplet_margin", "fast_ap")
SIZES = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
SEEN = 65_536  # images that a run of `sizes` sees
LONGER, LONGER_TASK = 4, "icons"
# What is chosen there serves the other images as well.
TUNING_TASK, TUNING_SEED, TUNING_STEPS = "icons", 100, 80
STEP_OF_RATES = 10**0.5
TRIED, TRIED_FURTHER = 4, 8
SPACE = {"rate": Coordinate(3e-3, 3e-4, 3e-2), "proxy_rate": Coordinate(10, 0.1, 1000)}
LOWER = {"rate": 3e-5, "proxy_rate": 0.1}

Record = dict[str, Any]


@dataclasses.dataclass
class Work:
    """Where results go, when to stop, and what to show."""

    output: Path
    deadline: float
    part: tuple[int, int]
    quick: bool
    steps: int = STEPS
    bars: Any = None
    done: int = 0

    def read(self, name: str) -> list[Record]:
        path = self.output / f"{name}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:  # of an interrupted run
                continue
        return found

    def append(self, name: str, record: Record) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        with (self.output / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def over(self) -> bool:
        return time.monotonic() > self.deadline

    def mine(self, jobs: list[Any]) -> list[Any]:
        """This process's share."""
        k, n = self.part
        return jobs[k - 1 :: n]

    @contextmanager
    def each(self, title: str, jobs: list[Any]) -> Iterator[Iterator[tuple[Any, Callable]]]:
        """Jobs until time is up, each with a function to tell of its steps."""
        whole = self.bars.add_task(title, total=len(jobs), note="")
        inner = self.bars.add_task("", total=1, note="", visible=False)

        def going() -> Iterator[tuple[Any, Callable]]:
            for job in jobs:
                if self.over():
                    break

                def tick(step: int, loss: float, of: str = str(job[0]), steps: int = job[1]) -> None:
                    self.bars.update(
                        inner,
                        description=of[:28],
                        total=steps,
                        completed=step + 1,
                        note=f"loss {loss:.4f}",
                        visible=True,
                    )

                yield job[2:], tick
                self.bars.advance(whole)

        yield going()
        self.bars.remove_task(inner)


def _budget(work: Work, task: str, rates: dict[str, float], **changes: Any) -> Budget:
    steps, batch = (4, 32) if work.quick else (work.steps, BATCH)
    chosen = {k: v for k, v in rates.items() if k in ("rate", "proxy_rate")}
    before = steps if work.quick else PRETRAINING.get(task, 0)
    settings = {
        "steps": steps, "batch": batch, "pretraining": before, "shared": work.output / "sources", **chosen
    }  # fmt: skip
    return Budget(**{**settings, **changes})


def _task(work: Work, name: str) -> data.Task:
    return data.load(name, 40 if work.quick else None)


def _tuning_file(work: Work, entry: str) -> Path:
    safe = "".join(c if c.isalnum() else "-" for c in entry)
    return work.output / "tuning" / f"{safe}.jsonl"


def _tried(work: Work, entry: str) -> list[Record]:
    path = _tuning_file(work, entry)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _rates(work: Work, entry: str) -> dict[str, float]:
    """The best of what tuning saw; nothing: the defaults."""
    best = max(_tried(work, entry), key=lambda t: t["score"], default=None)
    return best["setting"] if best and best["score"] > -math.inf else {}


def tune(work: Work, chosen: list[str]) -> None:
    known, task = entries(), _task(work, TUNING_TASK)
    steps = min(TUNING_STEPS, _budget(work, TUNING_TASK, {}).steps)
    with work.each("tune", work.mine([(e, 1, e) for e in chosen])) as going:
        for (entry,), tick in going:
            plan_of = known[entry][1]

            def evaluate(
                setting: dict[str, float],
                seed: int,
                plan_of: Callable[..., Plan] = plan_of,
                tick: Callable = tick,
            ) -> float:
                plan = plan_of(task, _budget(work, TUNING_TASK, setting, steps=steps), seed)
                try:
                    fit(plan, lambda step, loss: tick(step / steps, loss))
                except RuntimeError:  # the loss is not finite
                    return -math.inf
                return plan.validation()

            probe = plan_of(task, _budget(work, TUNING_TASK, {}, steps=steps), TUNING_SEED)
            space = dict(SPACE)
            if not any(True for part in probe.learnt for _ in part.parameters()):
                del space["proxy_rate"]
            tried = _search(work, entry, space, 2 if work.quick else TRIED, evaluate)
            best = _rates(work, entry)
            if not work.quick and best and best["rate"] == min(t["setting"]["rate"] for t in tried):
                lower = {k: dataclasses.replace(space[k], start=v, low=LOWER[k]) for k, v in best.items()}
                _search(work, entry, lower, TRIED + TRIED_FURTHER, evaluate)


def _search(
    work: Work, entry: str, space: dict[str, Coordinate], upto: int, evaluate: Callable[..., float]
) -> list[Record]:
    """All that was tried of an entry, when it is as many settings or the search has ended."""
    path = _tuning_file(work, entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    if (left := upto - len(_tried(work, entry))) > 0:
        seeds, ratios = (TUNING_SEED,), (STEP_OF_RATES,)
        balance_search(evaluate, space, left, seeds=seeds, ratios=ratios, cache=path)
    return _tried(work, entry)


def starts(work: Work, tasks: list[str]) -> None:
    there = {r["task"] for r in work.read("leaderboard-starts")}
    for name in work.mine([t for t in tasks if t not in there]):
        # The plan is of no matter: nothing is trained.
        budget = _budget(work, name, {})
        begun = entries()["contrastive"][1](_task(work, name), budget, 0)
        work.append("leaderboard-starts", _settings(name, "", 0, budget) | evaluate(begun))


def runs(work: Work, tasks: list[str], chosen: list[str], seeds: int) -> None:
    # A seed of everything before the next one: an interrupted board is whole, with less of a spread.
    _train(
        work,
        "runs",
        "leaderboard",
        [
            (task, entry, seed, _budget(work, task, _rates(work, entry)))
            for seed in range(seeds)
            for task in tasks
            for entry in chosen
        ],
    )


def longer(work: Work, chosen: list[str]) -> None:
    """Whether the budget is what keeps a loss low."""
    low = report.low(work.read("leaderboard"), LONGER_TASK)
    jobs = []
    for entry in [e for e in chosen if e in low]:
        budget = _budget(work, LONGER_TASK, _rates(work, entry))
        jobs.append((LONGER_TASK, entry, 0, dataclasses.replace(budget, steps=LONGER * budget.steps)))
    _train(work, "longer", "leaderboard-longer", jobs)


def trials(work: Work, chosen: list[str]) -> None:
    """Whether what is said to keep a loss low does."""
    known, task = entries(), _task(work, LONGER_TASK)
    low = report.low(work.read("leaderboard"), LONGER_TASK)
    there = {(r["entry"], r["changed"]) for r in work.read("leaderboard-trials")}
    pairs = [(e, changed) for e in chosen if e in TRIALS and e in low for changed in (False, True)]
    missing = [pair for pair in work.mine(pairs) if pair not in there]
    jobs = [(f"{e}, changed" if c else e, work.steps, e, c) for e, c in missing]
    with work.each("trials", jobs) as going:
        for (entry, changed), tick in going:
            budget = _budget(work, LONGER_TASK, _rates(work, entry))
            plan = known[entry][1](task, budget, TUNING_SEED)
            if changed:
                TRIALS[entry].change(plan)
            record = _settings(LONGER_TASK, entry, TUNING_SEED, budget) | {"changed": changed}
            try:
                fit(plan, tick)
                record |= tried(plan)
            except RuntimeError as error:
                record["error"] = str(error)
            work.append("leaderboard-trials", record)


def sizes(work: Work, seeds: int) -> None:
    """On all the glyphs, which have classes enough. The rate goes with the root of the batch size."""
    jobs = []
    for seed in range(seeds):
        for entry in SIZED:
            for batch in SIZES[: 2 if work.quick else None]:
                seen = 256 if work.quick else SEEN
                rates = _rates(work, entry)
                rate = min(rates.get("rate", 3e-3) * (batch / BATCH) ** 0.5, 0.03)
                budget = _budget(
                    work, data.ALL_GLYPHS, rates, steps=seen // batch, batch=batch, dtype=torch.float32
                )
                jobs.append((data.ALL_GLYPHS, entry, seed, dataclasses.replace(budget, rate=rate)))
    _train(work, "batch sizes", "leaderboard-sizes", jobs)


def _train(work: Work, title: str, name: str, jobs: list[tuple[str, str, int, Budget]]) -> None:
    """Adds to the file `name` what is not there yet of (task, entry, seed, budget)."""
    known = entries()
    there = {(r["task"], r["entry"], r["seed"], r["batch"]) for r in work.read(name)}
    missing = [j for j in work.mine(jobs) if (*j[:3], j[3].batch) not in there]
    told = [(f"{j[1]}, {j[0]}, {j[3].batch}", j[3].steps, *j) for j in missing]
    with work.each(title, told) as going:
        for (task, entry, seed, budget), tick in going:
            record = _settings(task, entry, seed, budget) | {"kind": known[entry][0]}
            try:
                record |= measure(known[entry][1](_task(work, task), budget, seed), tick)
            except RuntimeError as error:
                record["error"] = str(error)
            work.append(name, record)


def costs(work: Work, timeout: float) -> None:
    """By fastdml's benchmark: contenders in turn, each checked against float64, memory in a process."""
    from fastdml.bench.device import device
    from fastdml.bench.measure import Settings
    from fastdml.bench.measure import measure as compare
    from fastdml.bench.presets import USUAL
    from fastdml.bench.workload import Workload

    limit = int(device("cpu").available() * 2 / 3)
    settings = Settings(torch.get_num_threads(), 2.0, limit, timeout)
    there = {(r["loss"].partition(":")[0], r["batch"]) for r in work.read("leaderboard-costs")}
    jobs = [
        (f"{loss}, {b}", 1, loss, b)
        for loss in SIZED
        for b in SIZES[: 1 if work.quick else None]
        if (loss, b) not in there
    ]
    with work.each("costs", work.mine(jobs)) as going:
        for (loss, batch), tick in going:
            workload = Workload(loss, batch, options=USUAL.get(loss, ()))
            found = compare(workload, ("auto", "pml"), settings, lambda what, share, t=tick: t(share - 1, 0))
            for record in found:
                work.append("leaderboard-costs", dataclasses.asdict(record))


def _settings(task: str, entry: str, seed: int, budget: Budget) -> Record:
    return {
        "task": task,
        "entry": entry,
        "seed": seed,
        "steps": budget.steps,
        "batch": budget.batch,
        "pretraining": budget.pretraining,
        "rate": budget.rate,
        "proxy_rate": budget.proxy_rate,
        "dtype": str(budget.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": report.commit(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--minutes", type=float, default=math.inf, help="after which no training begins")
    add("--stages", default=",".join(STAGES), help=f"of {', '.join(STAGES)}")
    add("--tasks", default=",".join(data.NAMES))
    add("--entry", action="append", help="one of them; repeat it (default: all)")
    add("--seeds", type=int, default=3)
    add("--steps", type=int, default=STEPS, help="of every run")
    add("--threads", type=int, default=1)
    add("--timeout", type=float, default=60.0, help="seconds of one step in `costs`")
    add("--part", default="1/1", help="K/N: this process's share of the jobs")
    add("--output", type=Path, default=ROOT / "benchmarks" / "results" / "leaderboard")
    add("--docs", type=Path, default=ROOT / "docs", help="where leaderboard.md goes")
    add("--quick", action="store_true", help="a smoke run on few classes; its figures mean nothing")
    options = parser.parse_args()
    known = entries()
    chosen = options.entry or list(known)
    stages, tasks = options.stages.split(","), options.tasks.split(",")
    for given, allowed, name in (
        (chosen, known, "--entry"),
        (stages, STAGES, "--stages"),
        (tasks, data.NAMES, "--tasks"),
    ):
        for value in given:
            if value not in allowed:
                parser.error(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    k, n = (int(x) for x in options.part.split("/"))
    if not 1 <= k <= n:
        parser.error(f"--part: expected K/N with 1 <= K <= N, got {options.part}")
    torch.set_num_threads(options.threads)
    work = Work(
        options.output, time.monotonic() + 60 * options.minutes, (k, n), options.quick, options.steps
    )
    if other := {r["steps"] for r in work.read("leaderboard")} - {_budget(work, "", {}).steps}:
        parser.error(f"--output: holds runs of {min(other)} steps; give that to --steps, or another folder")
    bar = require("rich.progress", "the progress bar needs", "leaderboard")
    with bar.Progress(
        bar.TextColumn("{task.description:<28}"),
        bar.BarColumn(bar_width=20),
        bar.MofNCompleteColumn(),
        bar.TextColumn("{task.fields[note]}"),
        bar.TimeElapsedColumn(),
        bar.TimeRemainingColumn(),
    ) as work.bars:
        if "tune" in stages:
            tune(work, chosen)
        if "starts" in stages:
            starts(work, tasks)
        if "runs" in stages:
            runs(work, tasks, chosen, options.seeds)
        if "longer" in stages:
            longer(work, chosen)
        if "trials" in stages:
            trials(work, chosen)
        if "sizes" in stages:
            sizes(work, 1)
        if "costs" in stages:
            costs(work, options.timeout)
    if "report" in stages:
        for path in report.write(work, options.docs):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
