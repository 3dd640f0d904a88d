"""Writes the status table of the README from what is in the tree; `--check` only compares.

    python docs/make_tables.py [--check]
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import fastdml  # noqa: E402, F401
from csrc.build import losses as headers  # noqa: E402
from fastdml.engine.crossover import NOT_RUN, verified  # noqa: E402
from fastdml.engine.registry import LOSSES  # noqa: E402

START, END = "<!-- status: begin -->", "<!-- status: end -->"


def table() -> str:
    functors = {name for name, _, _ in headers(ROOT / "csrc" / "rows")}
    tiles = {p.stem for p in (ROOT / "fastdml" / "kernels" / "tiles").glob("*.py")}
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


def main() -> int:
    path = ROOT / "README.md"
    text = path.read_text()
    wanted = re.sub(
        f"{START}.*?{END}", lambda _: f"{START}\n{table()}\n{END}", text, flags=re.DOTALL
    )
    if "--check" in sys.argv:
        if wanted != text:
            print("README.md: the status table is out of date; run python docs/make_tables.py")
            return 1
        return 0
    path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
