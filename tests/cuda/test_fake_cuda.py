"""Every loss on torch's fake CUDA tensors, where there is no GPU: what torch's own checks of devices and
shapes, and the launches that the executors would make, tell without one.

Tensors lie on the second device while the first one is current. Devices that are mixed, waits for the
device (data that shapes depend on), copies from the host while a graph is captured, launches on another
device and calls that do not exist are errors. Nothing is computed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import types

import pytest
import torch
from conftest import CASES, EXAMPLES, inputs, needs_compiled
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from fastdml.engine import autograd, library, schedule
from fastdml.engine.call import Call
from fastdml.engine.dispatch import EXECUTORS
from fastdml.engine.executors import Wanted
from fastdml.engine.executors import triton as tiles
from fastdml.engine.problem import Problem
from fastdml.kernels import configs
from fastdml.losses import NPairsLoss
from fastdml.losses.softmax.sup_con import SupCon

launch = pytest.importorskip("fastdml.kernels.launch")  # needs triton

HERE, OTHER = torch.device("cuda:0"), torch.device("cuda:1")
KERNELS = ("statistics_kernel", "merge_kernel", "weights_kernel", "thresholds_kernel", "list_finish_kernel")
LIBRARY = torch.library.Library("fastdml_native", "FRAGMENT")


@pytest.fixture(scope="module", autouse=True)
def operators_without_a_device():
    if library.load() is not None:
        for name in ("rows_", "remove_radial_"):
            torch.library.register_fake(f"fastdml_native::{name}", lambda *a, **k: None, lib=LIBRARY)


class Watched(TorchFunctionMode):
    """What fake tensors themselves let pass: copies from the host while a graph is captured, and indices
    that lie elsewhere. Indexing asks for a device that is there, and is done on none."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            return self.index(*args)
        if function is torch.Tensor.contiguous:  # ... and so do these two
            x = args[0]
            return x if x.is_contiguous() else x.clone(memory_format=torch.contiguous_format)
        if function is torch.Tensor.copy_ and args[0].is_cuda:
            assert args[1].device == args[0].device
            return args[0]
        found = function(*args, **kwargs)
        if torch.cuda.is_current_stream_capturing() and isinstance(found, torch.Tensor) and found.is_cuda:
            made = function in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)
            from_host = isinstance(args[0], torch.Tensor) and args[0].device.type == "cpu" if args else False
            assert not made and not from_host, f"{function} copies from the host"
        return found

    def index(self, x, index, value=None):
        def without(i):
            if not isinstance(i, torch.Tensor):
                return i
            assert i.device == x.device, f"an index on {i.device} of a tensor on {x.device}"
            return torch.empty_strided(i.shape, i.stride(), dtype=i.dtype, device="meta")

        plain = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        index = tuple(map(without, index)) if isinstance(index, tuple) else without(index)
        with torch._C.DisableTorchFunction():
            part = plain[index]
            if value is not None:
                assert not isinstance(value, torch.Tensor) or value.device == x.device
                return None
            return torch.empty_strided(part.shape, part.stride(), dtype=x.dtype, device=x.device)


class Launches:
    """In place of a kernel: what it was launched with, and where."""

    current = HERE
    count = 0

    def __init__(self, kernel):
        self.names = kernel.arg_names

    def __getitem__(self, grid):
        assert all(n > 0 for n in grid), grid

        def launch(*args, **options):
            Launches.count += 1
            for name, x in zip(self.names, args, strict=False):
                if isinstance(x, torch.Tensor):
                    assert x.device == Launches.current, f"{name} is on {x.device}"
                    assert x.is_contiguous() or name in ("stay", "stream"), name

        return launch


def stream(number):
    return types.SimpleNamespace(cuda_stream=number)


@contextlib.contextmanager
def current(device):
    before, Launches.current = Launches.current, torch.device(device)
    try:
        yield
    finally:
        Launches.current = before


def faked(mode, given):
    """The inputs of a call on the other device, holding nothing."""

    def move(x):
        if isinstance(x, list):
            return [move(t) for t in x]
        return mode.from_tensor(x).to(OTHER) if isinstance(x, torch.Tensor) else x

    values = {f.name: move(getattr(given, f.name)) for f in dataclasses.fields(given)}
    return dataclasses.replace(given, **values)


@pytest.fixture
def run(monkeypatch):
    """run(description, case, executor): the result of a call that wants everything, or None if refused."""

    def accumulate_(total, a, b):  # the decomposition of torch's own breaks on out_dtype, in fake mode only
        return total.add_(torch.mm(a, b, out_dtype=total.dtype) if a.dtype != total.dtype else a @ b)

    monkeypatch.setattr(schedule, "accumulate_", accumulate_)
    monkeypatch.setattr(library, "runs_on", lambda device: True)
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream(0))
    monkeypatch.setattr(tiles, "_longest", lambda problem: 4)
    Launches.count = 0

    def call(description, case, executor):
        launch._kept.cache_clear()  # they belong to the mode that made them
        given = inputs(description, case)
        # Autograd asks for a device that is there; what stands behind its functions does not.
        with FakeTensorMode(allow_non_fake_inputs=False) as mode, torch.no_grad():
            given = faked(mode, given)
            with Watched():
                problem = Problem.of(given.call(description, ""))
                if EXECUTORS[executor].refuses(problem) is not None:
                    return None
                everything = Wanted(*(True for _ in Wanted._fields))._replace(grouped=False)
                found = EXECUTORS[executor].run(problem, everything)
        made = [getattr(found, f.name) for f in dataclasses.fields(found)]
        assert all(x.device == OTHER for x in made if isinstance(x, torch.Tensor))
        return found

    return call


@pytest.fixture
def with_kernels(monkeypatch):
    for name in KERNELS:
        monkeypatch.setattr(launch, name, Launches(getattr(launch, name)))
    monkeypatch.setattr(configs, "architecture", lambda device: 90)
    monkeypatch.setattr(configs, "interpreted", lambda: False)

    class Hopper:
        multi_processor_count = 132

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Hopper())


@needs_compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("description", EXAMPLES)
def test_native(description, dtype, run):
    for name in ("ragged", "reference"):
        run(description, CASES[name]().to(dtype), "native")


@pytest.mark.parametrize("capturing", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize("description", EXAMPLES)
def test_tiles(description, capturing, run, with_kernels, monkeypatch):
    """A weight may be first seen while a graph is captured."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    for name in ("ragged", "reference"):
        if run(description, CASES[name]().to(torch.bfloat16), "triton") is not None:
            assert Launches.count > 0


def test_what_a_capture_fills_is_not_kept(monkeypatch):
    """It is there after a replay alone, and goes when the graph does."""
    launch._kept.cache_clear()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream(0))
    with FakeTensorMode(), torch.no_grad(), Watched():
        for capturing, alike in ((True, False), (False, True)):
            monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda c=capturing: c)
            first, second = (launch.constants((0.5, 2.0), OTHER) for _ in range(2))
            assert (first is second) == alike
    launch._kept.cache_clear()


def test_what_a_stream_fills_is_its_own(monkeypatch):
    """Another one does not wait for it."""
    launch._kept.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with FakeTensorMode(), torch.no_grad(), Watched():
        made = []
        for number in (1, 2, 1):
            monkeypatch.setattr(torch.cuda, "current_stream", lambda device, n=number: stream(n))
            made.append(launch.constants((0.5, 2.0), OTHER))
    assert made[0] is made[2] is not made[1]
    launch._kept.cache_clear()


@pytest.mark.parametrize(
    "given, expected", [(torch.float32, torch.bfloat16), (torch.float64, torch.float64)], ids=str
)
def test_autocast(given, expected, monkeypatch):
    """It leaves float64 alone, as it does in torch's own products."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    with FakeTensorMode(), torch.no_grad():
        x = torch.empty(6, 4, dtype=given, device=OTHER)
        found = autograd._in_autocast(Call(SupCon(), x, torch.empty_like(x)))
    assert found.anchors.dtype == found.candidates.dtype == expected


@pytest.mark.parametrize("hip, expected", [(None, torch.bfloat16), ("7.0", torch.float32)])
def test_products_of_half_precision(hip, expected, monkeypatch):
    """With float32 results torch makes them on NVIDIA's GPUs alone."""
    monkeypatch.setattr(torch.version, "hip", hip)
    with FakeTensorMode(), torch.no_grad():
        x, y = (torch.empty(6, 4, dtype=torch.bfloat16, device=OTHER) for _ in range(2))
        labels = torch.empty(6, dtype=torch.int64, device=OTHER)
        found = Problem.of(Call(SupCon(), x, y, labels, labels))
    assert found.anchors.dtype == found.candidates.dtype == expected


def test_n_pairs_are_found_without_a_wait(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    module = importlib.import_module(NPairsLoss.__module__)
    with FakeTensorMode(allow_non_fake_inputs=False), torch.no_grad(), Watched():
        y = torch.empty(11, dtype=torch.int64, device=OTHER)
        found = module._padded_pairs(y)
    assert all(x.shape == (5,) and x.device == OTHER for x in found)
    x = torch.empty(11, 2, device="meta")
    assert module._padded(x, "mean") and not module._padded(x, "none")
