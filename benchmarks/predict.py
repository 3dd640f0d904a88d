"""Writes benchmarks/results/predicted.csv and .md: a step on an H200 over the bare products, by counting.

Nothing is timed and no GPU is needed. Instructions and bytes a pair are those of the kept tables
(row-instructions.csv, triton-resources.csv), which are read from machine code; the rates are `Machine`'s.
docs/gpu.md has the formulas. Where benchmarks/results/first-light.csv lies, which a GPU has measured, its
figures stand beside.

    python benchmarks/predict.py [--check]
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
NOT_RUN = "not yet run on a GPU"
MS = 1e3
Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Machine:
    """An H200. Rates a second; what is assumed rather than on its data sheet says so."""

    processors: int = 132
    clock: float = 1.755e9  # assumed under load; at most 1.98e9
    lanes: int = 128  # instructions of threads that a processor issues in a clock: four warps
    tensor: int = 4096  # operations of bfloat16 products of a processor in a clock
    cublas: float = 700e12  # operations of bfloat16 products; assumed: 74 % of the above
    memory: float = 0.9 * 4.8e12  # bytes; assumed: nine tenths of the data sheet
    cache: float = 6.0e12  # bytes from the second cache; assumed: H100s have been measured at 5.5 and more
    registers: int = 65536  # of a processor
    shared: int = 233472  # bytes of shared memory of a processor
    most_shared: int = 232448  # ... that a block may have
    reserved: int = 1024  # ... that the system takes for every block

    def issue(self, instructions: float) -> float:
        return instructions / (self.processors * self.lanes * self.clock)

    def held(self, blocks: int, used: int, columns: int) -> int:
        """Columns of a float32 row that a block keeps in shared memory, beside the bytes it needs anyway:
        held_columns of csrc/cuda/launch.h, which leaves 32 KiB for what blocks share of columns."""
        each = min((self.shared - 32 * 1024) // blocks - self.reserved, self.most_shared) - used
        return max(0, min(each, 4 * columns)) // 16 * 4

    def products(self, operations: float) -> float:
        """By tensor cores that never wait."""
        return operations / (self.processors * self.tensor * self.clock)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A line of the table. functor, form: as in row-instructions.csv; loss: as in triton-resources.csv.

    similarities: how often S = A C^T is needed, of the bare products too. equal: both gradients are one
    product. idle: loops at the end of the functor that do nothing here. thresholds: of a row; they come in
    groups of four that share a visit. before: in triton-resources.csv, what is asked of columns first.
    """

    title: str
    loss: str
    functor: str
    rows: int = 32768
    columns: int = 32768
    dims: tuple[int, ...] = (128, 512)
    form: str = "cosine, bfloat16 weights"
    one_set: bool = True
    similarities: int = 1
    equal: bool = False
    idle: int = 0
    thresholds: int = 0
    before: str = ""

    @property
    def pairs(self) -> float:
        return float(self.rows) * self.columns


PROBLEMS = (
    Problem("multi-similarity, mined", "multi_similarity", "MultiSimilarityEpsilon"),
    Problem(
        "contrastive, distances", "contrastive", "Contrastive", form="distance, bfloat16 weights",
        similarities=2, equal=True,
    ),
    Problem("SupCon", "sup_con", "SupCon"),
    Problem(
        "InfoNCE, CLIP", "info_nce", "InfoNce", one_set=False, similarities=2, before="log_sum_exp"
    ),
    Problem("Proxy-Anchor, 100,000 classes", "proxy_anchor", "ProxyAnchor", rows=100_000, one_set=False),
    Problem("Smooth-AP, 4 a class", "smooth_ap, 4 a class", "SmoothAP", idle=1, thresholds=4),
    Problem("SigLIP", "siglip", "Siglip", 65536, 65536, (768,), one_set=False),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds: of all products, of everything else, and what bounds the latter."""

    products: float
    rest: float
    bound: str
    issued: float  # instructions a pair
    cached: float  # bytes a pair from the second cache

    @property
    def seconds(self) -> float:
        return self.products + self.rest


def longest(**parts: float) -> tuple[float, str]:
    found = max(parts, key=lambda k: parts[k])
    return parts[found], found


def bare(p: Problem, d: int, m: Machine) -> float:
    """Seconds of the bare products: S written in bfloat16, read once for either gradient."""
    once = max(2 * p.pairs * d / m.cublas, 2 * p.pairs / m.memory)
    return (p.similarities + 2) * once


def native(p: Problem, d: int, m: Machine, rows: list[Row]) -> Step:
    """A block of products, the row kernel, two products: one after the other."""
    (line,) = [r for r in rows if (r["label"], r["functor"], r["form"]) == ("now", p.functor, p.form)]
    found = ([float(x) for x in line[k].split()] for k in ("visits", "inner", "row_bytes", "column_bytes"))
    visits = list(zip(*(n[: len(n) - p.idle] for n in found), strict=True))
    if p.thresholds:  # whole groups, or what is left of one; then the weights, with a loop over thresholds
        groups, left = divmod(p.thresholds, 4)
        whole, part, (all_, inner, *moved) = visits
        weights = (all_ + (p.thresholds - 1) * inner, inner, *moved)
        visits = [whole] * groups + [part] * bool(left) + [weights]
    # All but the last visit, which makes weights, for every time that S is made.
    sweeps = [visits[:-1]] * (p.similarities - 1) + [visits]
    blocks_held = int(line["blocks"])
    share = m.held(blocks_held, int(line["shared_bytes"]), p.columns) / p.columns
    issued = sum(v[0] for sweep in sweeps for v in sweep) + len(sweeps) * share * float(line["copy"])
    # Blocks of a processor walk along columns at one pace: the first brings them to the nearest cache. What
    # a block holds of its row is read once a sweep, whatever visits follow.
    cached = sum(v[2] + v[3] / blocks_held for sweep in sweeps for v in sweep)
    cached -= sum(4 * share * (len(sweep) - 1) for sweep in sweeps)
    held = 4 * p.similarities + 2  # bytes a pair: products come from memory once, weights go there
    rest, bound = longest(
        issue=m.issue(issued * p.pairs),
        cache=cached * p.pairs / m.cache,
        memory=held * p.pairs / m.memory,
    )
    similarities = p.similarities * max(2 * p.pairs * d / m.cublas, 4 * p.pairs / m.memory)
    blocks = -(-p.rows // 1024)  # each adds to the candidates' gradient, in float32
    added = 0 if p.equal else blocks * p.columns * d * 8
    gradients = max(2 * p.pairs * d / m.cublas, 2 * p.pairs / m.memory)
    gradients += 0 if p.equal else max(2 * p.pairs * d / m.cublas, (2 * p.pairs + added) / m.memory)
    return Step(similarities + gradients, rest, bound, issued, cached)


def tiles(p: Problem, d: int, m: Machine, kernels: list[Row]) -> Step | None:
    """Kernels one after the other; None where they have not been compiled for this dimension."""
    mine = [
        r for r in kernels
        if r["loss"] in (p.loss, p.before)
        and (r["arch"], r["dtype"], r["D"]) == ("sm_90", "bfloat16", str(d))
        and r["issued_per_pair"] and not r["kernel"].endswith("no gradient")
    ]  # fmt: skip
    if not any(r["loss"] == p.loss for r in mine):
        return None
    found = any(r["loss"] == p.loss and r["kernel"].endswith("no gradient") for r in kernels)
    sums = dict.fromkeys(("products", "rest", "issued", "cached"), 0.0)
    bounds = []
    for r in mine:
        writes = r["kernel"].startswith("written")
        block = min(2048, 2**26 / p.columns)  # rows of written weights
        # Of one set blocks go from their first row on, unless they also find what rows return.
        share = (1 + block / p.columns) / 2 if writes and p.one_set and not found else 1.0
        pairs = share * p.pairs
        issued, cached = share * float(r["issued_per_pair"]), share * float(r["l2_bytes_per_pair"])
        multiplied = m.products(2 * pairs * d * int(r["products"]))
        arithmetic = m.issue(issued * p.pairs)
        read = cached * p.pairs / m.cache
        # A block alone on its processor multiplies and computes in turn; of two one computes meanwhile.
        threads = 32 * int(r["warps"])
        registers = threads * -(-int(r["registers"]) // 8) * 8
        alone = min(m.registers // registers, m.shared // (int(r["shared_bytes"]) + 1024)) < 2
        busy = multiplied + arithmetic if alone else max(multiplied, arithmetic)
        stored = 2 * pairs / m.memory if writes else 0.0
        seconds = max(busy, read, stored)
        turns = "in turn" if alone else "overlapped"
        bounds.append("cache" if read == seconds else "memory" if stored == seconds else turns)
        if writes:  # then the products of each 128 MiB of them: of one set one, in two halves; else two
            once = 2 * p.pairs * d / m.cublas
            moved = 2 * p.pairs + (0 if found and p.one_set else p.rows / block * p.columns * d * 8 * share)
            both = max(once, moved / m.memory) + (0 if p.one_set else max(once, 2 * p.pairs / m.memory))
            multiplied += both
            seconds += both
        sums["products"] += multiplied
        sums["rest"] += seconds - multiplied
        sums["issued"] += issued
        sums["cached"] += cached
    return Step(bound=", ".join(dict.fromkeys(bounds)), **sums)


def read(name: str) -> list[Row]:
    path = RESULTS / name
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


COLUMNS = (
    "problem", "rows", "columns", "D", "kernels", "bare_ms", "products_ms", "rest_ms", "bound",
    "issued_per_pair", "cache_bytes_per_pair", "predicted_ms", "predicted_ratio", "measured_ratio",
)  # fmt: skip


def predicted(m: Machine) -> Iterator[dict[str, object]]:
    rows, kernels, measured = map(read, ("row-instructions.csv", "triton-resources.csv", "first-light.csv"))
    ratios = {
        (r["loss"].partition(":")[0], r["batch"], r["dim"], r["contender"]): r["times_floor"]
        for r in measured
    }
    for p in PROBLEMS:
        for d in p.dims:
            floor = bare(p, d, m)
            steps = (("native", native(p, d, m, rows)), ("triton", tiles(p, d, m, kernels)))
            for who, step in steps:
                if step is None:
                    continue
                place = (p.loss.partition(",")[0], str(p.columns), str(d), who)
                yield {
                    "problem": p.title, "rows": p.rows, "columns": p.columns, "D": d,
                    "kernels": "native" if who == "native" else "tiles", "bare_ms": f"{floor * MS:.2f}",
                    "products_ms": f"{step.products * MS:.2f}", "rest_ms": f"{step.rest * MS:.2f}",
                    "bound": step.bound, "issued_per_pair": f"{step.issued:.1f}",
                    "cache_bytes_per_pair": f"{step.cached:.1f}",
                    "predicted_ms": f"{step.seconds * MS:.2f}",
                    "predicted_ratio": f"{step.seconds / floor:.2f}",
                    "measured_ratio": ratios.get(place, NOT_RUN),
                }  # fmt: skip


def markdown(lines: list[dict[str, object]], m: Machine) -> str:
    head = ("problem", "D", "kernels", "bare, ms", "products", "rest", "bound of the rest",
            "instructions a pair", "cache, bytes a pair", "step, ms", "step / bare", "measured")  # fmt: skip
    keys = ("problem", "D", "kernels", "bare_ms", "products_ms", "rest_ms", "bound", "issued_per_pair",
            "cache_bytes_per_pair", "predicted_ms", "predicted_ratio", "measured_ratio")  # fmt: skip
    text = [
        "# A step on an H200, by counting",
        "",
        "**Predicted, not measured**, by `python benchmarks/predict.py`; docs/gpu.md has the formulas.",
        "Forward and backward, bfloat16, B=32,768 (SigLIP: 65,536), beside cuBLAS's products of the same",
        "problem. Instructions and bytes are those of the kept tables of machine code; the rates are these:",
        "",
        "| | |",
        "|---|---|",
        f"| processors, clock | {m.processors}, {m.clock / 1e9} GHz (assumed under load) |",
        f"| instructions issued | {m.lanes} a clock and processor |",
        f"| products by tensor cores | {m.tensor} operations a clock and processor |",
        f"| products by cuBLAS | {m.cublas / 1e12:.0f} TFLOP/s (assumed) |",
        f"| memory | {m.memory / 1e12:.2f} TB/s (assumed: nine tenths of the data sheet) |",
        f"| second cache | {m.cache / 1e12:.1f} TB/s (assumed) |",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    text += ["| " + " | ".join(str(line[k]) for k in keys) + " |" for line in lines]
    return "\n".join(text) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare with the kept table")
    options = parser.parse_args()
    machine = Machine()
    lines = list(predicted(machine))
    text = markdown(lines, machine)
    if options.check:
        return int((RESULTS / "predicted.md").read_text() != text)
    (RESULTS / "predicted.md").write_text(text)
    with open(RESULTS / "predicted.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
