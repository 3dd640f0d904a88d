"""float32 products are made as torch makes its own on CUDA, and on tensor cores where that allows it."""

from __future__ import annotations

import pytest
import torch
from test_aot import SHARED_LIMIT, compiled
from triton_mode import DEVICE

import fastdml.functional as F
from fastdml.kernels import configs, launch


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    monkeypatch.delenv(configs.FLOAT32, raising=False)
    yield
    torch.backends.fp32_precision = "none"
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


def set_legacy(allowed):
    torch.backends.cuda.matmul.allow_tf32 = allowed


def set_here(level):
    torch.backends.cuda.matmul.fp32_precision = level


def set_everywhere(level):
    torch.backends.cuda.matmul.fp32_precision = "none"
    torch.backends.fp32_precision = level


# How torch can be told, and what torch then does itself.
SETTINGS = [
    (torch.set_float32_matmul_precision, "highest", "ieee"),
    (torch.set_float32_matmul_precision, "high", "tf32"),
    (torch.set_float32_matmul_precision, "medium", "tf32"),
    (set_legacy, False, "ieee"),
    (set_legacy, True, "tf32"),
    (set_here, "ieee", "ieee"),
    (set_here, "tf32", "tf32"),
    (set_everywhere, "ieee", "ieee"),
    (set_everywhere, "tf32", "tf32"),
]


@pytest.fixture
def launched(monkeypatch):
    """The precisions that kernels were launched with."""
    seen = []
    for name in ("statistics_kernel", "weights_kernel", "thresholds_kernel"):
        monkeypatch.setattr(launch, name, _Watched(getattr(launch, name), seen))
    return seen


class _Watched:
    def __init__(self, kernel, seen):
        self.kernel, self.seen = kernel, seen

    def __getitem__(self, grid):
        def run(*args, **options):
            self.seen.append(options["PRECISION"])
            return self.kernel[grid](*args, **options)

        return run


def step(dtype=torch.float32, loss=F.multi_similarity):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 16, generator=g).to(DEVICE, dtype).requires_grad_()
    loss(x, (torch.arange(20) % 5).to(DEVICE), backend="triton").backward()


@pytest.mark.parametrize(("tell", "value", "expected"), SETTINGS)
def test_torch_is_followed(tell, value, expected, launched):
    tell(value)
    step()
    step(loss=F.smooth_ap)
    assert len(launched) >= 5 and set(launched) == {expected}


@pytest.mark.parametrize("asked", configs.PRECISIONS)
def test_variable_goes_before_torch(asked, launched, monkeypatch):
    monkeypatch.setenv(configs.FLOAT32, asked)
    torch.set_float32_matmul_precision("high" if asked == "ieee" else "highest")
    step()
    assert set(launched) == {asked}


def test_unknown_precisions_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"precision: expected .*, got 'bf16'"):
        configs.precision(torch.float32, "bf16")
    monkeypatch.setenv(configs.FLOAT32, "fast")
    with pytest.raises(ValueError, match=f"{configs.FLOAT32}: expected .*, got 'fast'"):
        step()


# Of the kernels of a loss of one set, one of two sets, and one over lists.
LOSSES = [
    pytest.param("sup_con", 90),
    *(
        pytest.param(name, arch, marks=pytest.mark.slow)
        for name in ("sup_con", "proxy_anchor", "smooth_ap")
        for arch in (80, 90)
        if (name, arch) != ("sup_con", 90)
    ),
]


@pytest.mark.parametrize(("name", "arch"), LOSSES)
def test_compiled_products(name, arch):
    """TF32 on tensor cores, three of them for tf32x3, and none for ieee; half precision in its own."""
    made = {
        precision: compiled(name, arch, "float32", 128, precision)
        for precision in configs.PRECISIONS
    }
    for kernel, ieee in made["ieee"].items():
        if kernel == "finish":
            continue
        one, three = (made[name][kernel] for name in ("tf32", "tf32x3"))
        assert ieee["products"] == {}, kernel
        assert set(one["products"]) == set(three["products"]) == {"tf32"}, kernel
        for each in (ieee, one, three):
            assert each["spill_bytes"] == 0, kernel
            assert each["shared"] <= SHARED_LIMIT[arch], kernel
