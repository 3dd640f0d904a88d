"""Two runs agree bit for bit, at one thread and at two, whatever the processor offers."""

import pytest
import torch
from conftest import (
    CASES,
    EXAMPLES,
    ISAS,
    KINDS,
    Case,
    call,
    compiled,
    distance,
    needs_compiled,
    scales,
)
from torch.utils._python_dispatch import TorchDispatchMode

import fastdml
from fastdml import losses
from fastdml.engine import library, summed
from fastdml.engine.in_torch import pairs_of
from fastdml.engine.similarity import METRICS

# The one that runs by itself is compared with the dense form in test_engine_executors.py.
OTHERS = [isa for isa in ISAS if isa != library.build_info()["instruction_set"]]


@pytest.fixture(scope="module")
def large() -> Case:
    """Enough rows for several blocks (of a small workspace) and for every thread; odd sizes."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 83, (331,), generator=g)
    return Case(torch.randn(331, 23, generator=g), y)


def agree_bit_for_bit(description, backend, case):
    """Two runs, of one thread and of two. (More threads cut BLAS's products and torch's sums elsewhere.)"""
    for threads in (1, 2):
        torch.set_num_threads(threads)
        one, two = (call(description, case, backend) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@needs_compiled
@pytest.mark.parametrize("description", EXAMPLES)
def test_runs_agree_bit_for_bit(description, large):
    """In several blocks, the last of them short."""
    fastdml.set_workspace(256 << 10)
    agree_bit_for_bit(description, "native", large)


@pytest.mark.parametrize("backend", ["dense", "chunked"])
@pytest.mark.parametrize("description", KINDS)
def test_so_do_those_in_torch(description, backend, large):
    fastdml.set_workspace(256 << 10)
    agree_bit_for_bit(description, backend, large)


@needs_compiled
@pytest.mark.parametrize("description", KINDS)
def test_so_do_those_in_one_block(description, large):
    agree_bit_for_bit(description, "native", large)


@needs_compiled
@pytest.mark.parametrize("isa", OTHERS, indirect=True)
@pytest.mark.parametrize("name", ["wide", "zeros", "reference"])
@pytest.mark.parametrize("description", EXAMPLES)
def test_every_instruction_set(description, name, isa):
    """In float64 each equals the dense form."""
    if not compiled(description):
        pytest.skip("no compiled functor")
    case = CASES[name]()
    found = call(description, case, "native")
    true = call(description, case, "dense")
    for f, t, scale in zip(found, true, scales(description, case)):
        assert distance(f, t, scale) < 1e-11


@needs_compiled
@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("description", EXAMPLES)
def test_every_instruction_set_in_single_precision(description, isa, large):
    true = call(description, large.to(torch.float64), "dense")
    torchs = call(description, large, "dense")
    found = call(description, large, "native")
    for f, t, by_torch in zip(found, true, torchs):
        assert distance(f, t) <= 2 * distance(by_torch, t) + 16 * torch.finfo(torch.float32).eps


@needs_compiled
def test_an_unknown_instruction_set_is_refused():
    from fastdml import _C

    with pytest.raises(ValueError, match="'pentium' is not compiled in"):
        _C.force_isa("pentium")


class InOneOrder(TorchDispatchMode):
    """Refuses the sums by index that a GPU makes in the order of threads."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(("index_add", "scatter_add")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "make",
    [
        lambda x, i: summed.add_(x.new_zeros(5, 4), i, x),
        lambda x, i: summed.values_of(x, i),
        lambda x, i: summed.values_of(x[:, 0], i),
        lambda x, i: pairs_of(METRICS["distance"], x, x, i, i),
        lambda x, i: losses.IntraPairVarianceLoss()(x, i),
    ],
)
def test_sums_by_index_are_in_one_order_elsewhere_too(make):
    x, index = torch.ones(12, 4, device="meta", requires_grad=True), torch.arange(12, device="meta")
    with InOneOrder():
        make(x, index).sum().backward()
    assert x.grad.shape == x.shape
