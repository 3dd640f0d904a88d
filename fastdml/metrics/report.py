"""One self-contained page: numbers, curves, histograms, the worst classes, examples."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import numpy as np

from .extras import require
from .pairs import PairCounts
from .result import Evaluation

_RIGHT, _WRONG = "#0063a6", "#d1600a"
_CLASSES = 15  # of the worst that are shown
_EXAMPLES = 8

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; margin: 0 auto;
  max-width: 68rem; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p { margin: .3rem 0; } .about { color: #555; overflow-wrap: anywhere; }
table { border-collapse: collapse; } th, td { padding: .2rem .9rem .2rem 0; text-align: left;
  border-bottom: 1px solid #ddd; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 0; } figure svg, figure img { width: 100%; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr)); gap: 1.2rem; }
.tables { display: flex; flex-wrap: wrap; gap: 0 4rem; }
.scroll { overflow-x: auto; }
"""


def page(
    found: Evaluation,
    intervals: dict[str, tuple[float, float]],
    about: dict[str, Any],
    confidence: float,
    images: list[np.ndarray | None],
    gallery_labels: np.ndarray,
    seed: int = 0,
) -> str:
    """The page as HTML, which refers to nothing outside itself.

    Args:
        found: with "mrr", "map@r" and counts of pairs; with neighbours where there are images.
        intervals: (low, high) by metric.
        about: what was evaluated, for the heading.
        confidence: level of the intervals.
        images: of the queries, and of the gallery where it is another set.
        gallery_labels: of all candidates.
        seed: of the choice of examples.
    """
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        f"<title>Retrieval: {html.escape(about['embeddings'])}</title><style>{_STYLE}</style></head><body>",
        "<h1>Retrieval metrics</h1>",
        f"<p class=about>{html.escape(about['embeddings'])}"
        + (f" in {html.escape(about['gallery'])}" if about["gallery"] else "")
        + f": {about['answerable']:,} of {about['queries']:,} queries have a right candidate, among "
        f"{about['candidates']:,}; dimension {about['dimension']}, {html.escape(about['similarity'])}.</p>",
        f"<div class=tables><section><h2>Values</h2>{_values(found, intervals, confidence)}</section>",
    ]
    if found.labels is not None:
        parts.append(f"<section><h2>Worst classes by MAP@R</h2>{_worst(found)}</section>")
    parts += [
        "</div><h2>Curves</h2><div class=plots>",
        _figure(_recall_curve(found), "Recall at k"),
    ]
    if found.pairs is not None:
        parts.append(_figure(_histogram(found.pairs, about["similarity"]), "Similarities of pairs"))
        parts.append(_figure(_roc(found.pairs), "True against false acceptance rate"))
    parts.append("</div>")
    if images[0] is not None and found.neighbours is not None and found.labels is not None:
        gallery = images[0] if images[1] is None else images[1]
        parts += [
            "<h2>Examples</h2><p>A query and its nearest candidates: half of the queries at random, half of "
            "those whose nearest is wrong. Solid frames are right, dashed ones wrong.</p>",
            _examples(found, images[0], gallery, gallery_labels, seed),
        ]
    return "\n".join([*parts, "</body></html>", ""])


def _values(
    found: Evaluation, intervals: dict[str, tuple[float, float]], confidence: float
) -> str:
    rows = []
    for key, value in found.items():
        pair = intervals.get(key)
        shown = "" if pair is None else f"{pair[0]:.4f} to {pair[1]:.4f}"
        rows.append(
            f"<tr><td>{html.escape(key)}</td><td class=n>{value:.4f}</td><td class=n>{shown}</td></tr>"
        )
    head = f"<tr><th>metric</th><th class=n>value</th><th class=n>{100 * confidence:g} % interval</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _plot() -> tuple[Any, Any]:
    require("matplotlib", "the page needs", "metrics").use("Agg")
    figure = require("matplotlib.figure", "the page needs", "metrics")
    made = figure.Figure(figsize=(5.2, 3.5), layout="constrained")
    axes = made.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return made, axes


def _figure(figure: Any, name: str) -> str:
    """A plot as SVG inside the page."""
    with io.StringIO() as text:
        with require("matplotlib", "", "").rc_context({"svg.hashsalt": name}):
            figure.savefig(text, format="svg", metadata={"Date": None})
        svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # Names of clips and glyphs are the page's: each plot needs its own.
    mark = "".join(c for c in name if c.isalnum())
    for before in ('id="', 'xlink:href="#', "url(#"):
        svg = svg.replace(before, before + mark)
    return f"<figure role=img aria-label='{html.escape(name)}'>{svg}</figure>"


def _recall_curve(found: Evaluation) -> Any:
    figure, axes = _plot()
    first = np.rint(1 / found.per_query["mrr"][found.answerable]).astype(np.int64)
    ks = np.unique(np.geomspace(1, max(10, min(1000, first.max())), 60).astype(np.int64))
    axes.plot(ks, [100 * (first <= k).mean() for k in ks], color=_RIGHT, marker="o", markersize=3)
    axes.set_xscale("log")
    axes.set_ylim(0, 101)
    axes.set_title("Recall at k (%)")
    axes.set_xlabel("k")
    return figure


def _histogram(pairs: PairCounts, similarity: str) -> Any:
    figure, axes = _plot()
    edges, right, wrong = pairs.histogram()
    for counts, name, colour, line in (
        (wrong, "wrong pairs", _WRONG, "--"),
        (right, "right pairs", _RIGHT, "-"),
    ):
        bins = counts / max(1, counts.sum())
        axes.stairs(100 * bins, edges, color=colour, fill=True, alpha=0.25)
        axes.stairs(100 * bins, edges, color=colour, label=name, linestyle=line, linewidth=1.6)
    distance = "distance" in similarity
    axes.set_title("Similarities (% of the pairs of a kind)")
    axes.set_xlabel("minus the squared distance" if distance else similarity)
    axes.legend(frameon=False)
    return figure


def _roc(pairs: PairCounts) -> Any:
    figure, axes = _plot()
    false, true = pairs.curve()
    axes.plot(np.maximum(false, 1e-7), 100 * true, color=_RIGHT)
    axes.set_xscale("log")
    axes.set_xlim(max(1e-6, 1 / max(1, pairs.wrong.sum())), 1)
    axes.set_ylim(0, 101)
    axes.set_title("Right pairs accepted (%)")
    axes.set_xlabel("share of wrong pairs accepted")
    return figure


def _worst(found: Evaluation) -> str:
    means = found.per_class("map@r")
    assert found.labels is not None and found.classes is not None
    sizes = dict(zip(found.classes.tolist(), np.bincount(found.labels, minlength=len(found.classes))))
    recall = found.per_class("mrr")
    worst = sorted(means, key=lambda label: (means[label], -int(sizes[label])))[:_CLASSES]
    rows = "".join(
        f"<tr><td>{html.escape(str(c))}</td><td class=n>{means[c]:.3f}</td><td class=n>{recall[c]:.3f}</td>"
        f"<td class=n>{sizes[c]}</td></tr>"
        for c in worst
    )
    head = "<th>class</th><th class=n>MAP@R</th><th class=n>MRR</th><th class=n>queries</th>"
    return f"<div class=scroll><table><tr>{head}</tr>{rows}</table></div>"


def _examples(
    found: Evaluation, queries: np.ndarray, gallery: np.ndarray, right: np.ndarray, seed: int
) -> str:
    assert found.neighbours is not None and found.labels is not None and found.classes is not None
    hit = found.per_query["mrr"] == 1
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(found.answerable)
    chosen = rng.permutation(known)[: _EXAMPLES // 2].tolist()
    missed = [q for q in rng.permutation(known) if not hit[q] and q not in chosen]
    chosen += missed[: _EXAMPLES - len(chosen)]
    names = found.classes[found.labels]
    require("matplotlib", "the page needs", "metrics").use("Agg")
    figure_module = require("matplotlib.figure", "the page needs", "metrics")
    shown = found.neighbours.shape[1]
    figure = figure_module.Figure(figsize=(1.5 * (shown + 1), 1.75 * len(chosen)), layout="constrained")
    grid = figure.subplots(len(chosen), shown + 1, squeeze=False)
    for row, query in zip(grid, chosen):
        _draw(row[0], queries[query], f"query: {names[query]}", "#1c1c1c", "-")
        for axes, index in zip(row[1:], found.neighbours[query]):
            if index < 0:
                axes.set_axis_off()
                continue
            good = right[index] == names[query]
            mark = "✓" if good else "✗"
            _draw(axes, gallery[index], f"{mark} {right[index]}", _RIGHT if good else _WRONG,
                  "-" if good else "--")  # fmt: skip
    with io.BytesIO() as data:
        figure.savefig(data, format="png", dpi=110)
        encoded = base64.b64encode(data.getvalue()).decode()
    source = f"src='data:image/png;base64,{encoded}'"
    return f"<figure><img alt='Queries and their nearest candidates' {source}></figure>"


def _draw(axes: Any, image: np.ndarray, name: str, colour: str, line: str) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    name = name if len(name) <= 22 else name[:21] + "…"
    axes.set_xlabel(name.replace("$", r"\$"), fontsize=7, color=colour)
    for spine in axes.spines.values():
        spine.set(color=colour, linestyle=line, linewidth=2)
