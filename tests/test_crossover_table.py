"""The rule of `backend="auto"` between tiles and row functors, and the table that replaces it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from fastdml.engine import crossover
from fastdml.engine.registry import LOSSES

PATH = Path(__file__).resolve().parent.parent / "benchmarks" / "crossover.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("crossover_script", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(loss, d, native, triton):
    return {"loss": loss, "batch": 8, "dim": d, "native_ms": native, "triton_ms": triton}


def test_the_table_is_read_as_written(script, tmp_path, monkeypatch):
    rows = [
        row("a", 64, 2.0, 1.0),
        row("a", 256, 2.0, 3.0),
        row("a", 128, 2.0, 1.0),
        row("b", 64, 1.0, 2.0),
    ]
    script.write(tmp_path, "sm_90", rows)
    monkeypatch.setattr(crossover, "MEASURED", tmp_path / "crossover-measured.txt")
    crossover.measured.cache_clear()
    try:
        assert crossover.measured() == {("sm_90", "a"): 128, ("sm_90", "b"): 0}
    finally:
        crossover.measured.cache_clear()


@pytest.mark.parametrize(
    "name", ["multi_similarity", "proxy_anchor", "soft_triple", "log_ratio", "info_nce"]
)
def test_a_step_of_the_measurement(script, name):
    """Its calls fit the losses: on the CPU, where the row functor or the torch form runs them."""
    call = script.example(LOSSES[name].examples()[0], 16, 8, "cpu")
    assert script.milliseconds(call.replace(backend="chunked")) > 0
    assert torch.isfinite(call.anchors.grad).all()
