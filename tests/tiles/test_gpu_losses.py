"""Every registered loss with a tile functor on a CUDA device, through the engine, in every type."""

from __future__ import annotations

import pytest
import torch
import triton_mode  # noqa: F401  (before triton is imported)
from conftest import CASES, EXAMPLES, call, distance, inputs, on_device, scales

from fastdml.engine.executors.triton import Triton
from fastdml.engine.problem import Problem

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytestmark = pytest.mark.gpu


def refuses(description, given) -> bool:
    return Triton().refuses(Problem.of(given.call(description, "triton"))) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["ragged", "wide", "reference", "zeros"])
@pytest.mark.parametrize("description", EXAMPLES)
def test_errs_at_most_twice_as_torch(description, name, dtype):
    narrow = CASES[name]().to(dtype)
    wide = narrow.to(torch.float64)
    given = on_device(inputs(description, narrow), "cuda")
    if refuses(description, given):
        pytest.skip("refused")
    true = call(description, wide, "dense")
    plain, found = call(description, given, "dense"), call(description, given, "triton")
    floor = 1e-5 + 2 * torch.finfo(dtype).eps
    for f, p, t, scale in zip(found, plain, true, scales(description, wide), strict=True):
        assert distance(f.cpu(), t, scale) <= 2 * distance(p.cpu(), t, scale) + floor


@pytest.mark.parametrize("description", EXAMPLES)
def test_bits_repeat(description):
    given = on_device(inputs(description, CASES["ragged"]().to(torch.bfloat16)), "cuda")
    if refuses(description, given):
        pytest.skip("refused")
    first = call(description, given, "triton")
    for _ in range(20):
        again = call(description, given, "triton")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
