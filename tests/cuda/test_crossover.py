"""What backend="auto" chooses on CUDA, and that it says what has not been run there."""

import types
import warnings

import pytest
import torch

import fastdml
from fastdml.engine import crossover, library
from fastdml.engine.dispatch import EXECUTORS, choose
from fastdml.engine.problem import Problem
from fastdml.engine.registry import LOSSES
from fastdml.engine.relation import LabelRelation


@pytest.fixture(params=[("native", "triton"), ("native",), ("triton",), ()], ids=str)
def available(request, monkeypatch):
    """Executors that could run anything on CUDA."""
    for name in ("native", "triton"):
        why = None if name in request.param else "not there"
        monkeypatch.setattr(EXECUTORS[name], "refuses", lambda problem, why=why: why, raising=False)
        monkeypatch.setattr(EXECUTORS[name], "plan", lambda problem: "", raising=False)
    return request.param


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setattr(crossover, "VERIFIED", tmp_path / "none.txt")  # as if nothing had been run
    for cached in (crossover.verified, crossover._warn):
        cached.cache_clear()
    yield
    for cached in (crossover.verified, crossover._warn):
        cached.cache_clear()


@pytest.mark.parametrize(
    "loss, dim, wanted",
    [
        ("multi_similarity", 128, "triton"),
        ("multi_similarity", 256, "triton"),
        ("multi_similarity", 257, "native"),
        ("smooth_ap", 128, "native"),
    ],
)
def test_the_rule(loss, dim, wanted, available):
    said = fastdml.explain(loss, 4096, D=dim, device="cuda")
    if wanted not in available:
        wanted = next(iter(available), "chunked")
    assert said.executor == wanted
    assert (crossover.NOT_RUN in said.reason) == (wanted != "chunked")


def test_verified_on_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(EXECUTORS["native"], "refuses", lambda problem: None, raising=False)
    path = tmp_path / "gpu-verified.txt"
    path.write_text("smooth_ap native\n\nmulti_similarity triton\n")
    monkeypatch.setattr(crossover, "VERIFIED", path)
    assert fastdml.explain("smooth_ap", 64, device="cuda").reason == "compiled for this device"
    said = fastdml.explain("multi_similarity", 64, D=512, device="cuda")
    assert said.executor == "native" and crossover.NOT_RUN in said.reason


def problem(device="cuda", loss="smooth_ap"):
    x, y = torch.zeros(4, 2), torch.arange(4)
    return Problem(LOSSES[loss](), x, x, LabelRelation(y, y), x.dtype, device=torch.device(device))


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (12, 0)], ids=str)
def test_a_gpu_older_than_the_kernels_runs_plain_torch(capability, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(library, "load", lambda: types.SimpleNamespace(cuda=True))
    monkeypatch.setattr(library, "functors", lambda: {"contrastive": ()})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    newer, asked = capability >= (8, 0), problem(loss="contrastive")
    assert library.runs_on(torch.device("cuda")) == newer
    assert (choose(asked, "auto")[0].name == "chunked") == (not newer)
    for backend in ("native", "triton"):
        if newer:
            assert choose(asked, backend)[0].name == backend
        else:
            with pytest.raises(ValueError, match=f"backend: '{backend}' .* 8.0 and newer, cuda has 7.5"):
                choose(asked, backend)


def test_an_unproven_choice_warns_once():
    with pytest.warns(UserWarning, match="smooth_ap.*not yet run on a GPU"):
        crossover.notice(problem(), "native", "auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crossover.notice(problem(), "native", "auto")


@pytest.mark.parametrize(
    "device, executor, backend",
    [("cpu", "native", "auto"), ("cuda", "chunked", "auto"), ("cuda", "native", "native")],
)
def test_no_warning_for_what_is_proven_or_asked_for(device, executor, backend):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crossover.notice(problem(device), executor, backend)
