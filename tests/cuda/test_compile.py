"""What nvcc makes of the CUDA sources, on any machine that has it; nothing is run."""

import csv
import importlib.util
import itertools
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, needs_compiled

from csrc.build import Cuda, generate_cuda, headers, losses, on_distances, uses_lists

ROWS = ROOT / "csrc" / "rows"
needs_nvcc = pytest.mark.skipif(Cuda.find() is None, reason="no CUDA toolkit was found")


def resources():
    path = ROOT / "benchmarks" / "cuda_resources.py"
    spec = importlib.util.spec_from_file_location("cuda_resources", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_report_of_ptxas_is_read():
    text = """
ptxas info    : Compiling entry function '_ZN7fastdml4cuda11rows_kernelIfNS0_8SmoothAPEEEv' for 'sm_90a'
ptxas info    : Function properties for _ZN7fastdml4cuda11rows_kernelIfNS0_8SmoothAPEEEv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 90 registers, used 1 barriers
"""
    (line,) = resources().parse("smooth_ap", text)
    for of, name in (("rows_kernelIfNS0_8SmoothAPELb1EE", "SmoothAP sorted"),
                     ("rows_kernelIfNS0_8SmoothAPELb0EE", "SmoothAP"),
                     ("rows_kernelIfNS0_8SmoothAPELb0ENS0_6CosineILNS_10WeightTypeE1EEE",
                      "SmoothAP cosine bfloat16"),
                     ("rows_kernelIfNS0_8SmoothAPELb0ENS0_8DistanceILNS_10WeightTypeE0EEE",
                      "SmoothAP distance"),
                     ("keys_kernelIfNS0_8SmoothAPEE", "SmoothAP keys")):  # fmt: skip
        (other,) = resources().parse("smooth_ap", text.replace("rows_kernelIfNS0_8SmoothAPEE", of))
        assert other["functor"] == name and other["type"] == "float32"
    assert (line["functor"], line["type"], line["arch"]) == ("SmoothAP", "float32", "sm_90a")
    assert (line["stack_bytes"], line["spill_store_bytes"], line["spill_load_bytes"]) == (8, 4, 12)
    assert line["registers"] == 90 and line["threads_per_multiprocessor"] == 672


def test_kept_report_shows_no_spills(tmp_path):
    """The committed table; benchmarks/cuda_resources.py remakes it, and fails where a kernel spills."""
    path = ROOT / "benchmarks" / "results" / "cuda-resources.csv"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    kernels = {(r["functor"], r["type"], r["arch"]) for r in rows}
    known = {functor for functor, *_ in kernels}
    for name, functor, header in losses(headers(ROOT, tmp_path)):
        if functor not in known and Cuda.find() is None:
            continue  # a new loss, of somebody who cannot remake the table
        text = header.read_text()
        # Those whose arrays are as long as a row always find it sorted.
        kinds = [] if "whole_rows" in text else [""]
        kinds += [" sorted", " keys"] if "sort_keys" in text else []
        for kind in kinds:
            for made in itertools.product(("float32", "float64"), ("sm_80", "sm_90a")):
                assert (functor + kind, *made) in kernels, (name, kind, made)
        fixed = ["cosine", *(["distance"] if name in on_distances() else [])]
        for form, weights in itertools.product(fixed if "" in kinds else [], ("", " bfloat16")):
            for arch in ("sm_80", "sm_90a"):
                assert (f"{functor} {form}{weights}", "float32", arch) in kernels, (name, form, arch)
    assert "radial" in {r["source"] for r in rows}
    assert all(r["spill_store_bytes"] == r["spill_load_bytes"] == "0" for r in rows)


def test_losses_on_distances_are_compiled_for_these(tmp_path):
    sources = {s.name: s.read_text() for s in generate_cuda(tmp_path, headers(ROOT, tmp_path / "printed"))}
    distances = {name.partition(".")[0] for name, text in sources.items() if "DISTANCES 1" in text}
    assert {"contrastive", "margin", "triplet_margin", "lifted_structure"} <= distances
    assert not distances & {"multi_similarity", "sup_con", "proxy_anchor", "n_pair", "smooth_ap"}


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


@pytest.mark.parametrize("torchs, told", [(None, False), ("12.8", True), ("13.2", False)], ids=str)
def test_a_toolkit_of_another_cuda_than_torch_is_told(torchs, told, tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, release 13.0, V13.0.88\n")
    nvcc.chmod(0o755)
    said = Cuda(nvcc, nvcc).differs(torchs)
    assert (said is not None) == told
    assert said is None or "is of CUDA 13.0, torch of 12.8" in said


@needs_nvcc
def test_errors_of_calls_are_told_once_and_shared_memory_is_bounded_once(tmp_path):
    """An error that is told stays nowhere for the next call; and what a launch needs of shared memory is no
    bound, which another thread's launch would meet."""
    cuda, program = Cuda.find(), tmp_path / "calls"
    source = ROOT / "tests" / "cuda" / "calls.cu"
    wrapped = [f"-Xlinker=--wrap={name}" for name in re.findall(r"__wrap_(\w+)", source.read_text())]
    command = [cuda.nvcc, "-std=c++20", "-arch=sm_80", f"-I{ROOT / 'csrc'}", source, *wrapped, "-o", program]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_what_errors_say_is_asked_for_in_one_place():
    """Which takes them from the runtime as well."""
    sources = (ROOT / "csrc" / "cuda").iterdir()
    assert [s.name for s in sources if "cudaGetErrorString" in s.read_text()] == ["device.cuh"]


LOADED = """
import importlib.util, sys
import torch
spec = importlib.util.spec_from_file_location("fastdml._C", sys.argv[1])
sys.modules["fastdml._C"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

import fastdml
from fastdml import functional as F
from fastdml.engine import library

assert library.load() is module and module.cuda
assert set(library.functors()) == {"smooth_ap", "siglip"}, library.functors()
runs_on = [library.runs_on(torch.device(device)) for device in ("cuda", "cpu")]
assert runs_on == [torch.version.cuda is not None, True], runs_on
assert fastdml.explain("smooth_ap", 40).executor == "native"
# Who asks for sorted rows is known without a device: keys alone, and one buffer to sort them with.
asked = {sort: library.cuda_sort_bytes("smooth_ap", (0.01, sort), 4) for sort in (0.0, 1.0, 2.0)}
assert asked == {0.0: 0, 1.0: 0, 2.0: 8}, asked
assert library.cuda_sort_bytes("siglip", (0.0,), 4) == 0
assert fastdml.explain("sup_ap", 40).executor == "chunked"
x = torch.randn(40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
found = []
for backend in ("native", "chunked"):
    leaf = x.clone().requires_grad_()
    value = F.smooth_ap(leaf, torch.arange(40) // 4, backend=backend)
    found.append((value.detach(), *torch.autograd.grad(value, leaf)))
for a, b in zip(*found):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
try:
    torch.ops.fastdml_native.remove_radial_(*(torch.empty(2, 2, device="meta") for _ in range(3)))
except NotImplementedError:  # no kernel for that device, not a missing symbol
    print("loaded")
"""


@needs_nvcc
@needs_compiled
def test_library_with_cuda_kernels_loads_and_runs_on_torch_without_cuda():
    """FASTDML_BUILD=cuda for two losses: built without a GPU, loaded, its CPU kernels work."""
    work = ROOT / "build" / "cuda-test"
    target = work / "_C.so"
    code = (
        "import pathlib, sys; from csrc.build import build; "
        "build(*map(pathlib.Path, sys.argv[1:]), mode='cuda')"
    )
    environment = {**os.environ, "FASTDML_LOSSES": "smooth_ap,siglip", "PYTHONPATH": str(ROOT)}
    environment["NVCC_APPEND_FLAGS"] = "-Xptxas=-v"
    (work / "smooth_ap.cuda.o").unlink(missing_ok=True)  # so that its report is seen
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), str(work), str(target)],
        env=environment, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    lines = resources().parse("smooth_ap", done.stdout)
    lines = [n for n in lines if str(n["functor"]).startswith("SmoothAP")]  # not what CUB brings
    assert {(n["functor"], n["type"], n["arch"]) for n in lines} >= {
        (f"SmoothAP{k}", t, a)
        for k in ("", " sorted", " keys")
        for t in ("float32", "float64")
        for a in ("sm_80", "sm_90a")
    }
    for line in lines:
        assert line["spill_store_bytes"] == line["spill_load_bytes"] == line["stack_bytes"] == 0, (
            line
        )
        most = 255 if "sorted" in line["functor"] else 128  # one or two blocks of 256 threads
        assert line["registers"] <= most
    del environment["FASTDML_LOSSES"], environment["NVCC_APPEND_FLAGS"]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, str(target)],
        env=environment, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0 and "loaded" in done.stdout, (done.stdout + done.stderr)[-4000:]
    needed = subprocess.run(["ldd", target], capture_output=True, text=True).stdout
    assert "libcuda" not in needed  # nothing of CUDA is asked for at load time
