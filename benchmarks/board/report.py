"""Tables and plots of what the leaderboard has measured."""

from __future__ import annotations

import collections
import platform
import statistics
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastdml.metrics.extras import require

from .entries import SETTINGS
from .methods import HOSTS
from .reasons import told

Record = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
METRICS = (("recall@1", "Recall@1"), ("map@r", "MAP@R"), ("ndcg@10", "nDCG@10"))
COLOURS = {"pairs": "C0", "proxies": "C1", "teacher": "C2", "two sets": "C4", "method": "C3"}
ENOUGH = 0.7  # Recall@1 on the icons that every loss should reach
NEAR = 1.5  # points by which seeds should differ at most


def commit() -> str:
    """Of the tree, with + where files differ from it, results aside."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "-uno", "--", ":!benchmarks/results")
    return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")


def write(work: Any, docs: Path) -> list[Path]:
    """leaderboard.md and its plots; only what there are results for."""
    parts = ("", "-starts", "-longer", "-trials", "-sizes", "-costs", "-replaced")
    found, starts, longer, trials, sizes, costs, replaced = (work.read(f"leaderboard{p}") for p in parts)
    docs.mkdir(parents=True, exist_ok=True)
    paths, text = [], _head(found, sizes)
    timed = _alike(found + replaced)
    if work.quick:
        text.append("**A smoke run: these figures mean nothing.**\n")
    for task in dict.fromkeys(r["task"] for r in found):
        own, begun, clocked = ([r for r in of if r["task"] == task] for of in (found, starts, timed))
        text += _task_section(task, own, begun, clocked)
        text += _low_section(task, found, begun, longer, trials, replaced)
    if found:
        paths.append(docs / "leaderboard-time.png")
        _plot_time(found, timed, paths[-1])
        text.append(f"![Recall@1 against time per step]({paths[-1].name})\n")
    if sizes:
        paths.append(docs / "leaderboard-batch.png")
        _plot_sizes(sizes, costs, paths[-1])
        text += _size_section(sizes, costs, paths[-1].name)
    paths.append(docs / "leaderboard.md")
    paths[-1].write_text("\n".join(text))
    return paths


def _dtype(record: Record) -> str:
    return record.get("dtype", "bfloat16")


def _usual_type(records: list[Record]) -> str:
    return statistics.mode(map(_dtype, records)) if records else "?"


def _alike(records: list[Record]) -> list[Record]:
    """Those whose times compare: of the network's type that most have."""
    good = [r for r in records if "error" not in r]
    usual = _usual_type(good)
    return [r for r in good if _dtype(r) == usual]


def _head(found: list[Record], sizes: list[Record]) -> list[str]:
    every = found + sizes
    some = every[0] if every else {}
    settings = ", ".join(
        f"{name} {'; '.join(f'{k} = {v}' for k, v in own.items())}" for name, own in SETTINGS.items()
    )
    words = usual = _usual_type(found)
    others = sorted({r["entry"] for r in found if _dtype(r) != usual})
    if others:
        other = ", ".join(set(map(_dtype, found)) - {usual})
        words += (
            f"; that of {', '.join(others)} in {other}, on a machine without it: what their steps take was "
            "measured with the others"
        )
    commits = ", ".join(sorted({r["commit"] for r in every})) or "?"
    return [
        "# Leaderboard\n",
        "Written by `make leaderboard`; see `benchmarks/leaderboard.py`.\n",
        f"Machine: {platform.processor() or platform.machine()}, processor time of "
        f"{some.get('threads', '?')} thread(s) a process; "
        f"Python {platform.python_version()}, torch {some.get('torch', '?')}, commit {commits}.\n",
        f"Every entry trains the same small network (four convolutions, 128 dimensions, in {words}) for the "
        "same number of steps and images a step, with AdamW, warmed up and annealed. All begin from one "
        "network that was trained before, as in practice: by normalised softmax, on 1,962 characters that "
        "are in no other part. Learning rates, and how much faster proxies move, were chosen entry by entry "
        "by MAP@R of validation classes of the icons (neither trained nor tested on), with a quarter of the "
        "steps and another seed: four settings, and eight more where the lowest rate was the best. Otherwise "
        f"settings are the library's defaults, but: {settings}. Losses over proxies see one or two images a "
        "class in a batch, others four. What a teacher knows was learnt before, with multi-similarity and "
        "the same budget, and is not counted. Images: 561 icons to train on, 624 to test on, six drawings "
        "each, jittered; 600 characters of each kind, in about 15 fonts each.\n",
        "Figures are means over seeds, with the largest difference from the mean. Step: the median time of a "
        "training step. Objective: of that, what is not the network's forward and backward; memory: what "
        "torch's allocator gave out for it at most (a teacher's network included; without the block "
        "of similarities that the engine keeps between calls).\n",
    ]


def _mean(records: list[Record], key: str) -> float:
    return statistics.mean(r[key] for r in records)


def _spread(records: list[Record], key: str) -> str:
    """Mean and largest difference from it, in percent."""
    values = [100 * r[key] for r in records]
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.1f}"
    return f"{mean:.1f} ± {max(abs(v - mean) for v in values):.1f}"


def _by_entry(records: Iterable[Record]) -> dict[str, list[Record]]:
    groups = collections.defaultdict(list)
    for r in records:
        groups[r["entry"]].append(r)
    return groups


def _task_section(
    task: str, records: list[Record], starts: list[Record], timed: list[Record]
) -> list[str]:
    clocked, good = _by_entry(timed), _by_entry(r for r in records if "error" not in r)
    order = sorted(good, key=lambda e: -_mean(good[e], "recall@1"))
    some = records[0]
    lines = [
        f"## {task.capitalize()}\n",
        f"{some['steps']} steps of {some['batch']} images, {_begun(starts)}.\n",
        "| | kind | Recall@1 | MAP@R | nDCG@10 | step, ms | objective, ms | memory, MiB | rate | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in order:
        own = good[entry]
        lines.append(
            f"| {entry} | {own[0]['kind']} | "
            + " | ".join(_spread(own, key) for key, _ in METRICS)
            + f" | {_costs(clocked[entry])} | {own[0]['rate']:.2g} | {len(own)} |"
        )
    lines.append("")
    for entry, own in _by_entry(r for r in records if "error" in r).items():
        lines.append(f"- {entry}: {own[0]['error']} (seeds {[r['seed'] for r in own]})")
    if order:
        lines += _facts(order, good)
    return [*lines, *_methods(good, clocked)]


def _costs(clocked: list[Record]) -> str:
    if not clocked:
        return " | ".join("–" * 3)
    columns = (("mean_step_ms", ".0f"), ("objective_ms", ".1f"), ("objective_mib", ".1f"))
    return " | ".join(format(_mean(clocked, key), form) for key, form in columns)


def _begun(starts: list[Record]) -> str:
    if not starts:
        return "from a network whose figures are not known"
    figures = ", ".join(f"{name} {100 * starts[0][key]:.1f}" for key, name in METRICS)
    return f"after {starts[0]['pretraining']} steps of classification of other characters ({figures})"


def _facts(order: list[str], good: dict[str, list[Record]]) -> list[str]:
    """What the issue asks of the setting."""
    losses = [e for e in order if good[e][0]["kind"] != "method"]
    lines = []
    if losses:
        best, worst = (100 * _mean(good[e], "recall@1") for e in (losses[0], losses[-1]))
        lines.append(f"Best and worst loss differ by {best - worst:.1f} points of Recall@1.")
    spreads, apart = {}, 0.0
    for entry in order:
        values = [100 * r["recall@1"] for r in good[entry]]
        if len(values) > 1:
            spreads[entry] = max(values) - min(values)
            mean = statistics.mean(values)
            apart = max(apart, *(abs(v - mean) for v in values))
    if spreads:
        wide = max(spreads, key=spreads.__getitem__)
        lines.append(
            f"Seeds of one entry differ by at most {spreads[wide]:.1f} points ({wide}), and from their mean "
            f"by at most {apart:.1f}."
        )
        near = sum(spread < NEAR for spread in spreads.values())
        lines.append(f"Those of {near} of {len(spreads)} entries differ by less than {NEAR} points.")
    if single := len(order) - len(spreads):
        lines.append(f"{single} of {len(order)} entries have run with one seed so far.")
    return ["\n".join(lines), ""]


def low(records: Iterable[Record], task: str) -> list[str]:
    """Losses below ENOUGH, the best first."""
    own = _by_entry(r for r in records if r["task"] == task and r["kind"] != "method" and "error" not in r)
    means = {entry: _mean(group, "recall@1") for entry, group in own.items()}
    return sorted((e for e, mean in means.items() if mean < ENOUGH), key=lambda e: -means[e])


def _low_section(
    task: str,
    found: list[Record],
    starts: list[Record],
    longer: list[Record],
    trials: list[Record],
    replaced: list[Record],
) -> list[str]:
    """Whether more steps would help what stays low, and what more is known of it."""
    entries, longer = low(found, task), [r for r in longer if r["task"] == task]
    if task != "icons" or not entries:
        return []
    steps = {r["steps"] for r in longer}
    begun = f" from {100 * starts[0]['recall@1']:.1f}, where all begin" if starts else ""
    lines = [
        f"Losses below {100 * ENOUGH:.0f} Recall@1 on the {task}{begun}, and what they reach with more "
        "steps:\n",
        f"| | Recall@1 | with {', '.join(map(str, sorted(steps))) or 'more'} steps | why |",
        "|---|---|---|---|",
    ]
    for entry in entries:
        short, long = ([r for r in of if r["entry"] == entry and r["task"] == task] for of in (found, longer))
        reached = bool(long) and "error" not in long[0] and _mean(long, "recall@1") >= ENOUGH
        why = "slow: the budget is short for it" if reached else told(entry, trials)
        then = (long[0].get("error") or _spread(long, "recall@1")) if long else ""
        lines.append(f"| {entry} | {_spread(short, 'recall@1')} | {then} | {why} |")
    return [*lines, "", *_left_behind(task, found, replaced)]


def _left_behind(task: str, found: list[Record], replaced: list[Record]) -> list[str]:
    """What the rates gave that a longer search has replaced."""
    before, after = (
        _by_entry(r for r in of if r["task"] == task and "error" not in r) for of in (replaced, found)
    )
    told = [
        f"{entry} {100 * _mean(own, 'recall@1'):.1f} at {own[0]['rate']:.2g}"
        for entry, own in before.items()
        if after[entry] and own[0]["rate"] > after[entry][0]["rate"]
    ]
    return [f"At the higher rates that the search left behind: {', '.join(told)}.", ""] if told else []


def _methods(good: dict[str, list[Record]], clocked: dict[str, list[Record]]) -> list[str]:
    """Whether a method helps its host."""
    pairs = [(m, h) for m, h in HOSTS.items() if m in good and h in good]
    if not pairs:
        return []
    lines = [
        "| method | host | Recall@1, points | MAP@R, points | step, times the host's | helps |",
        "|---|---|---|---|---|---|",
    ]
    for method, host in pairs:
        mine, theirs = good[method], good[host]
        gains = [100 * (_mean(mine, k) - _mean(theirs, k)) for k in ("recall@1", "map@r")]
        noise = max(100 * abs(r["map@r"] - _mean(g, "map@r")) for g in (mine, theirs) for r in g)
        helps = "yes" if gains[1] > noise else "no" if gains[1] < -noise else "within the seeds' spread"
        slower = "–"
        if clocked[method] and clocked[host]:
            slower = f"{_mean(clocked[method], 'mean_step_ms') / _mean(clocked[host], 'mean_step_ms'):.2f}"
        lines.append(f"| {method} | {host} | {gains[0]:+.1f} | {gains[1]:+.1f} | {slower} | {helps} |")
    return [*lines, ""]


def _plot_time(found: list[Record], timed: list[Record], path: Path) -> None:
    Figure = require("matplotlib.figure", "the plots need", "leaderboard").Figure
    Line2D = require("matplotlib.lines", "the plots need", "leaderboard").Line2D
    tasks = list(dict.fromkeys(r["task"] for r in found))
    figure = Figure(figsize=(6.4 * len(tasks), 5.2), layout="constrained")
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for task, axis in zip(tasks, axes, strict=True):
        good = _by_entry(r for r in found if r["task"] == task and "error" not in r)
        clocked = _by_entry(r for r in timed if r["task"] == task)
        good = {e: own for e, own in good.items() if e in clocked}
        ranked = sorted(good, key=lambda e: -_mean(good[e], "recall@1"))
        for place, entry in enumerate(ranked):
            own = good[entry]
            x, y = _mean(clocked[entry], "mean_step_ms"), 100 * _mean(own, "recall@1")
            values = [100 * r["recall@1"] for r in own]
            axis.errorbar(
                x,
                y,
                yerr=[[y - min(values)], [max(values) - y]],
                fmt="o",
                ms=4,
                color=COLOURS[own[0]["kind"]],
            )
            if place < 6 or place >= len(ranked) - 4 or own[0]["kind"] == "method":
                axis.annotate(entry, (x, y), fontsize=5, xytext=(3, 2), textcoords="offset points")
        axis.set(title=task, xlabel="time per step, ms", ylabel="Recall@1", xscale="log")
        axis.grid(alpha=0.3)
        shown = dict.fromkeys(g[0]["kind"] for g in good.values())
        axis.legend(
            handles=[
                Line2D([], [], marker="o", ls="", color=COLOURS[k], label=k)
                for k in shown
            ]
        )
    figure.savefig(path, dpi=150)


def _plot_sizes(sizes: list[Record], costs: list[Record], path: Path) -> None:
    """Recall@1, then time and memory of the loss's step, against batch size; theirs dashed, a cross where
    it ran out of memory or time."""
    Figure = require("matplotlib.figure", "the plots need", "leaderboard").Figure
    figure = Figure(figsize=(14, 4.4), layout="constrained")
    recall, clock, memory = figure.subplots(1, 3)
    entries = list(dict.fromkeys(r["entry"] for r in sizes))
    for k, entry in enumerate(entries):
        own = [r for r in sizes if r["entry"] == entry and "error" not in r]
        batches = sorted({r["batch"] for r in own})
        means = [100 * _mean([r for r in own if r["batch"] == b], "recall@1") for b in batches]
        recall.plot(batches, means, "o-", color=f"C{k}", label=entry, ms=4)
        for axis, key in ((clock, "ms"), (memory, "extra_mib")):
            for contender, style in (("auto", "-"), ("pml", "--")):
                known = [
                    r
                    for r in costs
                    if r["loss"].partition(":")[0] == entry and r["contender"] == contender
                ]
                there = [(r["batch"], r[key]) for r in known if r.get(key) not in (None, "", -1)]
                if there:
                    axis.plot(*zip(*sorted(there), strict=True), style, color=f"C{k}", marker="o", ms=3)
                failed = sorted(
                    r["batch"] for r in known if r["status"] in ("out of memory", "timed out")
                )
                if failed:
                    top = max((v for _, v in there), default=1.0)
                    axis.plot(failed[0], 2 * top, "x", color=f"C{k}", ms=9)
    for axis, label in (
        (recall, "Recall@1 at equal images seen"),
        (clock, "loss's step, ms"),
        (memory, "memory beyond inputs and gradients, MiB"),
    ):
        axis.set(xscale="log", xlabel="batch size", ylabel=label)
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    clock.set_yscale("log")
    memory.set_yscale("log")
    recall.legend(fontsize=7)
    words = "solid: fastdml, dashed: pytorch-metric-learning,\ncross: out of memory or time"
    clock.set_title(words, fontsize=8)
    figure.savefig(path, dpi=150)


def _size_section(sizes: list[Record], costs: list[Record], plot: str) -> list[str]:
    batches = sorted({r["batch"] for r in sizes})
    seen = sizes[0]["steps"] * sizes[0]["batch"]
    lines = [
        "## Batch size\n",
        f"Recall@1 on the glyphs after about {seen:,} images, whatever the batch size; the rate goes "
        "with its root (at most 0.03). The network runs in float32, begins from nothing and sees all 2,562 "
        "characters to train on.\n",
        "| | " + " | ".join(map(str, batches)) + " |",
        "|---|" + "---|" * len(batches),
    ]
    for entry in dict.fromkeys(r["entry"] for r in sizes):
        cells = []
        for b in batches:
            own = [
                r for r in sizes if r["entry"] == entry and r["batch"] == b and "error" not in r
            ]
            cells.append(_spread(own, "recall@1") if own else "")
        lines.append(f"| {entry} | " + " | ".join(cells) + " |")
    lines.append("")
    known = sorted({r["batch"] for r in costs})
    if known:
        lines += [
            "A step of the loss alone: ours, and pytorch-metric-learning's (time; memory beyond inputs and "
            "gradients).\n",
            "| | " + " | ".join(map(str, known)) + " |",
            "|---|" + "---|" * len(known),
        ]
        for entry in dict.fromkeys(r["loss"] for r in costs):
            for contender, words in (("auto", "ours"), ("pml", "theirs")):
                cells = []
                for b in known:
                    own = [
                        r
                        for r in costs
                        if (r["loss"], r["batch"], r["contender"]) == (entry, b, contender)
                    ]
                    cells.append(_cost(own[0]) if own else "")
                lines.append(f"| {entry}, {words} | " + " | ".join(cells) + " |")
        lines.append("")
    return [*lines, f"![Recall@1, time and memory against batch size]({plot})\n"]


def _cost(record: Record) -> str:
    if record["status"] in ("out of memory", "timed out", "unavailable", "failed", "wrong"):
        return record["status"]
    note = ", another result" if record["status"] == "differs" else ""
    return f"{record['ms']:.1f} ms, {max(0.0, record['extra_mib']):.0f} MiB{note}"
