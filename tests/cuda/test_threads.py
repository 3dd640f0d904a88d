"""Functors with lists and arrays on the row of CUDA, a block's threads real ones under ThreadSanitizer.

What threads share is a functor's lists and arrays, and what the row folds; fibers that run one at a time
(test_emulated.py) cannot show two threads at one value. A team here is two warps.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXAMPLES, ROOT, needs_compiled
from emulated import ALL, COMPILER, build_once

from csrc.build import losses, uses_lists

# Those with lists, and one for what all have in common.
HEADERS = [h for h in ALL if uses_lists(h) or h.stem == "multi_similarity"]
HEADER_OF = {name: header for name, _, header in losses(HEADERS)}
NAMES = sorted(HEADER_OF)


def library_of_the_sanitizer() -> str | None:
    if COMPILER is None:
        return None
    name = subprocess.run(
        [*COMPILER.split(), "-print-file-name=libtsan.so"], capture_output=True, text=True
    ).stdout.strip()
    return str(Path(name).resolve()) if Path(name).is_absolute() else None


LIBRARY = library_of_the_sanitizer()
pytestmark = [
    needs_compiled,
    pytest.mark.skipif(LIBRARY is None, reason="no compiler with ThreadSanitizer was found"),
]

# A process of its own: the sanitizer comes before everything else. Functors are numbered among these.
RUN = """
import sys
import torch
sys.path[:0] = sys.argv[1].split(":")
from conftest import EXAMPLES, Case, call
from emulated import Emulated
from fastdml.engine import library
from fastdml.engine.dispatch import EXECUTORS
torch.ops.load_library(sys.argv[2])
names, known = sys.argv[3].split(","), library.functors()
functors = {name: (k, *known[name][1:]) for k, name in enumerate(names)}
library.functors = lambda: functors
EXECUTORS["emulated"] = Emulated()
torch.ops.fastdml_emulated.configure(64, 0)
g = torch.Generator().manual_seed(0)
x, ref = (torch.randn(n, 4, generator=g, dtype=torch.float64) for n in (2, 70))
case = Case(x, torch.arange(2), ref, torch.arange(70) // 6)
for p in EXAMPLES:
    if p.id in sys.argv[4].split(","):
        print("running", p.id, file=sys.stderr, flush=True)
        call(p.values[0], case, "emulated")
print("done")
"""


def watched(examples: list[str]) -> subprocess.CompletedProcess[str]:
    target = build_once(ROOT / "build" / "threads", HEADERS, flags=["-fsanitize=thread", "-g1"])
    here = Path(__file__).resolve().parent
    return subprocess.run(
        [sys.executable, "-c", RUN, f"{here}:{here.parent}", str(target), ",".join(NAMES),
         ",".join(examples)],
        capture_output=True, text=True, cwd=ROOT,
        env={
            **os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(LIBRARY), "OMP_NUM_THREADS": "1",
            "TSAN_OPTIONS": "exitcode=66 halt_on_error=0",
        },
    )  # fmt: skip


def test_no_race():
    # One example a loss: a header may hold forms of it that no example begins with.
    first = {p.values[0].name: p for p in reversed(EXAMPLES) if p.values[0].name in NAMES}
    assert {HEADER_OF[name] for name in first} == set(HEADERS)
    done = watched([p.id for p in first.values()])
    found = sorted({line for line in done.stderr.splitlines() if line.startswith("SUMMARY")})
    assert done.returncode == 0 and "done" in done.stdout, "\n".join(found) or done.stderr[-3000:]
    assert done.stderr.count("running") == len(first)
