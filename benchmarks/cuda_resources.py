"""Writes benchmarks/results/cuda-resources.csv and .md: what ptxas makes of every row kernel.

No GPU is needed and nothing is timed: the generated CUDA sources of the build are assembled once more
with ptxas's report. Takes a few seconds per loss. The exit status is 1 where a kernel spills registers.

    python benchmarks/cuda_resources.py [--losses multi_similarity ...]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from csrc.build import Cuda, generate_cuda, headers, losses  # noqa: E402

RESULTS = Path(__file__).parent / "results"
COLUMNS = (
    "source", "functor", "type", "arch", "registers", "stack_bytes", "spill_store_bytes",
    "spill_load_bytes", "barriers", "threads_per_multiprocessor",
)  # fmt: skip
_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:, used (\d+) barriers)?")
# rows_kernel<float, fastdml::cuda::SmoothAP, false, ...>, mangled: f or d, the length and name of the
# functor, whether it reads sorted rows, and its form; and keys_kernel<float, fastdml::cuda::SmoothAP>
_KERNEL = re.compile(r"(rows|keys)_kernelI([fd])NS0_(\d+)(\w+)")
# (anonymous)::remove_radial<float, ...>
_RADIAL = re.compile(r"\d(remove_radial)I([fd])")
FORMS = {  # see csrc/cuda/row.cuh
    f"{name}ILNS_10WeightTypeE{weights}": f" {name.lower()}{kind}"
    for name in ("Cosine", "Distance")
    for weights, kind in enumerate(("", " bfloat16"))
}
REGISTERS = 65536  # of a multiprocessor


def report(cuda: Cuda, source: Path) -> list[dict[str, object]]:
    """One line per kernel and architecture of a source file."""
    with tempfile.TemporaryDirectory() as folder:
        folders = [f"-I{x}" for x in (ROOT / "csrc", source.parent)]
        command = [str(cuda.nvcc), *cuda.flags().split(), "-Xptxas=-v", *folders]
        done = subprocess.run(
            [*command, "-c", str(source), "-o", str(Path(folder) / "out.o")],
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return list(parse(source.name.split(".")[0], done.stderr))


def parse(source: str, text: str) -> list[dict[str, object]]:
    """The lines of ptxas's report."""
    found: list[dict[str, object]] = []
    line: dict[str, object] = {}
    for part in text.splitlines():
        if entry := _ENTRY.search(part):
            kernel = _KERNEL.search(entry[1])
            name, kind = entry[1], ""
            if kernel:
                length = int(kernel[3])
                name, rest = kernel[4][:length], kernel[4][length:]
                name += (
                    " keys" if kernel[1] == "keys" else " sorted" if rest.startswith("ELb1") else ""
                )
                name += next((form for key, form in FORMS.items() if key in rest), "")
                kind = {"f": "float32", "d": "float64"}[kernel[2]]
            elif radial := _RADIAL.search(name):
                name, kind = radial[1], {"f": "float32", "d": "float64"}[radial[2]]
            line = {"source": source, "functor": name, "type": kind, "arch": entry[2]}
        elif stack := _STACK.search(part):
            line |= dict(zip(COLUMNS[5:8], map(int, stack.groups()), strict=True))
        elif used := _USED.search(part):
            registers = int(used[1])
            # Registers are given to warps in units of 8 a thread.
            threads = min(2048, REGISTERS // (-(-registers // 8) * 8) // 32 * 32)
            line |= {"registers": registers, "barriers": int(used[2] or 0)}
            line["threads_per_multiprocessor"] = threads
            found.append({c: line[c] for c in COLUMNS})
    return found


def collect(names: list[str] | None = None, jobs: int = 2) -> list[dict[str, object]]:
    """The reports of the losses of these header names, or of all."""
    cuda = Cuda.find()
    if cuda is None:
        raise SystemExit("no CUDA toolkit with nvcc was found")
    with tempfile.TemporaryDirectory() as folder:
        found = headers(ROOT, Path(folder) / "printed")
        stems = {header.stem for name, _, header in losses(found) if not names or name in names}
        sources = [s for s in generate_cuda(Path(folder), found) if s.name.split(".")[0] in stems]
        if not names:
            sources.append(ROOT / "csrc" / "cuda" / "radial.cu")
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            return [
                line for lines in pool.map(lambda s: report(cuda, s), sources) for line in lines
            ]


def write(lines: list[dict[str, object]]) -> None:
    """Both files."""
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / "cuda-resources.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    spilled = [n for n in lines if n["spill_store_bytes"] or n["spill_load_bytes"]]
    text = [
        "# Resources of the CUDA row kernels",
        "",
        "Registers a thread as ptxas assigns them, and how many threads a multiprocessor then holds (of",
        "2,048; registers only). Made without a GPU by `python benchmarks/cuda_resources.py`. Kernels that",
        f"spill: {len(spilled)}. The sort of rows is CUB's and not among them. A kernel called sorted reads",
        "sorted rows; one called keys writes what they are sorted by; one called cosine or distance is",
        "for these alone, with weights in float32 or bfloat16. Blocks have at most 256 threads.",
        "",
        "| loss | functor | type | registers, sm_80 | registers, sm_90a | threads, sm_90a |",
        "|---|---|---|--:|--:|--:|",
    ]
    table: dict[tuple[object, ...], dict[object, dict[str, object]]] = {}
    for line in lines:
        if line["type"]:
            table.setdefault((line["source"], line["functor"], line["type"]), {})[line["arch"]] = (
                line
            )
    for key, archs in table.items():
        old, new = archs.get("sm_80", {}), archs.get("sm_90a", {})
        cells = [old.get("registers", ""), new.get("registers", "")]
        cells.append(new.get("threads_per_multiprocessor", ""))
        text.append("| " + " | ".join(str(c) for c in (*key, *cells)) + " |")
    (RESULTS / "cuda-resources.md").write_text("\n".join(text) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", nargs="*", help="of these only, and write nothing")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    lines = collect(options.losses, options.jobs)
    if not options.losses:
        write(lines)
    for line in lines:
        print(*(line[c] for c in COLUMNS))
    return int(any(line["spill_store_bytes"] or line["spill_load_bytes"] for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
