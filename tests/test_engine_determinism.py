"""Two runs agree bit for bit, at one thread and at two, whatever the processor offers."""

import pytest
import torch
from conftest import BACKENDS, EXAMPLES, ISAS, Case, call, distance, needs_compiled, scales

import fastdml


@pytest.fixture(scope="module")
def large() -> Case:
    """Enough rows for several blocks (of a small workspace) and for every thread; odd sizes."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 83, (331,), generator=g)
    return Case(torch.randn(331, 23, generator=g), y)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("workspace", [256 << 10, None])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("description", EXAMPLES)
def test_runs_agree_bit_for_bit(description, backend, workspace, threads, large):
    fastdml.set_workspace(workspace)
    torch.set_num_threads(threads)
    first = call(description, large, backend)
    for _ in range(3):
        for a, b in zip(first, call(description, large, backend)):
            assert torch.equal(a, b)


@needs_compiled
@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("description", EXAMPLES)
def test_every_instruction_set(description, isa, large, case):
    """In float64 each equals the dense form on every problem; in float32 two runs agree."""
    found = call(description, case, "native")
    true = call(description, case, "dense")
    for f, t, scale in zip(found, true, scales(description, case)):
        assert distance(f, t, scale) < 1e-11
    wide = large.to(torch.float64)
    for f, t in zip(call(description, wide, "native"), call(description, wide, "dense")):
        assert distance(f, t) < 1e-11


@needs_compiled
@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("description", EXAMPLES)
def test_every_instruction_set_in_single_precision(description, isa, large):
    true = call(description, large.to(torch.float64), "dense")
    torchs = call(description, large, "dense")
    found = call(description, large, "native")
    for f, t, by_torch in zip(found, true, torchs):
        assert distance(f, t) <= 2 * distance(by_torch, t) + 16 * torch.finfo(torch.float32).eps
    for a, b in zip(found, call(description, large, "native")):
        assert torch.equal(a, b)


@needs_compiled
def test_an_unknown_instruction_set_is_refused():
    from fastdml import _C

    with pytest.raises(ValueError, match="'pentium' is not compiled in"):
        _C.force_isa("pentium")
