"""Writes benchmarks/results/triton-resources.csv and .md: what ptxas makes of every tile kernel.

No GPU is needed and nothing is timed. Cycles per pair are predicted from instruction counts of the
plain loop and from published rates per multiprocessor; the largest is the bound. Of lists of thresholds
kernel 1 is counted for all groups of them; in kernel 2 what its inner loop over them does is counted as
often as it runs.

    python benchmarks/triton_resources.py [--losses multi_similarity ...] [--arch 80 90 100]
        [--types bfloat16 float32] [--keep]
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton

from fastdml.bench.tiles import names, usual
from fastdml.kernels import aot, configs, launch

RESULTS = Path(__file__).parent / "results"
# Per multiprocessor and clock: half-precision multiply-adds x 2, special functions, float32
# instructions, integer and comparison instructions (CUDA programming guide, throughput table).
RATES = {80: (2048, 16, 64, 64), 90: (4096, 16, 128, 64), 100: (8192, 16, 128, 64)}
# float32 products on tensor cores: half the rate, and three for one.
TENSOR_COST = {"": 1, "tf32": 2, "tf32x3": 6}
# Why kernels of a loss over lists have no bound, and others whose products fill a loop of their own.
UNCOUNTED = {"thresholds": "tiles with positives only", "finish": "once per row"}
OTHERWISE = "loop over D"
FLOAT32 = ("sup_con", "proxy_anchor", "smooth_ap")  # losses of one set, of two, and over lists
COLUMNS = (
    "loss", "kernel", "arch", "dtype", "precision", "D", "triton", "registers", "spill_bytes", "shared_bytes",
    "shared_limit", "tensor_cores", "mufu_per_pair", "fp32_per_pair", "alu_per_pair",
    "cycles_tensor", "cycles_mufu", "cycles_fp32", "cycles_alu", "bound",
)  # fmt: skip


def row(
    loss: str, kernel: str, arch: int, dtype: torch.dtype, d: int, c: aot.Compiled, precision: str
) -> dict:
    """One line of the table. precision: of float32 products, else empty."""
    per_thread = c.stay * c.stream / (32 * c.warps)
    tile = usual(loss).tile
    # Kernel 1 takes the thresholds of a list in groups; kernel 2 loops over them.
    groups = max(1, tile.slots // launch.GROUP) if kernel.startswith("statistics") else 1
    counts = {pipe: groups * c.counts[pipe] / per_thread for pipe in ("mufu", "fp32", "alu")}
    tensor, mufu, fp32, alu = RATES[arch]
    products = groups if kernel.startswith("statistics") else 2
    if tile.teacher:
        products += 1
    cycles = {
        "tensor": 2 * d * products * TENSOR_COST.get(precision, 0) / tensor,
        "mufu": counts["mufu"] / mufu,
        "fp32": counts["fp32"] / fp32,
        "alu": counts["alu"] / alu,
    }
    named = {"tensor": "tensor", "mufu": "special function", "fp32": "float32", "alu": "integer"}
    bound = UNCOUNTED.get(kernel) or named[max(cycles, key=lambda k: cycles[k])]
    if precision in ("ieee", "tf32x3") and kernel != "finish":
        bound = OTHERWISE  # its shortest loop is the one over D
    elif not any(c.counts.values()):
        bound = UNCOUNTED.get(kernel, "no plain loop")
    if bound in (*UNCOUNTED.values(), OTHERWISE, "no plain loop"):
        counts, cycles = {}, {}
    return {
        "loss": loss, "kernel": kernel, "arch": f"sm_{arch}", "dtype": str(dtype)[6:],
        "precision": precision, "D": d,
        "triton": triton.__version__, "registers": c.registers, "spill_bytes": c.spill_bytes,
        "shared_bytes": c.shared, "shared_limit": aot.SHARED_LIMIT[arch], "tensor_cores": c.tensor,
        **{f"{pipe}_per_pair": f"{n:.2f}" for pipe, n in counts.items()},
        **{f"cycles_{pipe}": f"{n:.4f}" for pipe, n in cycles.items()},
        "bound": bound,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", nargs="*", default=names())
    parser.add_argument("--arch", nargs="*", type=int, default=list(aot.ARCHITECTURES))
    parser.add_argument("--types", nargs="*", default=["bfloat16", "float32"])
    parser.add_argument(
        "--keep", action="store_true", help="rows of the present table not made anew"
    )
    options = parser.parse_args()
    wide = ("multi_similarity", "sup_con", "proxy_anchor")
    rows = []
    for loss in options.losses:
        for arch in options.arch:
            wanted: list[tuple[torch.dtype, int, str]] = []
            if "bfloat16" in options.types:
                dimensions = (64, 128, 256, 512, 1024) if loss in wide and arch == 90 else (128,)
                wanted += [(torch.bfloat16, d, "") for d in dimensions]
            if "float32" in options.types and loss in FLOAT32 and arch < 100:
                wanted += [(torch.float32, 128, precision) for precision in configs.PRECISIONS]
            for dtype, d, precision in wanted:
                for kernel, compiled in aot.kernels(
                    usual(loss), arch, dtype, d, precision or "tf32"
                ):
                    rows.append(row(loss, kernel, arch, dtype, d, compiled, precision))
                print(loss, arch, dtype, d, precision, flush=True)
        write(merged(rows) if options.keep else rows)


def merged(rows: list[dict]) -> list[dict]:
    """The rows, and those of the present table for other losses, architectures or dimensions."""

    known = names()

    def place(row: dict) -> tuple[int, int, str, str, int]:
        products = row.get("precision") or ""  # an older table has none
        return (
            known.index(row["loss"]), int(row["arch"][3:]), row["dtype"], products, int(row["D"])
        )  # fmt: skip

    with open(RESULTS / "triton-resources.csv", newline="") as file:
        present = [row for row in csv.DictReader(file) if row["loss"] in known]
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
    head = ("loss", "kernel", "arch", "numbers", "D", "registers", "spill_bytes", "shared_bytes", "bound")
    lines = [
        "# Resources of the Triton kernels",
        "",
        f"Compiled by Triton {triton.__version__} on a machine without a GPU by "
        "`python benchmarks/triton_resources.py`. The bound is predicted from instruction counts of "
        "the plain loop (tiles of negatives only), per multiprocessor and clock; nothing here was "
        "timed. Instruction and cycle counts are in the CSV.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for one in rows:
        numbers = f"{one['dtype']} {one.get('precision') or ''}".strip()
        lines.append("| " + " | ".join(str({**one, "numbers": numbers}[key]) for key in head) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
