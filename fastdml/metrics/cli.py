"""``fastdml eval``: the metrics of embeddings in files."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.similarity import SIMILARITIES
from . import definitions, files, inputs
from .evaluation import _setup, run
from .extras import require
from .result import Evaluation
from .sweep import BLOCK_BYTES, Progress

_SHOWN = 5  # neighbours of an example


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser(
        "eval",
        help="retrieval metrics of embeddings in files",
        description="Computes retrieval metrics, exact over all candidates, of embeddings in npy or parquet "
        "files, which are mapped and may be larger than memory. Without a gallery every row queries "
        "all the others.",
    )
    add = parser.add_argument
    add("embeddings", help="npy [N, D], or parquet with a column of lists")
    add("labels", nargs="?", help="npy of integers or strings, txt with one a line, or parquet "
        "(default: the embeddings' own parquet file)")  # fmt: skip
    add("--gallery", metavar="FILE", help="embeddings to search, if not the queries themselves")
    add("--gallery-labels", metavar="FILE", help="their labels")
    add("--embedding-column", metavar="NAME", help="of parquet files")
    add("--label-column", metavar="NAME", help="of parquet files")
    add("--metrics", nargs="+", metavar="NAME", help=f"of {', '.join(definitions.NAMES)}, or all "
        "(default: those of rankings and of pairs)")  # fmt: skip
    add("-k", nargs="+", type=int, default=[1, 10, 100], help="numbers of neighbours (default 1 10 100)")
    add("--far", nargs="+", type=float, default=[1e-3, 1e-2], help="false acceptance rates")
    add("--similarity", default="cosine", choices=sorted(SIMILARITIES), help="default cosine")
    add("--json", metavar="FILE", help="write results there; - for standard output, instead of the table")
    add("--html", metavar="FILE", help="write a page with plots there")
    add("--images", metavar="FILE", help="npy uint8 [N, H, W] or [N, H, W, 3] of the embeddings, for "
        "examples on the page")  # fmt: skip
    add("--gallery-images", metavar="FILE", help="those of the gallery")
    add("--confidence", type=float, default=0.95, help="level of the intervals (default 0.95)")
    add("--seed", type=int, default=0, help="of intervals, clusters and examples")
    add("--quiet", action="store_true", help="no progress bar")

    def command(arguments: argparse.Namespace) -> int:
        try:
            _evaluate(arguments)
        except BrokenPipeError:  # a reader that leaves, which is no error
            raise
        except (ValueError, ImportError, OSError) as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        return 0

    parser.set_defaults(command=command)


def _evaluate(arguments: argparse.Namespace) -> None:
    for path in (arguments.html, arguments.json):
        _check_writable(path)
    if arguments.json != "-":  # before the work, not after it
        require("rich.table", "the table needs", "metrics")
    if arguments.html:
        require("matplotlib", "the page needs", "metrics")
    if not 0 < arguments.confidence < 1:
        raise ValueError(f"--confidence: expected a number between 0 and 1, got {arguments.confidence}")
    inputs.seed(arguments.seed, "--seed")
    if (arguments.gallery is None) != (arguments.gallery_labels is None) and not (
        arguments.gallery or ""
    ).endswith(".parquet"):
        raise ValueError("--gallery-labels: expected exactly when --gallery is given")
    ks, fars = inputs.integers(arguments.k, "-k"), inputs.fractions(arguments.far, "--far")
    names = arguments.metrics
    asked = definitions.asked("all" if names == ["all"] else names, ks, fars)
    with tempfile.TemporaryDirectory(prefix="fastdml-") as scratch:
        query, labels = _side(arguments.embeddings, arguments.labels, arguments, scratch)
        gallery = gallery_labels = None
        if arguments.gallery is not None:
            gallery, gallery_labels = _side(
                arguments.gallery, arguments.gallery_labels, arguments, scratch
            )
        images = [
            None if path is None else files.read_images(path)
            for path in (arguments.images, arguments.gallery_images)
        ]
        _check_images(images, query, gallery, arguments)
        problem, relation = _setup(
            query, labels, gallery, gallery_labels, arguments.similarity, None, None, None, "auto"
        )
        shown = 0
        if arguments.html and images[0] is not None:
            shown = min(_SHOWN, problem.most)
        if arguments.html:  # its curves need these
            known = {a.key for a in asked}
            asked += [a for a in definitions.asked(("mrr", "map@r"), ks, fars) if a.key not in known]
        with _progress(arguments.quiet) as progress:
            found = run(
                problem, relation, asked, shown, arguments.seed, BLOCK_BYTES, progress, bool(arguments.html)
            )
        about = {
            "embeddings": str(arguments.embeddings),
            "gallery": None if arguments.gallery is None else str(arguments.gallery),
            "queries": len(problem.queries),
            "answerable": int(found.answerable.sum()),
            "candidates": problem.most,
            "dimension": problem.queries.dim,
            "similarity": arguments.similarity,
        }
        intervals = {
            key: found.interval(key, arguments.confidence, seed=arguments.seed) for key in found.per_query
        }
        results = {
            **about,
            "metrics": dict(found),
            "confidence": arguments.confidence,
            "intervals": {key: list(pair) for key, pair in intervals.items()},
        }
        if arguments.json == "-":
            print(json.dumps(results, indent=2))
        else:
            if arguments.json:
                Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            _print(found, intervals, about, arguments.confidence)
        if arguments.html:
            from .report import page

            candidates = labels if gallery_labels is None else gallery_labels
            text = page(
                found, intervals, about, arguments.confidence, images, candidates, arguments.seed
            )
            Path(arguments.html).write_text(text, encoding="utf-8")


def _side(
    path: str, labels: str | None, arguments: argparse.Namespace, scratch: str
) -> tuple[np.ndarray, np.ndarray]:
    if labels is None:
        if not path.endswith(".parquet"):
            raise ValueError("labels: expected a file of labels, which only parquet embeddings bring along")
        labels = path
    rows = files.read_embeddings(path, scratch, arguments.embedding_column)
    found = files.read_labels(labels, arguments.label_column)
    if found.shape != (len(rows),):
        raise ValueError(f"{labels}: expected {len(rows)} labels, as {path} has rows, got {found.shape}")
    return rows, found


def _check_writable(path: str | None) -> None:
    if path is None or path == "-":
        return
    folder = Path(path).resolve().parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{path}: expected a file in a folder that can be written to")


def _check_images(
    images: list[np.ndarray | None],
    query: np.ndarray,
    gallery: np.ndarray | None,
    arguments: argparse.Namespace,
) -> None:
    if images[0] is not None and not arguments.html:
        raise ValueError("--images: expected only with --html")
    if (images[0] is None or gallery is None) != (images[1] is None):
        raise ValueError("--gallery-images: expected exactly with --images and --gallery")
    for some, rows in zip(images, (query, gallery)):
        if some is not None and rows is not None and len(some) != len(rows):
            raise ValueError(f"--images: expected {len(rows)} images, one for every row, got {len(some)}")


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress | None]:
    """A bar on standard error while the sweep goes on."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    bar = require("rich.progress", "the progress bar needs", "metrics")
    console = require("rich.console", "the progress bar needs", "metrics")
    with bar.Progress(console=console.Console(stderr=True), transient=True) as bars:
        task = bars.add_task("queries", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _print(
    found: Evaluation,
    intervals: dict[str, tuple[float, float]],
    about: dict[str, Any],
    confidence: float,
) -> None:
    rich = require("rich.table", "the table needs", "metrics")
    console = require("rich.console", "the table needs", "metrics").Console()
    table = rich.Table(title=f"{about['answerable']} of {about['queries']} queries, "
                       f"{about['candidates']} candidates, {about['similarity']}")  # fmt: skip
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column(f"{100 * confidence:g} % interval", justify="right")
    for key, value in found.items():
        low, high = intervals.get(key, (None, None))
        table.add_row(key, f"{value:.4f}", "" if low is None else f"{low:.4f} to {high:.4f}")
    console.print(table)
