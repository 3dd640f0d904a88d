"""The build: instruction sets do not leak into each other; explain and set_workspace say the truth."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CASES, COMPILED, KINDS, ROOT, call, distance, needs_compiled

import fastdml
from csrc import build
from fastdml import losses
from fastdml.engine.registry import LOSSES

VARIANTS = ("v3", "v4")


def objects() -> list:
    return sorted(p for p in (ROOT / "build").glob("temp*/*.o") if p.stem.split(".")[-1] in VARIANTS)


@pytest.mark.skipif(not objects() or not shutil.which("nm"), reason="no build objects, or no nm")
def test_code_for_an_instruction_set_stays_in_its_namespace():
    """A weak symbol is merged across objects: a processor without AVX could be handed AVX code."""
    for path in objects():
        isa = path.stem.split(".")[-1]
        done = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True)
        symbols = [re.match(r"\S*\s+(\w) (.*)", line) for line in done.stdout.splitlines()]
        weak = [m[2] for m in symbols if m and m[1] in "WVuw"]
        leaks = [s for s in weak if f"fastdml::{isa}::" not in s]
        assert not leaks, f"{path.name}: {leaks[:5]}"
        made = "stream_" if "_stream" in path.name else "kernel_"
        assert any(m and m[1] in "RDBdr" and made in m[2] for m in symbols), path.name


def ninja(work: Path, *words: object) -> str:
    command = [sys.executable, "-m", "ninja", "-C", work, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="no C++ compiler")
def test_paths_may_hold_what_ninja_and_shells_read(tmp_path, monkeypatch):
    """The build of a tree, with a toolkit of CUDA, in such a folder; one object of it is compiled."""
    pytest.importorskip("ninja")
    odd = tmp_path / "a folder: of $HOME's"
    tree, work = odd / "tree", odd / "work"
    cuda = build.Cuda(odd / "nvcc", odd / "libcudart_static.a")
    odd.mkdir()
    tree.symlink_to(ROOT)
    monkeypatch.delenv("FASTDML_LOSSES", raising=False)
    monkeypatch.setattr(build, "headers", lambda root, folder: [])
    monkeypatch.setattr(build, "streamed", lambda root, folder, names: {})
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", lambda *_, **__: None)
        build.compile_all(tree, work, work / "_C.so", cuda)
    *compiled, linked = map(shlex.split, ninja(work, "-t", "commands").splitlines())
    for words in (*compiled, linked):
        assert all(Path(word[2:]).is_dir() for word in words if word[:2] in ("-I", "-L")), words
    assert {words[0] for words in compiled} > {str(cuda.nvcc)} and str(cuda.cudart) in linked
    made = work / "class_index.o"
    ninja(work, made)
    assert made.exists() and "no work to do" in ninja(work, made)  # it knows the headers


@needs_compiled
def test_explain_names_what_runs():
    said = fastdml.explain("smooth_ap", 4096)
    assert said.executor == "native" and said.reason == "compiled for this device"
    assert said.rows == said.columns == 4096 and said.dimension == 128
    rows = int(re.search(r"(\d+) rows at a time", said.plan)[1])
    assert rows * 4096 * 4 <= 16 << 20 < (rows + 16) * 4096 * 4
    fastdml.set_workspace(4 << 20)
    assert int(re.search(r"(\d+) rows", fastdml.explain("smooth_ap", 4096).plan)[1]) == rows // 4
    text = str(said)
    assert "4096 rows x 4096 candidates, D=128, cpu" in text and "runs on  native" in text


def test_explain_other_choices():
    user = fastdml.explain(fastdml.row_loss(lambda s, p, n: s.sum(1)), 8)
    assert user.executor == "chunked"
    assert fastdml.explain(losses.SmoothAPLoss(backend="dense"), 8).executor == "dense"
    assert fastdml.explain("smooth_ap", 8, backend="chunked").reason == "asked for"
    said = fastdml.explain("proxy_anchor", 100, 8, 64, dtype=torch.float64)
    assert (said.rows, said.columns, said.dimension) == (100, 8, 64)
    assert fastdml.explain(LOSSES["smooth_ap"](), 8).loss == "smooth_ap"


@pytest.mark.parametrize("description", KINDS)
@pytest.mark.parametrize("backend", ["chunked", "native"] if COMPILED else ["chunked"])
def test_the_workspace_changes_blocks_not_results(description, backend):
    case = CASES["long"]()
    true = call(description, case, backend)
    for size in (100_000, 1 << 20, 256 << 20):
        fastdml.set_workspace(size)
        for a, b in zip(call(description, case, backend), true):
            assert distance(a, b) < 1e-12
    fastdml.set_workspace(None)
    for a, b in zip(call(description, case, backend), true):
        assert torch.equal(a, b)
