"""Time and memory: against batch size, or a line per loss."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .contenders import FLOOR
from .extras import require
from .record import Record

# Legible without colour: every contender has its own marker.
_STYLE = {
    FLOOR: ("#888888", "", ":", "three matrix products"),
    "native": ("#66a182", ">", "-.", "fastdml, native"),
    "triton": ("#7b2d8b", "P", "-", "fastdml, triton"),
    "auto": ("#0b6e4f", "o", "-", "fastdml"),
    "chunked": ("#7cb518", "s", "-", "fastdml, chunked"),
    "dense": ("#c9c9c9", "v", "-", "fastdml, dense"),
    "torch": ("#1f77b4", "^", "--", "plain torch"),
    "torch-hand": ("#17becf", "D", "--", "plain torch, by hand"),
    "torch-compiled": ("#9467bd", "x", "--", "torch.compile"),
    "pml": ("#d1495b", "*", "--", "pytorch-metric-learning"),
    "siglip-kernel": ("#d1495b", "X", "--", "siglip-kernel"),
    "memeff": ("#d1495b", "h", "--", "memeff"),
}


# A logarithmic axis has no place for 0: less than this many MiB is drawn as this.
_LEAST = 0.1


# Losses beside each other before a new line of panels begins.
_ABREAST = 5
_WIDEST = 2200  # pixels


def plot(records: Sequence[Record], path: Path) -> None:
    """Writes the figure (the ending of path says which kind). Draws only what was measured.

    Curves against batch size; where most losses were measured at one size, or one at several problems of
    a size, a line of dots per problem.
    """
    require("matplotlib").use("Agg")
    # Problems without arithmetic belong in no such figure, unless there is nothing else.
    least = min(9, max(r.dim for r in records))
    shown = [r for r in records if r.dim >= least]
    losses = list(dict.fromkeys(r.loss for r in shown))
    sizes = [len({r.batch for r in shown if r.loss == loss}) for loss in losses]
    points = [(r.loss, r.batch, r.contender) for r in shown]
    curves = len(set(points)) == len(points) and (len(losses) == 1 or statistics.median(sizes) > 1)
    figure = _curves(shown, losses) if curves else _dots(shown)
    r = records[0]
    where = r.environment.get("gpu") or r.environment.get("cpu")
    figure.suptitle(
        f"{where}, {r.threads} threads, {r.dtype}, D={max(r.dim for r in records)}, "
        f"{r.per_class} per class"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=min(150, _WIDEST / figure.get_figwidth()))
    require("matplotlib.pyplot").close(figure)


def _curves(records: Sequence[Record], losses: Sequence[str]) -> Any:
    """Two panels per loss, time and memory, in lines of five losses."""
    abreast = min(_ABREAST, len(losses))
    lines = -(-len(losses) // abreast)
    figure, axes = require("matplotlib.pyplot").subplots(
        2 * lines, abreast, figsize=(4.6 * abreast + 0.6, 6.2 * lines + 0.8), squeeze=False
    )
    figure.set_layout_engine("constrained")
    for axis in axes.flat:
        axis.set_visible(False)
    for k, loss in enumerate(losses):
        above, column = 2 * (k // abreast), k % abreast
        chosen = [r for r in records if r.loss == loss]
        for row, key in ((above, "ms"), (above + 1, "extra_mib")):
            axes[row][column].set_visible(True)
            _panel(axes[row][column], chosen, key)
        axes[above][column].set_title(loss)
        axes[above + 1][column].set_xlabel("batch size")
        if column == 0:
            axes[above][0].set_ylabel("forward + backward [ms]")
            axes[above + 1][0].set_ylabel("peak memory beyond\ninputs and gradients [MiB]")
    _legend(figure, axes.flat)
    return figure


def _legend(figure: Any, axes: Iterable[Any]) -> None:
    handles: dict[str, object] = {}
    for axis in axes:
        for line, label in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(label, line)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False
    )


def _dots(records: Sequence[Record]) -> Any:
    """A line per problem: times over the floor, 20th to 80th percentile, and memory."""
    problems = list(dict.fromkeys(map(_problem, records)))
    figure, (left, right) = require("matplotlib.pyplot").subplots(
        1, 2, figsize=(11, 0.24 * len(problems) + 1.6), sharey=True
    )
    figure.set_layout_engine("constrained")
    for name in dict.fromkeys(r.contender for r in records):
        if name == FLOOR:
            continue
        colour, marker, _, label = _STYLE.get(name, ("black", ".", "-", name))
        for axis, key in ((left, "ratio"), (right, "extra_mib")):
            own = [r for r in records if r.contender == name and getattr(r, key) is not None]
            x = [getattr(r, key) for r in own]
            y = [problems.index(_problem(r)) for r in own]
            axis.plot(x, y, marker, color=colour, label=label, markersize=5)
            if axis is left:
                axis.hlines(y, [r.ratio_p20 for r in own], [r.ratio_p80 for r in own], color=colour)
    left.set_yticks(range(len(problems)), problems, fontsize=8)
    left.set_ylim(len(problems) - 0.5, -0.5)
    left.axvline(1, color=_STYLE[FLOOR][0], linestyle=_STYLE[FLOOR][2], label="its matrix products")
    left.set_xlabel("forward + backward over the loss's own matrix products")
    right.set_xlabel("peak memory beyond inputs and gradients [MiB]")
    if max(r.extra_mib or 0 for r in records) < 100:
        right.set_xlim(left=0)
    for axis in (left, right):
        axis.grid(True, alpha=0.25)
    if max(r.ratio or 1 for r in records) > 20:
        left.set_xscale("log")
        right.set_xscale("log")
    _legend(figure, (left,))
    return figure


def _problem(r: Record) -> str:
    classes = "" if r.per_class == 4 else f", {r.per_class} per class"
    return f"{r.loss.partition(':')[0]}  {r.rows:,} x {r.columns:,}{classes}"


def _panel(axis: Any, records: Sequence[Record], key: str) -> None:
    for name in dict.fromkeys(r.contender for r in records):
        if name == FLOOR and key != "ms":
            continue
        points = sorted((r for r in records if r.contender == name), key=lambda r: r.batch)
        shown = [(r.batch, getattr(r, key)) for r in points if getattr(r, key) is not None]
        if not shown:
            continue
        colour, marker, line, label = _STYLE.get(name, ("black", ".", "-", name))
        x = [batch for batch, _ in shown]
        y = [v if key == "ms" else max(v, _LEAST) for _, v in shown]
        axis.plot(x, y, line, color=colour, marker=marker, label=label, markersize=5)
        if key == "ms":
            low = [r.ms_p20 if r.ms_p20 is not None else r.ms for r in points if r.ms is not None]
            high = [r.ms_p80 if r.ms_p80 is not None else r.ms for r in points if r.ms is not None]
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        lost = [r.batch for r in points if r.status in ("out of memory", "timed out")]
        if lost:
            axis.annotate(
                f"{points[[p.batch for p in points].index(lost[0])].status} at {lost[0]}",
                (x[-1], y[-1]),
                xytext=(5, -2),
                textcoords="offset points",
                va="top",
                fontsize=7,
                color=colour,
            )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    sizes = sorted({r.batch for r in records})
    axis.set_xticks(sizes, [str(b) if b < 8192 else f"{b // 1024}k" for b in sizes])
    axis.minorticks_off()
    if key != "ms":
        axis.set_ylim(bottom=_LEAST / 1.5)
    axis.grid(True, which="major", alpha=0.25)
