"""Writes benchmarks/results/triton-resources.csv and .md: what ptxas makes of every tile kernel.

No GPU is needed and nothing is timed. Cycles per pair are predicted from instruction counts of the
plain loop and from published rates per multiprocessor; the largest is the bound. Of lists of thresholds
kernel 1 is counted for all groups of them; in kernel 2 what its inner loop over them does is counted as
often as it runs. Kernels are those that run: printed ones of losses in the row language.

    python benchmarks/triton_resources.py [--losses multi_similarity ...] [--arch 80 90 100]
        [--types bfloat16 float32] [--keep]

issued_per_pair: instructions of the plain loop that a pair takes of a thread's, all of them.
l2_bytes_per_pair: what it reads of embeddings from the second cache. Both of all visits of a kernel;
`predict.py` goes by them.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton

from fastdml.bench import tile_functors
from fastdml.kernels import aot, configs

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
# Of the first every dimension is kept, of these every architecture; of others bfloat16 at 128 on Hopper.
WIDE = ("multi_similarity",)
EVERYWHERE = (*WIDE, "sup_con", "proxy_anchor", "smooth_ap")
PREDICTED: dict[str, tuple[int, ...]] = {  # besides, for benchmarks/predict.py
    "contrastive": (512,), "sup_con": (512,), "info_nce": (512,), "log_sum_exp": (512,),
    "proxy_anchor": (512,), "smooth_ap": (512,), "siglip": (768,),
}  # fmt: skip
COLUMNS = (
    "loss", "kernel", "arch", "dtype", "precision", "D", "triton", "stay", "stream", "warps", "registers",
    "spill_bytes", "shared_bytes", "shared_limit", "tensor_cores", "products", "mufu_per_pair",
    "fp32_per_pair", "alu_per_pair", "issued_per_pair", "l2_bytes_per_pair",
    "cycles_tensor", "cycles_mufu", "cycles_fp32", "cycles_alu", "cycles_issue", "bound",
)  # fmt: skip
ISSUE = 128  # instructions of threads a multiprocessor issues in a clock: four warps


def row(
    loss: str, kernel: str, arch: int, dtype: torch.dtype, d: int, c: aot.Compiled, precision: str,
    example: aot.Example,
) -> dict:  # fmt: skip
    """One line of the table. precision: of float32 products, else empty."""
    per_thread = c.stay * c.stream / (32 * c.warps)
    counts = {pipe: c.visits * c.counts[pipe] / per_thread for pipe in ("mufu", "fp32", "alu")}
    counts["issued"] = c.visits * c.issued
    tensor, mufu, fp32, alu = RATES[arch]
    products = c.visits * (2 if example.tile.teacher else 1) + kernel.startswith("weights,")
    cycles = {
        "tensor": 2 * d * products * TENSOR_COST.get(precision, 0) / tensor,
        "mufu": counts["mufu"] / mufu,
        "fp32": counts["fp32"] / fp32,
        "alu": counts["alu"] / alu,
        "issue": counts["issued"] / ISSUE,
    }
    named = {
        "tensor": "tensor", "mufu": "special function", "fp32": "float32", "alu": "integer", "issue": "issue",
    }  # fmt: skip
    sparse = example.tile.slots == 0 and kernel.startswith("statistics ") and (
        example.tile.passes[int(kernel[-1]) - 1].positives_only
    )
    bound = UNCOUNTED["thresholds"] if sparse else UNCOUNTED.get(kernel)
    bound = bound or named[max(cycles, key=lambda k: cycles[k])]
    if precision in ("ieee", "tf32x3") and kernel != "finish":
        bound = OTHERWISE  # its shortest loop is the one over D
    elif not any(c.counts.values()):
        bound = UNCOUNTED.get(kernel, "no plain loop")
    if bound in (*UNCOUNTED.values(), OTHERWISE, "no plain loop"):
        counts, cycles = {}, {}
    return {
        "loss": loss, "kernel": kernel, "arch": f"sm_{arch}", "dtype": str(dtype)[6:],
        "precision": precision, "D": d, "triton": triton.__version__, "stay": c.stay, "stream": c.stream,
        "warps": c.warps, "registers": c.registers, "spill_bytes": c.spill_bytes,
        "shared_bytes": c.shared, "shared_limit": aot.SHARED_LIMIT[arch], "tensor_cores": c.tensor,
        "products": products if cycles else "",
        **{f"{pipe}_per_pair": f"{n:.2f}" for pipe, n in counts.items()},
        **({"l2_bytes_per_pair": f"{c.visits * c.l2_bytes:.2f}"} if counts else {}),
        **{f"cycles_{pipe}": f"{n:.4f}" for pipe, n in cycles.items()},
        "bound": bound,
    }  # fmt: skip


def wanted(loss: str, arch: int, types: list[str]) -> list[tuple[torch.dtype, int, str]]:
    """(type, dimension, products of float32) that are kept of a loss."""
    found: list[tuple[torch.dtype, int, str]] = []
    if "bfloat16" in types and (arch == 90 or loss in EVERYWHERE):
        dimensions = (64, 128, 256, 512, 1024) if loss in WIDE and arch == 90 else (128,)
        dimensions += PREDICTED.get(loss, ()) if arch == 90 else ()
        found += [(torch.bfloat16, d, "") for d in dimensions]
    if "float32" in types and loss in FLOAT32 and arch < 100:
        found += [(torch.float32, 128, precision) for precision in configs.PRECISIONS]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", nargs="*")
    parser.add_argument("--arch", nargs="*", type=int, default=list(aot.ARCHITECTURES))
    parser.add_argument("--types", nargs="*", default=["bfloat16", "float32"])
    parser.add_argument(
        "--keep", action="store_true", help="rows of the present table not made anew"
    )
    options = parser.parse_args()
    rows: list[dict] = []
    names = tile_functors.names()
    for loss in options.losses or names:
        # Smooth-AP is predicted with four a class, compiled at its widest elsewhere.
        for per_class in (16, 4) if loss == "smooth_ap" else (16,):
            example = tile_functors.example(loss, per_class)
            name = loss if per_class == 16 else f"{loss}, {per_class} a class"
            usual = per_class == 16
            for arch in options.arch if usual else [90]:
                types = options.types if usual else ["bfloat16"]
                for dtype, d, precision in wanted(loss, arch, types):
                    for kernel, compiled in aot.kernels(example, arch, dtype, d, precision or "tf32"):
                        rows.append(row(name, kernel, arch, dtype, d, compiled, precision, example))
                    print(name, arch, dtype, d, precision, flush=True)
        write(merged(rows, names) if options.keep else rows)


def merged(rows: list[dict], names: list[str]) -> list[dict]:
    """The rows, and those of the present table for other losses, architectures or dimensions."""

    def place(row: dict) -> tuple[int, str, int, str, str, int]:
        products = row.get("precision") or ""  # an older table has none
        loss, _, rest = row["loss"].partition(",")
        return names.index(loss), rest, int(row["arch"][3:]), row["dtype"], products, int(row["D"])

    with open(RESULTS / "triton-resources.csv", newline="") as file:
        present = [row for row in csv.DictReader(file) if row["loss"].partition(",")[0] in names]
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
    head = (
        "loss", "kernel", "arch", "numbers", "D", "tile", "registers", "spill_bytes", "shared_bytes",
        "issued_per_pair", "l2_bytes_per_pair", "bound",
    )  # fmt: skip
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
        shown = {**one, "numbers": numbers, "tile": f"{one['stay']} x {one['stream']}"}
        lines.append("| " + " | ".join(str(shown.get(key, "")) for key in head) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
