"""Autotuning keeps the quickest sizes, only where it was asked for."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest
import torch
import triton_mode  # noqa: F401
from triton.runtime.errors import OutOfResources, PTXASError

from fastdml.kernels import tune
from fastdml.kernels.configs import Config

FIXED = Config(128, 64, 128, 128, 8, 3)
NAME = "sm_90/3.6/bfloat16/128/weights/some_loss"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch, tmp_path):
    monkeypatch.setattr(tune, "_found", {})
    monkeypatch.setattr(tune, "MEASURED", tmp_path / "measured.json")
    monkeypatch.delenv(tune.VARIABLE, raising=False)
    tune._load.cache_clear()


@pytest.fixture
def timed(monkeypatch):
    """Which sizes were timed; those of 64 x 32 with 4 warps and 2 stages are the quickest."""
    calls = []

    def seconds(run, config):
        calls.append(config)
        run(config)
        quick = (config.stay, config.stream, config.warps, config.stages) == (64, 32, 4, 2)
        return 1.0 if quick else 2.0

    monkeypatch.setattr(tune, "seconds", seconds)
    return calls


QUICK = dataclasses.replace(FIXED, stay=64, stream=32, warps=4, stages=2)


def test_off_by_default(timed):
    assert tune.choose(NAME, FIXED, print) == FIXED
    assert not timed


def test_measured_sizes_go_before_rules(timed):
    tune.MEASURED.write_text(json.dumps({NAME: dataclasses.asdict(QUICK)}))
    assert tune.choose(NAME, FIXED, print) == QUICK
    assert tune.choose(NAME + "_else", FIXED, print) == FIXED
    assert not timed


def test_times_once(timed, monkeypatch):
    monkeypatch.setenv(tune.VARIABLE, "1")
    launched = []
    for _ in range(2):
        assert tune.choose(NAME, FIXED, launched.append) == QUICK
    assert len(timed) == len(set(timed)) == len(launched) and timed[0] == FIXED


def test_keeps_a_file(timed, monkeypatch, tmp_path):
    monkeypatch.setenv(tune.VARIABLE, str(tmp_path / "found.json"))
    tune.choose(NAME, FIXED, lambda config: None)
    monkeypatch.setattr(tune, "_found", {})
    tune._load.cache_clear()
    timed.clear()
    assert tune.choose(NAME, FIXED, print) == QUICK
    assert not timed


def failing(error):
    def run(config):
        raise error

    return run


UNFIT = [
    OutOfResources(300000, 232448, "shared memory"),
    PTXASError("ptxas fatal"),
    RuntimeError("PassManager::run failed"),
]


@pytest.mark.parametrize("error", UNFIT, ids=lambda e: type(e).__name__)
def test_sizes_that_do_not_fit_lose(error):
    assert tune.seconds(failing(error), FIXED) == float("inf")


def test_other_errors_are_raised():
    with pytest.raises(RuntimeError, match="illegal memory access"):
        tune.seconds(failing(RuntimeError("CUDA error: illegal memory access")), FIXED)


def test_calls_that_differ_in_what_sizes_depend_on_are_apart():
    of = functools.partial(tune.key, "weights", "some_loss", 90, torch.bfloat16, 128)
    assert of(centres=10) != of(centres=40) and of(find=True) != of(find=False) == of()
