"""Time and memory against batch size, one column of panels per loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..demo.extras import require
from .contenders import FLOOR
from .record import Record

# Legible without colour: every contender has its own marker.
_STYLE = {
    FLOOR: ("#888888", "", ":", "three matrix products"),
    "native": ("#0b6e4f", "o", "-", "fastdml, native"),
    "triton": ("#7b2d8b", "P", "-", "fastdml, triton"),
    "auto": ("#0b6e4f", "o", "-", "fastdml"),
    "chunked": ("#7cb518", "s", "-", "fastdml, chunked"),
    "dense": ("#c9c9c9", "v", "-", "fastdml, dense"),
    "torch": ("#1f77b4", "^", "--", "plain torch"),
    "torch-hand": ("#17becf", "D", "--", "plain torch, by hand"),
    "torch-compiled": ("#9467bd", "x", "--", "torch.compile"),
    "pml": ("#d1495b", "*", "--", "pytorch-metric-learning"),
}


# A logarithmic axis has no place for 0: less than this many MiB is drawn as this.
_LEAST = 0.1


def plot(records: Sequence[Record], path: Path) -> None:
    """Writes the figure (the ending of path says which kind). Draws only what was measured."""
    require("matplotlib").use("Agg")
    pyplot = require("matplotlib.pyplot")
    # Problems without arithmetic belong in no such figure, unless there is nothing else.
    least = min(9, max(r.dim for r in records))
    losses = list(dict.fromkeys(r.loss for r in records if r.dim >= least))
    figure, axes = pyplot.subplots(
        2, len(losses), figsize=(4.6 * len(losses) + 0.6, 7), squeeze=False, sharex="col"
    )
    for column, loss in enumerate(losses):
        chosen = [r for r in records if r.loss == loss and r.dim >= least]
        for row, key in enumerate(("ms", "extra_mib")):
            _panel(axes[row][column], chosen, key)
        axes[0][column].set_title(loss)
        axes[1][column].set_xlabel("batch size")
    axes[0][0].set_ylabel("forward + backward [ms]")
    axes[1][0].set_ylabel("peak memory beyond\ninputs and gradients [MiB]")
    handles: dict[str, object] = {}
    for axis in axes.flat:
        for line, label in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(label, line)
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=4, frameon=False)
    r = records[0]
    where = r.environment.get("gpu") or r.environment.get("cpu")
    figure.suptitle(
        f"{where}, {r.threads} threads, {r.dtype}, D={max(r.dim for r in records)}, "
        f"{r.per_class} per class"
    )
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


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
                (x[-1], y[-1]), xytext=(4, 6), textcoords="offset points", fontsize=7, color=colour,
            )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    sizes = sorted({r.batch for r in records})
    axis.set_xticks(sizes, [str(b) if b < 8192 else f"{b // 1024}k" for b in sizes])
    axis.minorticks_off()
    if key != "ms":
        axis.set_ylim(bottom=_LEAST / 1.5)
    axis.grid(True, which="major", alpha=0.25)
