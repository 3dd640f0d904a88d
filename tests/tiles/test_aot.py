"""Kernels compiled for GPUs that are not here: tensor cores, no spills, shared memory within limits."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import triton_mode  # noqa: F401  (first here, and so before triton is imported)

from fastdml.bench import tile_functors
from fastdml.kernels import configs, launch

# Bytes a block may have (CUDA programming guide, compute capabilities 8.0, 9.0, 10.0).
SHARED_LIMIT = {80: 166912, 90: 232448, 100: 232448}
SMALL_LIMIT = {86: 101376, 89: 101376, 120: 101376}
FAST = ["multi_similarity", "sup_con", "proxy_anchor", "smooth_ap"]
OTHERS = [name for name in tile_functors.names() if name not in FAST]


def compiled(name, arch, dtype="bfloat16", d=128, *precision):
    script = Path(__file__).with_name("aot_report.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, str(script), name, str(arch), dtype, str(d), *precision],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(kernels, arch):
    assert kernels
    for name, one in kernels.items():
        assert one["tensor"] or name == "finish", f"{name}: no tensor-core instructions"
        assert one["spill_bytes"] == 0, f"{name}: spills {one['spill_bytes']} bytes"
        assert one["shared"] <= SHARED_LIMIT[arch], (
            f"{name}: {one['shared']} bytes of shared memory"
        )


def one_exponential_per_pair(kernels):
    """Special functions cost as much as the products at D=128: they are counted."""
    sums = kernels["statistics 2"]
    per_thread = sums["stay"] * sums["stream"] / (32 * sums["warps"])
    assert 1.0 <= sums["counts"]["mufu"] / per_thread <= 1.2
    assert kernels["statistics 1"]["counts"]["mufu"] == 0


def two_functions_per_threshold(kernels):
    """A sigmoid of every pair and threshold, for the rows and for the columns: two special functions."""
    weights = kernels["weights, one set"]
    per_thread = weights["stay"] * weights["stream"] / (32 * weights["warps"])
    assert weights["counts"]["mufu"] / per_thread == 2 * 16 * 2


# What is looked at besides, of a loss and an architecture: compiling takes all the time, and is done once.
COUNTED = {
    ("multi_similarity", 90): one_exponential_per_pair,
    ("smooth_ap", 80): two_functions_per_threshold,
    ("smooth_ap", 90): two_functions_per_threshold,
}
QUICK = {("multi_similarity", 100), ("proxy_anchor", 90), *COUNTED}


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        pytest.param(name, arch, marks=() if (name, arch) in QUICK else pytest.mark.slow)
        for name in FAST
        for arch in SHARED_LIMIT
    ],
)
def test_compiles(name, arch):
    kernels = compiled(name, arch)
    check(kernels, arch)
    if (name, arch) in COUNTED:
        COUNTED[name, arch](kernels)


@pytest.mark.parametrize(
    ("arch", "d"),
    [
        (89, 256),
        *(pytest.param(arch, 256, marks=pytest.mark.slow) for arch in (80, 86, 90, 120)),
    ],
)
def test_a_teacher_fits_shared_memory(arch, d):
    """Its tiles lie beside the embeddings'."""
    for name, one in compiled("rkd_distance", arch, d=d).items():
        assert one["shared"] <= (SHARED_LIMIT | SMALL_LIMIT)[arch], name


@pytest.mark.parametrize(
    ("name", "shared", "depth"),
    [
        ("multi_similarity", 232448, 256),
        ("multi_similarity", 101376, 64),
        ("rkd_distance", 232448, 128),
        ("rkd_distance", 101376, 64),
    ],
)
def test_depth_follows_shared_memory(name, shared, depth, monkeypatch):
    monkeypatch.setattr(configs, "architecture", lambda device: 90)
    monkeypatch.setattr(configs, "shared_memory", lambda device: shared)
    x = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(8, 256))
    tile = tile_functors.example(name).tile
    found = launch._config("statistics", tile, configs.statistics_config, x, "tf32", {}, print)
    assert found.depth == depth


def test_kept_table_has_every_loss_with_tiles():
    """benchmarks/triton_resources.py remakes it."""
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "triton-resources.csv"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["loss"].partition(",")[0] for row in rows} == set(tile_functors.names())
    assert not [(row["loss"], row["kernel"]) for row in rows if row["spill_bytes"] != "0"]


def test_scalars_that_come_from_calls_before_are_parameters():
    """One over the mean distances of student and teacher; without them its kernels do not compile."""
    example = tile_functors.example("rkd_distance")
    assert example.parameters == tile_functors.example("rkd_distance", 4).parameters == 4


@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED_LIMIT)
@pytest.mark.parametrize("name", OTHERS)
def test_compiles_others(name, arch):
    check(compiled(name, arch), arch)


@pytest.mark.slow
@pytest.mark.parametrize("d", [64, 96, 256, 512, 1024])
def test_compiles_dimensions(d):
    check(compiled("multi_similarity", 90, d=d), 90)
