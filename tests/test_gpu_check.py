"""`make gpu-check` where there is no GPU: everything is skipped, said so, and nothing has failed."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

STAGES = ("build", "test", "sanitize", "bench")


def check(*arguments, **environment):
    script = str(ROOT / "benchmarks" / "gpu_check.py")
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
    )  # fmt: skip


def lines(text):
    """(stage, status, note) of every line of the closing table."""
    found = [line.split(None, 4) for line in text.strip().splitlines()]
    return [(f[0], f[1], f[4]) for f in found if len(f) == 5]


@pytest.mark.parametrize("stages", [STAGES, ("test", "bench")])
def test_without_a_gpu_every_stage_is_skipped(stages, tmp_path):
    done = check(tmp_path / "out", "--stages", ",".join(stages))
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout) == [(stage, "skipped", "no GPU") for stage in stages]
    assert not (tmp_path / "out").exists()  # nothing that could be taken for a result


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_target_of_make(tmp_path):
    done = subprocess.run(
        ["make", "-s", "gpu-check", f"OUT={tmp_path / 'out'}", f"PYTHON={sys.executable}"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line[0] for line in lines(done.stdout)] == list(STAGES)


def test_what_would_run_is_said(tmp_path):
    done = check(tmp_path / "out", "--without-device", "90", "--dry-run", "--budget", "test=60")
    assert done.returncode == 0, done.stderr
    found = lines(done.stdout)
    assert [(stage, status) for stage, status, _ in found] == [(s, "skipped") for s in STAGES]
    assert ("test", "skipped", "would run, 60 s at most") in found


@pytest.mark.parametrize("arguments", [("--stages=all",), ("--budget=test",), ("--budget=all=3",)])
def test_what_it_does_not_know_is_refused(arguments, tmp_path):
    done = check(tmp_path / "out", *arguments)
    assert done.returncode == 2 and "expected" in done.stderr
