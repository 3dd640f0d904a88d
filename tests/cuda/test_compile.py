"""What nvcc makes of the CUDA sources, on any machine that has it; nothing is run."""

import csv
import importlib.util
import re
import subprocess

import pytest
from conftest import ROOT, needs_compiled

from csrc.build import Cuda, uses_lists
from fastdml.engine import library

ROWS = ROOT / "csrc" / "rows"
needs_nvcc = pytest.mark.skipif(Cuda.find() is None, reason="no CUDA toolkit was found")
# With lists; without, but with scalars to learn.
COMPILED = ["smooth_ap", "siglip"]


def resources():
    path = ROOT / "benchmarks" / "cuda_resources.py"
    spec = importlib.util.spec_from_file_location("cuda_resources", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_nvcc
@pytest.mark.parametrize("loss", COMPILED)
def test_kernels_compile_without_spills(loss):
    lines = resources().collect([loss])
    assert {(n["type"], n["arch"]) for n in lines} == {
        (t, a) for t in ("float32", "float64") for a in ("sm_80", "sm_90a")
    }
    for line in lines:
        assert line["spill_store_bytes"] == line["spill_load_bytes"] == line["stack_bytes"] == 0, line
        assert line["registers"] <= 128  # 512 threads a block


def test_report_of_ptxas_is_read():
    text = """
ptxas info    : Compiling entry function '_ZN7fastdml4cuda11rows_kernelIfNS0_8SmoothAPEEEv' for 'sm_90a'
ptxas info    : Function properties for _ZN7fastdml4cuda11rows_kernelIfNS0_8SmoothAPEEEv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 90 registers, used 1 barriers
"""
    (line,) = resources().parse("smooth_ap", text)
    assert (line["functor"], line["type"], line["arch"]) == ("SmoothAP", "float32", "sm_90a")
    assert (line["stack_bytes"], line["spill_store_bytes"], line["spill_load_bytes"]) == (8, 4, 12)
    assert line["registers"] == 90 and line["threads_per_multiprocessor"] == 672


def test_kept_report_shows_no_spills():
    """The committed table; benchmarks/cuda_resources.py remakes it, and fails where a kernel spills."""
    path = ROOT / "benchmarks" / "results" / "cuda-resources.csv"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"multi_similarity", "smooth_ap", "proxy_anchor", "radial"} <= {r["source"] for r in rows}
    assert all(r["spill_store_bytes"] == r["spill_load_bytes"] == "0" for r in rows)


def test_lists_are_found_through_includes(tmp_path):
    (tmp_path / "row.h").write_text("//   row.positives()  a word\n")
    (tmp_path / "shared.h").write_text("auto p = row.positives();\n")
    (tmp_path / "one.h").write_text('#include "shared.h"\n')
    (tmp_path / "two.h").write_text('#include "row.h"\nrow.map(f);\n')
    assert uses_lists(tmp_path / "one.h") and not uses_lists(tmp_path / "two.h")


def test_every_word_of_the_language_is_in_both_rows():
    """A word added to rows/row.h and to the CPU's row must not be missing on CUDA."""
    text = (ROWS / "row.h").read_text()
    words = set(re.findall(r"\b(?:row|list)\.(\w+)\(", text[: text.index("#pragma once")]))
    assert {"reduce", "map", "positives", "compare"} <= words
    for path in ("cpu/row.h", "cuda/row.cuh"):
        row = (ROOT / "csrc" / path).read_text()
        missing = sorted(w for w in words if not re.search(rf"\b{w}\(", row))
        assert not missing, f"{path} lacks {missing}"


@needs_compiled
def test_library_with_cuda_kernels_runs_without_a_gpu():
    if not library.load().cuda:
        pytest.skip("compiled without CUDA")
    shared = library.load().__file__
    needed = subprocess.run(["ldd", shared], capture_output=True, text=True).stdout
    assert "libcuda" not in needed  # nothing of CUDA is asked for at load time
    if not library.runs_on("cuda"):
        assert library.runs_on("cpu")
