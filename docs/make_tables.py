"""Writes the tables of status and of what was measured into the documents, from what is in the tree;
`--check` only compares.

    python docs/make_tables.py [--check]
"""

from __future__ import annotations

import csv
import inspect
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import fastdml  # noqa: E402, F401
from csrc.build import losses  # noqa: E402
from fastdml.engine.crossover import NOT_RUN, verified  # noqa: E402
from fastdml.engine.registry import LOSSES  # noqa: E402
from fastdml.language.described import Described  # noqa: E402
from fastdml.losses import MODULES  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
Row = dict[str, str]

# What the README shows: words, results, loss, batch, samples per class.
SHOWN = (
    ("multi-similarity with its miner", "cpu", "multi_similarity", 4096, 4),
    ("Proxy-Anchor, 1,000 classes", "cpu", "proxy_anchor", 4096, 4),
    ("Smooth-AP", "cpu", "smooth_ap", 4096, 4),
    ("Smooth-AP, 64 per class", "ranks", "smooth_ap", 4096, 64),
    ("SupAP", "ranks", "sup_ap", 4096, 4),
    ("all triplets", "ranks", "triplet_margin", 4096, 4),
    ("Recall@k", "ranks", "recall_at_k", 4096, 4),
    ("FastAP", "ranks", "fast_ap", 4096, 4),
    ("multi-similarity with its miner", "cpu", "multi_similarity", 512, 4),
    ("Smooth-AP", "cpu", "smooth_ap", 512, 4),
    ("multi-similarity with its miner", "cpu", "multi_similarity", 65536, 4),
    ("Smooth-AP", "cpu", "smooth_ap", 65536, 4),
)


def measured() -> str:
    lines = [
        "| | B | over the floor | pytorch-metric-learning takes | its memory | memory beyond inputs "
        "and gradients |",
        "|---|---|---|---|---|---|",
    ]
    for words, name, loss, batch, per_class in SHOWN:
        found = _contenders(name, loss, batch, per_class)
        # What runs where nobody asks for an executor, if that was measured.
        ours, theirs = found.get("auto", found.get("native")), found.get("pml")
        if ours is None or not ours["ratio"]:
            continue
        times, memory = "", ""
        if theirs is not None:
            known = theirs["ms"] and theirs["status"] != "timed out"
            times = theirs["status"]
            if known:
                times = f"{_rounded(float(theirs['ms']) / float(ours['ms']))} times as long"
                memory = f"{float(theirs['extra_mib']):,.0f} MiB"
        lines.append(
            f"| {words} | {batch:,} | {float(ours['ratio']):.2f} | {times} | {memory} | "
            f"{float(ours['extra_mib']):.0f} MiB |"
        )
    return "\n".join(lines)


def shared() -> str:
    """Every loss that pytorch-metric-learning has too: its time over ours, and its memory."""
    rows = _rows("shared")
    batches = sorted({int(r["batch"]) for r in rows})
    lines = ["| | " + " | ".join(f"B={b:,}" for b in batches) + " |", "|---" * (1 + len(batches)) + "|"]
    for name in sorted({r["loss"].partition(":")[0] for r in rows}):
        cells = []
        for batch in batches:
            found = _contenders("shared", name, batch, 4)
            ours, theirs = found["native"], found["pml"]
            assert ours["status"] == "ok"
            cells.append(_beside(ours, theirs))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _beside(ours: Row, theirs: Row) -> str:
    if theirs["status"] not in ("ok", "differs"):
        return theirs["status"]
    words = f"{_rounded(float(theirs['ms']) / float(ours['ms']))}x, {float(theirs['extra_mib']):,.0f} MiB"
    return words + (", another result" if theirs["status"] == "differs" else "")


def _rows(name: str) -> list[Row]:
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return []
    with open(path) as file:
        return list(csv.DictReader(file))


def _contenders(name: str, loss: str, batch: int, per_class: int) -> dict[str, Row]:
    wanted = (loss, str(batch), str(per_class))
    return {
        r["contender"]: r
        for r in _rows(name)
        if (r["loss"].partition(":")[0], r["batch"], r["per_class"]) == wanted
    }


def _rounded(ratio: float) -> str:
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"


def status() -> str:
    printed = {name: loss() for name, loss in LOSSES.items() if issubclass(loss, Described)}
    written = losses(sorted((ROOT / "csrc" / "rows").glob("*.h")))
    functors = {*printed, *(name for name, _, _ in written)}
    tiles = {p.stem for p in (ROOT / "fastdml" / "kernels" / "tiles").glob("*.py")}
    tiles |= {name for name, loss in printed.items() if loss.tiles is not None}
    cuda = (ROOT / "csrc" / "cuda").is_dir()
    seen = verified()

    def gpu(name: str, executor: str, present: bool) -> str:
        if not present:
            return "–"
        return "yes" if (name, executor) in seen else NOT_RUN

    lines = [
        "| loss | rows are | checked against | dense, chunked | native CPU | native CUDA | Triton |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, loss in sorted(LOSSES.items()):
        lines.append(
            f"| `{name}` | {loss.rows} | {loss.provenance} | yes | "
            f"{'yes' if name in functors else '–'} | {gpu(name, 'native', cuda and name in functors)} | "
            f"{gpu(name, 'triton', name in tiles)} |"
        )
    return "\n".join(lines)


def reductions() -> str:
    """What the reductions of every loss, made with its defaults, divide by."""
    lines = [
        '| loss | default | "mean" is over | "nonzero" is over | "none" |',
        "|---|---|---|---|---|",
    ]
    known = {"num_classes": 2, "embedding_size": 2, "margin": 0.4, "Tn": 10.0, "l": 2, "descriptors_dim": 2}
    for name, module in sorted(MODULES.items()):
        asked = inspect.signature(module.__init__).parameters.values()
        needed = {p.name for p in asked if p.default is p.empty} & set(known)
        loss = module(**{k: known[k] for k in needed})
        nonzero = f"{loss.nonzero_over} above 0" if "nonzero" in loss.reductions else "–"
        none = "–"
        if "none" in loss.reductions:
            over_proxies = loss.in_torch is None and loss.description().rows == "proxies"
            none = "[C]" if over_proxies else "[B]"
        lines.append(f"| `{name}` | {loss.reduction} | {loss.mean_over} | {nonzero} | {none} |")
    return "\n".join(lines)


def main() -> int:
    tables = {
        "docs/reductions.md": {"reductions": reductions()},
        "README.md": {"status": status(), "measured": measured()},
        "benchmarks/README.md": {"shared": shared()},
    }
    stale = 0
    for name, found in tables.items():
        text = (ROOT / name).read_text()
        wanted = text
        for mark, table in found.items():
            start, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
            block = f"{start}\n{table}\n{end}"
            wanted, count = re.subn(f"{start}.*?{end}", lambda _, b=block: b, wanted, flags=re.DOTALL)
            assert count == 1, f"{name} has no place for the table {mark}"
        if "--check" not in sys.argv:
            (ROOT / name).write_text(wanted)
        elif wanted != text:
            print(f"{name}: a table is out of date; run python docs/make_tables.py")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
