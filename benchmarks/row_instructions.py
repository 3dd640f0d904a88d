"""Writes benchmarks/results/row-instructions.csv and .md: instructions a pair of the CUDA row kernels.

No GPU is needed and nothing is timed. A row is visited by loops over its vectors; the instructions of a
loop are counted in the machine code, taken branches or not, and divided by the pairs of an iteration, and so
are the bytes that it loads and stores: of the row itself, and of its columns (class numbers, scales), which
are the same for all rows. Loops within a loop (over the thresholds of a list) are counted by themselves, and
so is the loop that copies a part of the row into shared memory; `shared_bytes` is what a block has besides.

    python benchmarks/row_instructions.py [--csrc FOLDER] [--label NAME]

--csrc: sources to count, those of another commit say; --label: lines of that name are replaced in the
table and the others are kept.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from csrc.build import Cuda, generate_cuda, headers, uses_lists  # noqa: E402
from fastdml.kernels.aot import _tool  # noqa: E402

RESULTS = Path(__file__).parent / "results"
LOSSES = ("multi_similarity", "info_nce", "proxy_anchor", "contrastive", "sup_con", "siglip", "smooth_ap")
COLUMNS = (
    "label", "source", "functor", "form", "registers", "blocks", "visits", "visit_pairs", "inner",
    "row_bytes", "column_bytes", "copy", "shared_bytes",
)  # fmt: skip
_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+)", re.M)
_KERNEL = re.compile(r"rows_kernelIfNS0_(\d+)(\w+)")
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
# Bytes of a thread's load or store of global memory, or of memory that may be shared memory as well.
_MOVED = re.compile(r"^(LD|ST)G?\.E(?:\.\w+)*?(?:\.(64|128))?(?:\.\w+)*$")
VECTOR = re.compile(r"LDG?\.E\.128")
_USED = re.compile(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", re.S)
FORMS = {"": "any"} | {
    f"{name}ILNS_10WeightTypeE{weights}": f"{name.lower()}{kind}"
    for name in ("Cosine", "Distance")
    for weights, kind in enumerate(("", ", bfloat16 weights"))
}


def used_bytes(lists: bool) -> int:
    """Shared memory of a block for folds, and for lists (kScratch and kArena of csrc/cuda, in float32)."""
    return 4 * (2 * 16 * 8 + (32 * 256 + 64 if lists else 0))


def backward(code: list[tuple[str, str]], labels: dict[str, int]) -> list[tuple[int, int]]:
    """The loops: their first and last instructions."""
    found = []
    for at, (name, rest) in enumerate(code):
        target = re.search(r"\.L_x_\d+", rest) if name.startswith("BRA") else None
        if target and labels.get(target[0], at + 1) <= at:
            found.append((labels[target[0]], at))
    return found


def copying(code: list[tuple[str, str]], labels: dict[str, int]) -> float:
    """Instructions for a pair of the row that is copied: of the loop that copies the most at once."""
    most = 0, 0
    for first, last in backward(code, labels):
        copies = sum(n.startswith("LDGSTS") for n, _ in code[first : last + 1])
        most = max(most, (copies, first - last - 1))
    return -most[1] / (4 * most[0]) if most[0] else 0.0


def loops(
    code: list[tuple[str, str]], labels: dict[str, int]
) -> list[tuple[list[str], list[int]]]:
    """The innermost loops that read vectors of 16 bytes: their instructions, and how many of these stand in
    each loop within."""
    found = backward(code, labels)

    def reads(first: int, last: int) -> bool:
        return any(VECTOR.match(n) for n, _ in code[first : last + 1])

    def within(first: int, last: int) -> list[tuple[int, int]]:
        return [(f, b) for f, b in found if (f, b) != (first, last) and first <= f and b <= last]

    return [
        ([n for n, _ in code[first : last + 1]], [b - f + 1 for f, b in within(first, last)])
        for first, last in sorted(found)
        if reads(first, last) and not any(reads(*one) for one in within(first, last))
    ]


def moved(names: list[str], what: str) -> int:
    """Bytes that a thread loads ("LD") or stores ("ST")."""
    parts = (_MOVED.match(name) for name in names)
    return sum(int(m[2] or 32) // 8 for m in parts if m and m[1] == what)


@dataclasses.dataclass(frozen=True)
class Visit:
    """A loop over a row, a pair: instructions, those of the loops within it, and bytes."""

    pairs: int
    instructions: float
    inner: float
    row_bytes: float
    column_bytes: float

    @staticmethod
    def of(names: list[str], inner: list[int], form: str) -> Visit:
        vectors = sum(VECTOR.match(n) is not None for n in names)
        # Two vectors of four pairs a thread, or one; of each there are two to four to read. Only what is of
        # the row may lie in shared memory.
        of_row = sum(n.startswith("LD.E.128") for n in names)
        pairs = 4 * of_row or (8 if vectors >= (5 if form == "any" else 4) else 4)
        loads, stores = moved(names, "LD") / pairs, moved(names, "ST") / pairs
        return Visit(pairs, len(names) / pairs, sum(inner) / pairs, 4 + stores, loads - 4)


def kernels(sass: str) -> Iterator[tuple[str, str, str, list[Visit], float]]:
    """(symbol, functor, form, visits, copying) of unsorted float32 kernels."""
    starts = [*_SECTION.finditer(sass)]
    for start, stop in zip(starts, [*(m.start() for m in starts[1:]), len(sass)], strict=True):
        kernel = _KERNEL.search(start[1])
        if kernel is None:
            continue
        length = int(kernel[1])
        functor, rest = kernel[2][:length], kernel[2][length:]
        if not rest.startswith("ELb0"):
            continue
        form = next(f for key, f in reversed(FORMS.items()) if key in rest)
        code: list[tuple[str, str]] = []
        labels: dict[str, int] = {}
        for line in sass[start.start() : stop].splitlines():
            if label := _LABEL.match(line):
                labels[label[1]] = len(code)
            elif found := _INSTRUCTION.search(line):
                code.append((found[1], found[2]))
        visits = [Visit.of(names, inner, form) for names, inner in loops(code, labels)]
        yield start[1], functor, form, visits, copying(code, labels)


def count(loss: str, csrc: Path, label: str) -> Iterator[dict[str, object]]:
    cuda = Cuda.find()
    if cuda is None:
        raise SystemExit("no CUDA toolkit with nvcc was found")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = headers(csrc.parent, folder / "printed")
        made = {s.name.split(".")[0]: s for s in generate_cuda(folder, found)}
        shared = used_bytes(any(uses_lists(h) for h in found if h.stem == loss))
        command = [
            str(cuda.nvcc), "-std=c++20", "-O3", "-DNDEBUG", "-gencode=arch=compute_90a,code=sm_90a",
            "-Xptxas=-v", f"-I{csrc}", f"-I{folder}", "-cubin", str(made[loss]), "-o",
            str(folder / "out.cubin"),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        used = {symbol: int(n) for symbol, n in _USED.findall(done.stderr)}
        sass = subprocess.run(
            [_tool("nvdisasm"), "-c", str(folder / "out.cubin")],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
    threads = int(re.findall(r"kMaxThreads = (\d+)", (csrc / "cuda" / "team.cuh").read_text())[0])
    for symbol, functor, form, visits, copy in kernels(sass):
        registers = used[symbol]
        yield {
            "label": label, "source": loss, "functor": functor, "form": form, "registers": registers,
            "blocks": 65536 // (-(-registers // 8) * 8 * threads),
            "visits": " ".join(f"{v.instructions:.1f}" for v in visits),
            "visit_pairs": " ".join(str(v.pairs) for v in visits),
            "inner": " ".join(f"{v.inner:.1f}" for v in visits),
            "row_bytes": " ".join(f"{v.row_bytes:.1f}" for v in visits),
            "column_bytes": " ".join(f"{v.column_bytes:.1f}" for v in visits),
            "copy": f"{copy:.1f}", "shared_bytes": shared,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csrc", type=Path, default=ROOT / "csrc")
    parser.add_argument("--label", default="now")
    parser.add_argument("--losses", nargs="*", default=list(LOSSES))
    options = parser.parse_args()
    path = RESULTS / "row-instructions.csv"
    rows: list[dict[str, object]] = []
    if path.exists():
        with open(path, newline="") as file:
            rows = [r for r in csv.DictReader(file) if r["label"] != options.label]
    for loss in options.losses:
        rows += count(loss, options.csrc.resolve(), options.label)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = [
        "# Instructions a pair of the CUDA row kernels",
        "",
        "Of unsorted float32 rows, sm_90a, by `python benchmarks/row_instructions.py`: static",
        "instructions of each loop over a row, divided by its pairs, in the order of the code. Counted, not",
        "timed: nothing of this has run on a GPU. The last loop of multi-similarity and smooth AP is of a",
        "row without anything to do; smooth AP's loop over thresholds is counted once, and stands in the CSV",
        "by itself (`inner`). `blocks`: of the largest size that registers let a multiprocessor hold. Bytes:",
        "what a pair of each loop moves, of its row / of the columns that all rows share; the row's four",
        "come from shared memory from the second visit on where a block holds that part of it, and that",
        "is copied there by a loop of its own (`copy`, in the CSV).",
        "",
        "| sources | functor | form | registers | blocks | instructions a pair | bytes a pair |",
        "|---|---|---|--:|--:|---|---|",
    ]
    for r in rows:
        moved_ = zip(str(r.get("row_bytes") or "").split(), str(r.get("column_bytes") or "").split())
        cells = (
            r["label"], r["functor"], r["form"], r["registers"], r["blocks"], r["visits"],
            ", ".join(f"{a} / {b}" for a, b in moved_),
        )  # fmt: skip
        text.append("| " + " | ".join(map(str, cells)) + " |")
    (RESULTS / "row-instructions.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
