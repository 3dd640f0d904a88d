"""Tables and plots of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .cost import Cost
from .data import Images
from .extras import require
from .train import Trained

RIGHT, WRONG = "#1a8a3a", "#c8102e"
NEIGHBOURS = 5

# Curves are told apart by colour, dashes and marker alike.
_STYLES = (
    {"color": "#0063a6", "linestyle": "-", "marker": "o"},
    {"color": "#d1600a", "linestyle": "--", "marker": "s"},
    {"color": "#5c3d99", "linestyle": ":", "marker": "^"},
    {"color": "#00806b", "linestyle": "-.", "marker": "D"},
)


def recall_table(rows: dict[str, dict[str, dict[str, float]]]) -> Any:
    """``rows[what][plain or jittered][metric]`` as a rich table, in per cent."""
    table_module = require("rich.table")
    conditions = list(next(iter(rows.values())))
    table = table_module.Table(title="Retrieval on classes never trained on (%)")
    table.add_column("embedding")
    for condition in conditions:
        for metric in ("R@1", "R@4", "MAP@R"):
            table.add_column(f"{condition}\n{metric}", justify="right")
    for what, by_condition in rows.items():
        cells = [
            f"{100 * by_condition[condition][metric]:.1f}"
            for condition in conditions
            for metric in ("recall@1", "recall@4", "map@r")
        ]
        table.add_row(what, *cells)
    return table


def cost_table(costs: Sequence[Cost]) -> Any:
    """The measured steps as a rich table."""
    table_module = require("rich.table")
    table = table_module.Table(
        title="One step of multi-similarity with its miner: loss and gradient of a batch"
    )
    table.add_column("batch", justify="right")
    table.add_column("computed by")
    table.add_column("median", justify="right")
    table.add_column("fastdml is", justify="right")
    for cost in costs:
        first = cost.contender == costs[0].contender
        if first and cost is not costs[0]:
            table.add_section()
        median = cost.note if cost.milliseconds is None else f"{cost.milliseconds:.2f} ms"
        ratio = "" if first or cost.ratio is None else f"{cost.ratio:.1f} x faster"
        if cost.ratio is not None and cost.ratio < 1:
            ratio = f"{1 / cost.ratio:.1f} x slower"
        table.add_row(str(cost.batch) if first else "", cost.contender, median, ratio)
    return table


def plot_neighbours(
    images: Images,
    found: dict[str, torch.Tensor],
    queries: Sequence[int],
    note: str,
    path: Path,
) -> None:
    """Draws queries and, for every embedding in ``found``, their five nearest images.

    Args:
        images: queries and gallery at once.
        found: indices ``[len(images), 5]`` of the neighbours, by name of the embedding.
        queries: one row of the picture each.
        note: how they were chosen, for the last line of the picture.
        path: PNG to write.
    """
    plt = _pyplot()
    columns = 1 + len(found) * (NEIGHBOURS + 0.35)
    height = len(queries) * 1.18 + 0.9
    figure = plt.figure(figsize=(columns * 1.02 + 0.2, height))
    unit = 1 / (columns + 0.2)
    row_height = 1.18 / height

    def draw(index: int, x: float, row: int, right: bool | None) -> None:
        bottom = 1 - (0.36 / height) - (row + 1) * row_height
        box = [(x + 0.16) * unit, bottom + 0.26 * row_height, 0.9 * unit, 0.72 * row_height]
        axes = figure.add_axes(box)
        axes.imshow(images.pixels[index, 0].numpy(), cmap="gray_r", vmin=0, vmax=1)
        axes.set_xticks([])
        axes.set_yticks([])
        name = images.names[images.labels[index]]
        name = name if len(name) <= 17 else name[:16] + "…"
        mark, colour = {True: ("✓", RIGHT), False: ("✗", WRONG), None: ("", "black")}[right]
        for spine in axes.spines.values():
            spine.set_color(colour)
            spine.set_linewidth(1 if right is None else 2.4)
            spine.set_linestyle("--" if right is False else "-")
        axes.set_xlabel(name, fontsize=6.5, color=colour, labelpad=2)
        if mark:
            axes.text(
                0.98, 0.97, mark, transform=axes.transAxes, ha="right", va="top", fontsize=9,
                color="white", weight="bold",
                bbox={"boxstyle": "round,pad=0.15", "facecolor": colour, "edgecolor": "none"},
            )  # fmt: skip

    starts = [1.35 + block * (NEIGHBOURS + 0.35) for block in range(len(found))]
    top = 1 - 0.28 / height
    figure.text(0.66 * unit, top, "query", ha="center", fontsize=10, weight="bold")
    for (name, neighbours), start in zip(found.items(), starts, strict=True):
        middle = (start + NEIGHBOURS / 2 + 0.1) * unit
        figure.text(middle, top, name, ha="center", fontsize=10, weight="bold")
        for row, query in enumerate(queries):
            for place, index in enumerate(neighbours[query].tolist()):
                right = bool(images.labels[index] == images.labels[query])
                draw(index, start + place, row, right)
    for row, query in enumerate(queries):
        draw(query, 0, row, None)
    figure.text(
        0.5, 0.1 / height,
        "The five nearest of all other images, classes unseen in training, all jittered.  "
        f"✓ solid frame: same class.  ✗ dashed frame: another class.\n{note}",
        ha="center", va="bottom", fontsize=8.5, linespacing=1.5,
    )  # fmt: skip
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)


def plot_curves(trained: dict[str, Trained], path: Path) -> None:
    """Draws the training loss and the metrics on unseen, jittered classes of every loss."""
    plt = _pyplot()
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for number, (name, run) in enumerate(trained.items()):
        style = _STYLES[number % len(_STYLES)]
        losses = torch.tensor(run.losses, dtype=torch.float64)
        epochs = max(run.curve)
        per_epoch = torch.cat([losses[:1], losses.view(epochs, -1).mean(dim=1)])
        left.plot(
            range(epochs + 1), (per_epoch / losses[0]).tolist(), label=name, markersize=4, **style
        )
        for axes, metric in ((middle, "recall@1"), (right, "map@r")):
            values = [100 * point[metric] for point in run.curve.values()]
            axes.plot(list(run.curve), values, label=name, markersize=5, **style)
    left.set_title("training loss / its value at the first step")
    left.set_ylim(bottom=0)
    middle.set_title("Recall@1 on unseen classes, jittered (%)")
    right.set_title("MAP@R on unseen classes, jittered (%)")
    for axes in (left, middle, right):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in (middle, right):
        axes.set_ylim(0, 100)
    left.legend(frameon=False)
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)


def choose_queries(
    labels: torch.Tensor, neighbours: torch.Tensor, count: int, misses: int, seed: int
) -> list[int]:
    """``count - misses`` random queries, then up to ``misses`` whose nearest image is wrong.

    A random choice shows what is typical; the misses, what still goes wrong.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = order[: count - misses]
    wrong = (labels[neighbours[:, 0]] != labels).tolist()
    missed = [query for query in order[count - misses :] if wrong[query]]
    return chosen + missed[:misses]


def _pyplot() -> Any:
    require("matplotlib").use("Agg")
    return require("matplotlib.pyplot")
