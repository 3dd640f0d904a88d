"""The demonstration from start to end."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from typing import Any

import torch
from torch import nn

from ..command_line import make_folder
from ..engine.library import build_info
from ..metrics import nearest_neighbours, retrieval_metrics
from ..samplers import MPerClassSampler
from .augment import jitter
from .cost import Cost, compare_costs
from .data import Images, load_icons
from .extras import require
from .losses import canonical_name
from .model import embed
from .options import Options
from .progress import progress_bars
from .report import (
    NEIGHBOURS,
    choose_queries,
    cost_table,
    plot_curves,
    plot_neighbours,
    recall_table,
)
from .train import Trained, new_model, train

QUERIES, MISSES = 10, 3  # rows of the picture of neighbours, and how many of them are failures


def run(options: Options) -> dict[str, Any]:
    """Trains with every loss of ``options``, compares, prints, writes plots and ``results.json``.

    Returns:
        What ``results.json`` holds.

    Raises:
        ImportError: matplotlib or rich is missing; says how to install them.
        ValueError: an option does not fit the data.
    """
    console = require("rich.console").Console()
    require("matplotlib")  # fail before training rather than after
    names = [canonical_name(name) for name in options.losses]
    make_folder(options.output, "output")
    threads = torch.get_num_threads()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    started = time.perf_counter()
    try:
        return _run(options, names, console, started)
    finally:
        torch.set_num_threads(threads)


def _run(options: Options, names: list[str], console: Any, started: float) -> dict[str, Any]:
    training, test = load_icons(options.seed, options.max_classes)
    # The jittered test set is drawn once: every embedding sees the same images.
    generator = torch.Generator().manual_seed(options.seed + 1)
    jittered = dataclasses.replace(test, pixels=jitter(test.pixels, generator))
    console.print(
        f"{len(training)} images of {len(training.names)} classes to train on, "
        f"{len(test)} of {len(test.names)} other classes to test on; "
        f"{torch.get_num_threads()} threads"
    )

    scores = {
        "raw pixels": _score(lambda images: images.flatten(1), test, jittered),
        "untrained network": _score(_embedding(new_model(options.seed)), test, jittered),
    }

    def evaluate(model: nn.Module) -> dict[str, float]:
        return retrieval_metrics(embed(model, jittered.pixels), jittered.labels)

    trained: dict[str, Trained] = {}
    for name in names:
        with progress_bars(console) as progress:
            trained[name] = train(name, training, evaluate, options, progress)
        scores[name] = _score(_embedding(trained[name].model), test, jittered)
    console.print(recall_table(scores))

    first = trained[names[0]]
    costs = compare_costs(_cost_batches(first.model, training, options), options.backend,
                          options.cost_seconds)  # fmt: skip
    console.print(cost_table(costs))
    _print_share(console, first, costs, options)

    paths = {
        "neighbours": options.output / "neighbours.png",
        "curves": options.output / "curves.png",
        "results": options.output / "results.json",
    }
    found = {
        "raw pixels": nearest_neighbours(jittered.pixels.flatten(1), NEIGHBOURS),
        f"after training with {names[0]}": nearest_neighbours(
            embed(first.model, jittered.pixels), NEIGHBOURS
        ),
    }
    queries = choose_queries(
        jittered.labels, list(found.values())[-1], QUERIES, MISSES, options.seed
    )
    note = f"The first {QUERIES - MISSES} queries are a random choice"
    if misses := len(queries) - (QUERIES - MISSES):
        note += f"; of the last {misses} the nearest image is wrong even after training"
    plot_neighbours(jittered, found, queries, f"{note}.", paths["neighbours"])
    plot_curves(trained, paths["curves"])

    results = {
        "options": {**dataclasses.asdict(options), "output": str(options.output)},
        "machine": {
            "system": platform.platform(),
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "fastdml": build_info(),
        },
        "scores": scores,
        "training": {
            name: {
                "seconds": run.seconds,
                "images_per_second": run.images / run.seconds,
                "losses": run.losses,
                "curve": run.curve,
            }
            for name, run in trained.items()
        },
        "costs": [dataclasses.asdict(cost) for cost in costs],
        "seconds": time.perf_counter() - started,
    }
    paths["results"].write_text(json.dumps(results, indent=1) + "\n")
    for path in paths.values():
        console.print(f"wrote {path}", soft_wrap=True, highlight=False)
    console.print(f"total {results['seconds']:.0f} s")
    return results


def _embedding(model: nn.Module) -> Any:
    return lambda images: embed(model, images)


def _score(embedding: Any, test: Images, jittered: Images) -> dict[str, dict[str, float]]:
    return {
        "plain": retrieval_metrics(embedding(test.pixels), test.labels),
        "jittered": retrieval_metrics(embedding(jittered.pixels), jittered.labels),
    }


def _cost_batches(
    model: nn.Module, training: Images, options: Options
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Embeddings of class-balanced batches: one as large as in training, and larger ones."""
    batches = []
    largest = options.per_class * len(training.names)
    for size in (options.batch_size, *options.cost_sizes):
        size = min(size, largest) // options.per_class * options.per_class
        sampler = MPerClassSampler(training.labels, options.per_class, size, size, seed=0)
        chosen = torch.tensor(list(sampler))
        pixels = jitter(training.pixels[chosen], torch.Generator().manual_seed(0))
        batches.append((embed(model, pixels), training.labels[chosen]))
    return batches


def _print_share(console: Any, run: Trained, costs: list[Cost], options: Options) -> None:
    """How much of a training step is the loss, for every contender."""
    step = 1e3 * run.seconds / len(run.losses)
    shares = [
        f"{cost.contender} {cost.milliseconds:.1f} ms"
        for cost in costs
        if cost.batch == options.batch_size and cost.milliseconds is not None
    ]
    console.print(
        f"A whole training step on {options.batch_size} images took {step:.0f} ms; "
        f"of that the loss is {', '.join(shares)}."
    )
