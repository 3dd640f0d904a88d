"""Writes benchmarks/results/triton-resources.csv and .md: what ptxas makes of every tile kernel.

No GPU is needed and nothing is timed. Cycles per pair are predicted from instruction counts of the
plain loop and from published rates per multiprocessor; the largest is the bound. Of lists of thresholds
kernel 1 is counted for all groups of them; kernel 2 has an inner loop over them, which is not counted.

    python benchmarks/triton_resources.py [--losses multi_similarity ...] [--arch 80 90 100] [--keep]
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton

from fastdml.kernels import aot, launch

RESULTS = Path(__file__).parent / "results"
# Per multiprocessor and clock: half-precision multiply-adds x 2, special functions, float32
# instructions, integer and comparison instructions (CUDA programming guide, throughput table).
RATES = {80: (2048, 16, 64, 64), 90: (4096, 16, 128, 64), 100: (8192, 16, 128, 64)}
# Why the kernels of a loss over lists have no bound.
UNCOUNTED = {"thresholds": "tiles with positives only", "finish": "once per row",
             "weights": "loop over thresholds"}  # fmt: skip
COLUMNS = (
    "loss", "kernel", "arch", "dtype", "D", "triton", "registers", "spill_bytes", "shared_bytes",
    "shared_limit", "tensor_cores", "mufu_per_pair", "fp32_per_pair", "alu_per_pair",
    "cycles_tensor", "cycles_mufu", "cycles_fp32", "cycles_alu", "bound",
)  # fmt: skip


def row(loss: str, kernel: str, arch: int, dtype: torch.dtype, d: int, c: aot.Compiled) -> dict:
    """One line of the table."""
    per_thread = c.stay * c.stream / (32 * c.warps)
    tile = aot.example(loss)[0]
    groups = max(1, tile.slots // launch.GROUP)
    counts = {pipe: groups * c.counts[pipe] / per_thread for pipe in ("mufu", "fp32", "alu")}
    tensor, mufu, fp32, alu = RATES[arch]
    products = groups if kernel.startswith("statistics") else 2
    if tile.teacher:
        products += 1
    cycles = {
        "tensor": 2 * d * products / tensor,
        "mufu": counts["mufu"] / mufu,
        "fp32": counts["fp32"] / fp32,
        "alu": counts["alu"] / alu,
    }
    named = {"tensor": "tensor", "mufu": "special function", "fp32": "float32", "alu": "integer"}
    seen = any(c.counts.values()) and (not tile.slots or kernel.startswith("statistics"))
    bound = named[max(cycles, key=lambda k: cycles[k])]
    if not seen:
        bound = UNCOUNTED[kernel.partition(",")[0]] if tile.slots else "no plain loop"
        counts, cycles = {}, {}
    return {
        "loss": loss, "kernel": kernel, "arch": f"sm_{arch}", "dtype": str(dtype)[6:], "D": d,
        "triton": triton.__version__, "registers": c.registers, "spill_bytes": c.spill_bytes,
        "shared_bytes": c.shared, "shared_limit": aot.SHARED_LIMIT[arch], "tensor_cores": c.tensor,
        **{f"{pipe}_per_pair": f"{n:.2f}" for pipe, n in counts.items()},
        **{f"cycles_{pipe}": f"{n:.4f}" for pipe, n in cycles.items()},
        "bound": bound,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", nargs="*", default=list(aot.LOSSES))
    parser.add_argument("--arch", nargs="*", type=int, default=list(aot.ARCHITECTURES))
    parser.add_argument(
        "--keep", action="store_true", help="rows of the present table not made anew"
    )
    options = parser.parse_args()
    wide = ("multi_similarity", "sup_con", "proxy_anchor")
    rows = []
    for loss in options.losses:
        for arch in options.arch:
            for d in (64, 128, 256, 512, 1024) if loss in wide and arch == 90 else (128,):
                for kernel, compiled in aot.kernels(loss, arch, torch.bfloat16, d):
                    rows.append(row(loss, kernel, arch, torch.bfloat16, d, compiled))
                print(loss, arch, d, flush=True)
        write(merged(rows) if options.keep else rows)


def merged(rows: list[dict]) -> list[dict]:
    """The rows, and those of the present table for other losses, architectures or dimensions."""

    def place(row: dict) -> tuple[int, int, int]:
        return aot.LOSSES.index(row["loss"]), int(row["arch"][3:]), int(row["D"])

    with open(RESULTS / "triton-resources.csv", newline="") as file:
        present = [row for row in csv.DictReader(file) if row["loss"] in aot.LOSSES]
    fresh = {place(row) for row in rows}
    return sorted([*rows, *(row for row in present if place(row) not in fresh)], key=place)


def write(rows: list[dict]) -> None:
    """Both files."""
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / "triton-resources.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (RESULTS / "triton-resources.md").write_text(markdown(rows))


def markdown(rows: list[dict]) -> str:
    """The table to read; the CSV has the counts behind it."""
    head = ("loss", "kernel", "arch", "D", "registers", "spill_bytes", "shared_bytes", "bound")
    lines = [
        "# Resources of the Triton kernels",
        "",
        f"Compiled by Triton {triton.__version__} in bfloat16, on a machine without a GPU by "
        "`python benchmarks/triton_resources.py`. The bound is predicted from instruction counts of "
        "the plain loop (tiles of negatives only), per multiprocessor and clock; nothing here was "
        "timed. Instruction and cycle counts are in the CSV.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    lines += ["| " + " | ".join(str(one[key]) for key in head) + " |" for one in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
