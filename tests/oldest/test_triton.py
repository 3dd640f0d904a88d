"""Tile kernels as the oldest Triton that is claimed compiles them: without spills."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TRITON = ROOT / "build" / "oldest" / "triton"
# Those of many registers at large dimensions.
HEAVY = [
    ("info_nce", 512), ("log_sum_exp", 512), ("softmax_cross_entropy", 512), ("arc_face", 256),
    ("arc_face", 512), ("contrastive_bayesian", 512), ("multi_similarity", 512),
]  # fmt: skip


def environment() -> dict[str, str]:
    paths = os.pathsep.join(map(str, (TRITON, ROOT)))
    return {
        **os.environ, "PYTHONPATH": paths, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1",
        "TRITON_CACHE_DIR": str(TRITON.with_name("triton-cache")),
    }  # fmt: skip


def test_it_is_the_one_that_is_claimed():
    claimed = set(re.findall(r'"triton>=([\d.]+)', (ROOT / "pyproject.toml").read_text()))
    done = subprocess.run(
        [sys.executable, "-c", "import triton; print(triton.__version__)"],
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert {done.stdout.strip().rpartition(".")[0]} == claimed, "make test-oldest fetches it"


@pytest.mark.parametrize("loss, d", HEAVY)
def test_no_spills(loss, d):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/tiles/aot_report.py"), loss, "90", "bfloat16", str(d)],
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = json.loads(done.stdout.splitlines()[-1])
    assert kernels and {k: v["spill_bytes"] for k, v in kernels.items() if v["spill_bytes"]} == {}
