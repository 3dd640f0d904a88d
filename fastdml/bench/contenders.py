"""Who is measured: every contender makes one step, forward and backward, of the same problem."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.dispatch import EXECUTORS
from . import catalogue, eager
from .workload import Workload

FLOOR = "gemm"
# A floor whose similarity matrix would be larger than this goes by blocks of rows.
_WHOLE = 1 << 30


class Unavailable(Exception):
    """A contender that does not have this loss, or is not installed."""


class Step:
    """Callable: one forward and backward. leaves: what receives gradients, by name."""

    def __init__(self, forward: Callable[[], Tensor], leaves: dict[str, Tensor]) -> None:
        self.forward, self.leaves = forward, leaves

    def __call__(self) -> Tensor:
        for leaf in self.leaves.values():
            leaf.grad = None
        value = self.forward()
        value.backward()
        return value

    def gradients(self) -> dict[str, Tensor | None]:
        return {name: leaf.grad for name, leaf in self.leaves.items()}


class Products:
    """The matrix products that no method can do without (`catalogue.Visit`), into memory allocated before.

    S = A C^T, as often as it is needed, dA = G C and dC = G^T A.
    """

    leaves: dict[str, Tensor] = {}

    def __init__(self, workload: Workload) -> None:
        self.visits = catalogue.shape(workload).visits
        # The CPU computes half-precision products in float32.
        dtype = workload.torch_dtype
        if workload.device == "cpu" and dtype != torch.float64:
            dtype = torch.float32
        make: dict[str, Any] = {"dtype": dtype, "device": workload.device}
        m, n = max(v.rows for v in self.visits), max(v.columns for v in self.visits)
        self.a = torch.randn(m, workload.dim, **make)
        self.c = torch.randn(n, workload.dim, **make)
        self.d_a, self.d_c = torch.empty_like(self.a), torch.empty_like(self.c)
        size = self.a.element_size()
        rows = m if m * n * size <= _WHOLE else max(1, (_WHOLE >> 2) // (n * size))
        self.s = torch.empty(min(rows, m), n, **make)

    def __call__(self) -> None:
        for visit in self.visits:
            self._visit(visit)

    def _visit(self, visit: catalogue.Visit) -> None:
        c, d_c = self.c[: visit.columns], self.d_c[: visit.columns]
        for start in range(0, visit.rows, self.s.shape[0]):
            rows = slice(start, min(visit.rows, start + self.s.shape[0]))
            a = self.a[rows]
            s = self.s.view(-1)[: a.shape[0] * visit.columns].view(-1, visit.columns)
            for _ in range(visit.similarities):
                torch.mm(a, c.t(), out=s)
            if visit.gradients[0]:
                torch.mm(s, c, out=self.d_a[rows])
            if visit.gradients[1]:
                if start == 0:
                    torch.mm(s.t(), a, out=d_c)
                else:
                    d_c.addmm_(s.t(), a)


class _Nothing(torch.autograd.Function):
    """Gives every input a gradient that was made before."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *leaves: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.saved_tensors


class EmptyStep:
    """What torch itself takes for a loss that is one autograd function: the step of one that does nothing."""

    leaves: dict[str, Tensor] = {}

    def __init__(self, workload: Workload) -> None:
        data = catalogue.inputs(workload)
        self.inputs = list(catalogue.leaves(catalogue.build(workload), data).values())
        self.gradients = [torch.zeros_like(x) for x in self.inputs]
        self.loss = data.embeddings.new_zeros(())

    def __call__(self) -> None:
        for x in self.inputs:
            x.grad = None
        _Nothing.apply(self.loss, self.gradients, *self.inputs).backward()


def of_module(workload: Workload, module: nn.Module, dtype: torch.dtype | None = None) -> Step:
    """The step of a module of ours."""
    module.eval()  # a step is repeated: one that moves tables on would be another problem each time
    data = catalogue.inputs(workload, dtype)
    arguments = catalogue.arguments(module, data)
    return Step(lambda: module(**arguments), catalogue.leaves(module, data))


def _ours(backend: str) -> Callable[[Workload], Step]:
    return lambda workload: of_module(workload, catalogue.build(workload, backend=backend))


def _torch(workload: Workload) -> Step:
    module = catalogue.build(workload).eval()
    data = catalogue.inputs(workload)
    return Step(
        lambda: eager.total(catalogue.parts(module, data)), catalogue.leaves(module, data)
    )


def _torch_hand(workload: Workload, compiled: bool = False) -> Step:
    written = eager.HAND.get(catalogue.registered(workload.loss))
    if written is None or workload.candidates is not None:
        raise Unavailable("not written by hand")
    options = dict(workload.options)
    if not set(options) <= set(inspect.signature(written).parameters):
        raise Unavailable(f"written by hand without {', '.join(sorted(options))}")
    data = catalogue.inputs(workload)
    module = catalogue.build(workload)
    inputs = [*module.parameters(), data.embeddings, data.labels]
    run = torch.compile(written) if compiled else written
    return Step(lambda: run(*inputs, **options), catalogue.leaves(module, data))


def _pml(workload: Workload) -> Step:
    try:
        from pytorch_metric_learning import losses, miners
    except ImportError as error:
        raise Unavailable("pytorch-metric-learning is not installed") from error
    ours = catalogue.build(workload)
    cls = getattr(losses, type(ours).__name__, None)
    if cls is None:
        raise Unavailable("pytorch-metric-learning has no such loss")
    options = dict(workload.options)
    miner = None
    if workload.loss == "multi_similarity" and "epsilon" in options:
        miner = miners.MultiSimilarityMiner(epsilon=options.pop("epsilon"))
    known = inspect.signature(cls).parameters
    if not set(options) <= set(known):
        raise Unavailable(f"pytorch-metric-learning has no {', '.join(sorted(options))}")
    sizes = catalogue.sizes(type(ours), workload)  # some of theirs hide theirs behind *args
    module = cls(**{**catalogue.needed(cls), **sizes, **options})
    module = module.to(workload.device, workload.torch_dtype)
    module.load_state_dict(ours.state_dict(), strict=False)
    data = catalogue.inputs(workload)
    x, y, ref = data.embeddings, data.labels, (data.ref, data.ref_labels)

    def forward() -> Tensor:
        return module(x, y, None if miner is None else miner(x, y, *ref), *ref)

    return Step(forward, catalogue.leaves(module, data))


def _siglip_kernel(workload: Workload) -> Step:
    if catalogue.registered(workload.loss) != "siglip" or workload.options:
        raise Unavailable("siglip-kernel has no such loss")
    try:
        from siglip_kernel import fused_siglip_loss
    except ImportError as error:
        raise Unavailable("siglip-kernel is not installed") from error
    module, data = catalogue.build(workload), catalogue.inputs(workload)
    x, ref = data.embeddings, data.ref
    assert ref is not None

    def forward() -> Tensor:
        a, c = (nn.functional.normalize(t, dim=1) for t in (x, ref))
        return fused_siglip_loss(a, c, module.log_scale, module.bias)

    return Step(forward, catalogue.leaves(module, data))


def _memeff(workload: Workload) -> Step:
    symmetric = workload.options == (("symmetric", True),)
    if catalogue.registered(workload.loss) != "info_nce" or not symmetric:
        raise Unavailable("memeff has no such loss")
    try:
        from memeff import MemoryEfficientCLIPLoss
    except ImportError as error:
        raise Unavailable("memeff is not installed") from error
    ours, data = catalogue.build(workload), catalogue.inputs(workload)
    # `stable` would give another gradient than that of the loss.
    module = MemoryEfficientCLIPLoss(math.exp(-float(ours.get_parameter("log_scale"))), stable=False)
    x, ref = data.embeddings, data.ref
    return Step(lambda: module(x, ref), catalogue.leaves(ours, data))


CONTENDERS: dict[str, Callable[[Workload], Step | Products | EmptyStep]] = {
    FLOOR: Products,
    **{name: _ours(name) for name in EXECUTORS},
    "auto": _ours("auto"),
    "torch": _torch,
    "torch-hand": _torch_hand,
    "torch-compiled": lambda workload: _torch_hand(workload, compiled=True),
    "pml": _pml,
    "siglip-kernel": _siglip_kernel,
    "memeff": _memeff,
    "autograd": EmptyStep,
}

MEANING = {
    FLOOR: "the bare matrix products of the problem, outputs allocated before: the floor",
    "auto": "fastdml, the executor it chooses",
    "torch": "the loss's specification in plain torch autograd, the whole matrix in memory",
    "torch-hand": "the loss written by hand in plain torch, where it is",
    "torch-compiled": "the same through torch.compile",
    "pml": "pytorch-metric-learning, with its miner for multi-similarity with epsilon",
    "siglip-kernel": "siglip-kernel's SigLIP, of embeddings normalised by torch; CUDA only",
    "memeff": "memeff's CLIP, for info_nce:symmetric=true; CUDA only",
    "autograd": "an autograd function of the same inputs that does nothing",
    **{name: f"fastdml, backend={name!r}" for name in EXECUTORS},
}

OURS = (*EXECUTORS, "auto")


def make(name: str, workload: Workload) -> Step | Products | EmptyStep:
    """Raises Unavailable; ValueError for a backend that cannot run the problem."""
    return CONTENDERS[name](workload)
