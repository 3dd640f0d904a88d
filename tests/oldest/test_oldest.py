"""The extension against older torch, down to the oldest that is claimed: it compiles with those headers,
asks for nothing that those libraries lack, and, so compiled, runs in the torch that is installed.

`make test-oldest` fetches the headers (fetch.py) and runs this. No older torch is run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
FETCHED = ROOT / "build" / "oldest"
VERSIONS = sorted(p.parent.name for p in FETCHED.glob("*/symbols.txt"))
COMPILER = (os.environ.get("CXX") or shutil.which("c++") or "g++").split()
SOURCES = ["ops.cpp", "one_block.cpp", "cuda/ops_cuda.cpp"]


def test_the_oldest_that_is_claimed_is_among_them():
    """In the package's requirement, and in the stable ABI that csrc/build.py asks torch's headers for."""
    claimed = re.search(r'"torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    target = re.search(r"TORCH_TARGET_VERSION=0x(\w\w)(\w\w)0{12}", (ROOT / "csrc/build.py").read_text())
    assert claimed and target
    assert claimed[1] == f"{int(target[1], 16)}.{int(target[2], 16)}"
    assert f"{claimed[1]}.0" in VERSIONS, f"make test-oldest fetches it; there are {VERSIONS}"


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("version", VERSIONS)
def test_compiles_and_asks_for_what_is_there(version, source, tmp_path):
    compiled = tmp_path / "out.o"
    done = subprocess.run(
        [*COMPILER, "-std=c++20", "-O0", "-fPIC", "-Wall", "-Wextra",
         f"-isystem{FETCHED / version / 'include'}",
         "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{ROOT / 'csrc'}", "-c",
         str(ROOT / "csrc" / source), "-o", str(compiled)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    table = subprocess.run(["nm", "-u", str(compiled)], capture_output=True, text=True, check=True).stdout
    asked = {line.split()[-1] for line in table.splitlines()}
    torchs = {name for name in asked if re.match(r"(aoti_)?torch_|_ZN?K?(2at|3c10|5torch)", name)}
    assert torchs or source != "ops.cpp"
    there = set((FETCHED / version / "symbols.txt").read_text().split())
    assert not sorted(torchs - there)


BUILD = """
import sys
from pathlib import Path
from torch.utils import cpp_extension
from csrc.build import build
root, headers, work = map(Path, sys.argv[1:])
cpp_extension.include_paths = lambda *a, **k: [str(headers)]
build(root, work, work / "_C.so", mode="cpu")
"""
RUN = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("fastdml._C", sys.argv[1])
sys.modules["fastdml._C"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from fastdml import functional as F
from fastdml.engine import library
assert library.load() is module
x = torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
found = []
for backend in ("native", "chunked"):
    leaf = x.clone().requires_grad_()
    value = F.multi_similarity(leaf, torch.arange(40) // 4, backend=backend)
    found.append((value.detach(), *torch.autograd.grad(value, leaf)))
for a, b in zip(*found):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
print("agrees")
"""


@pytest.mark.parametrize("version", VERSIONS[:1])
def test_what_the_oldest_headers_make_runs_in_this_torch(version):
    work = FETCHED / version / "library"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FASTDML_LOSSES": "multi_similarity"}
    for code, arguments, printed in (
        (BUILD, [ROOT, FETCHED / version / "include", work], ""),
        (RUN, [work / "_C.so"], "agrees"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=environment, capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0 and printed in done.stdout, (done.stdout + done.stderr)[-3000:]
