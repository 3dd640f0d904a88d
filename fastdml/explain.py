"""What would run, and why."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .engine import check, in_torch
from .engine.call import Call
from .engine.dispatch import EXECUTORS, choose
from .engine.loss import RowLoss
from .engine.problem import Problem
from .engine.registry import LOSSES
from .losses import FUNCTIONS, MODULES
from .losses.base import Loss
from .losses.proxy.proxies import ProxyLoss
from .losses.reduced import Elements, Reduced
from .losses.teacher.relational_distillation import Vertices
from .losses.triplet.dynamic_soft_margin import Weighed
from .losses.triplet.listed import OneByOne


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The choice of an executor. `print` it.

    executor: its name. reason: why it was chosen. plan: what it does. refused: why others cannot run.
    further: the other calls that the loss makes, each explained. memory: of a loss of several processes,
    the bytes that each needs beside its own rows and their gradient.
    """

    loss: str
    rows: int
    columns: int
    dimension: int
    device: str
    executor: str
    reason: str
    plan: str
    refused: dict[str, str]
    further: tuple[Explanation, ...] = ()
    memory: int | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.loss}: {self.rows} rows x {self.columns} candidates, D={self.dimension}, {self.device}",
            f"  runs on  {self.executor} ({self.reason})",
            f"  how      {self.plan}",
        ]
        lines += [f"  not on   {name}: {why}" for name, why in self.refused.items()]
        if self.memory is not None:
            size = f"{self.memory / 2**20:.0f} MiB"
            lines.append(f"  memory   {size} beside the rank's rows and their gradient")
        return "\n".join([*lines, *map(str, self.further)])


def explain(
    loss: str | RowLoss | nn.Module,
    M: int | Tensor,
    *batch: Any,
    N: int | None = None,
    D: int = 128,
    device: str | torch.device | None = None,
    per_class: int = 4,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
    **further: Any,
) -> Explanation:
    """Says which executor would run a loss, how, and why. Computes no loss.

    Args:
        loss: a loss module, the name of a loss in `fastdml.functional` (with its module's defaults) or
            of a description, such as "multi_similarity", or a description. Or one of
            `fastdml.distributed.wrap`, of which numbers M and N are those of each rank.
        M, *batch: what the loss would be called with: the calls that it makes of these very tensors are
            explained. Or numbers: M rows (samples, or proxies for proxy losses), then N and D.
        N: candidates; None: the rows themselves. Of several proxies a class, rounded up to whole classes.
        D: dimension of the embeddings.
        device: "cpu", "cuda", ...; need not exist here. None: that of the batch, or "cpu".
        per_class: samples per class, which sizes the threshold lists.
        dtype: of the embeddings.
        backend: as in the losses; None: the module's own, else "auto".
        further: what else the loss would be called with by name, such as own=0, beside tensors.

    Raises:
        ValueError: for an unknown loss, sizes below 1, or a forced backend that cannot run it.
    """
    if isinstance(M, Tensor):
        if M.dim() < 2:
            raise ValueError(f"M: expected a number, or embeddings [batch, dim], got shape {tuple(M.shape)}")
        on = _device(device or M.device)
        module = _module(loss, M.shape[0], M.shape[-1])
        if module.in_torch is not None:
            columns = _candidates(M, *batch, *further.values())
            return _plain(module, M.shape[0], M.shape[-1], str(on), backend, columns)
        with _at_rest(module, M.device):
            parts = module.parts(M, *batch, **further)
        return _explained(module, parts, backend, on)
    if further:
        raise ValueError(f"{next(iter(further))}: expected with the tensors of a batch only")
    if len(batch) > 3:
        check.by_place((M, *batch), ("M", "N", "D", "device"), "explain()")
    numbers = dict(zip(("N", "D", "device"), batch))
    sizes = {"M": M, "N": numbers.get("N", N), "D": numbers.get("D", D), "per_class": per_class}
    sizes |= {name: check.whole(n, name, 1) for name, n in sizes.items() if (name, n) != ("N", None)}
    on = _device(device or numbers.get("device", "cpu"))
    shape = Sizes(**sizes, dtype=dtype)
    explained: Any = getattr(loss, "explained", None)
    if explained is not None:
        found: Explanation = explained(shape, backend, on)
        return found
    if isinstance(loss, RowLoss) or (isinstance(loss, str) and loss in LOSSES):
        description = loss if isinstance(loss, RowLoss) else LOSSES[loss]()
        return _explained(None, [shape.call(description)], backend, on)
    classes = shape.M if shape.N is None else shape.N
    module = _module(loss, classes, shape.D)
    if module.in_torch is not None:
        return _plain(module, shape.M, shape.D, str(on), backend, shape.N)
    with _at_rest(module, torch.device("cpu")):
        parts = shape.calls(module)
    return _explained(module, parts, backend, on)


@contextlib.contextmanager
def _at_rest(module: Loss, device: torch.device) -> Iterator[None]:
    """Tables do not move, and torch's generators, of the CPU and the batch's device, are where they were, for
    being asked what would run. (Asked of all devices, each would be woken.)"""
    modes = {m: m.training for m in module.modules()}
    module.rest()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for m, training in modes.items():
            m.training = training


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A batch of which only sizes are known, made of one number."""

    M: int
    N: int | None
    D: int
    per_class: int
    dtype: torch.dtype

    def embeddings(self, rows: int, wanted: bool = False) -> Tensor:
        one = torch.ones(1, 1, dtype=self.dtype)
        return one.expand(rows, self.D).requires_grad_(wanted)

    def labels(self, rows: int, classes: int | None = None) -> Tensor:
        found = torch.arange(rows) // self.per_class
        return found if classes is None else found % classes

    def expect_one_set(self, module: Loss) -> None:
        if self.N not in (None, self.M):
            name = type(module).__name__
            raise ValueError(f"N: {name} compares a batch with itself; expected None, got {self.N}")

    def call(self, description: RowLoss) -> Call:
        """A call of a description alone."""
        values = self.N is not None
        return Call(
            description,
            self.embeddings(self.M),
            self.embeddings(self.N) if values and self.N else None,
            self.labels(self.M),
            self.labels(self.N) if values and self.N else None,
        )

    def calls(self, module: Loss) -> list[Any]:
        """The calls that a module makes of such a batch."""
        names = set(inspect.signature(module.forward).parameters)
        rows, columns = self.M, self.N
        if isinstance(module, ProxyLoss):
            samples, proxies = rows, columns or rows
            if module.description().rows == "proxies":
                samples, proxies = proxies, samples
            size = module.proxies_per_class
            classes = -(-proxies // size)
            return module.calls(
                self.embeddings(samples),
                self.labels(samples, classes),
                proxies=self.embeddings(classes * size),
            )
        x = self.embeddings(rows)
        if "teacher" in names:
            self.expect_one_set(module)
            return module.calls(x, self.embeddings(rows))
        if "label_distance" in names:
            self.expect_one_set(module)
            return module.calls(x, torch.ones(1, 1).expand(rows, 2))
        if "probabilities" in names:
            return module.calls(x, self.labels(rows), torch.ones(1, 1).expand(rows, columns or 1))
        if module.paired:
            return module.calls(x, self.embeddings(columns or rows))
        labels = self.labels(rows, module.num_classes)
        if columns is None or columns == rows:
            return module.calls(x, labels)
        others = self.labels(columns, module.num_classes)
        return module.calls(x, labels, None, self.embeddings(columns), others)


def _module(loss: Any, classes: int, dimension: int) -> Loss:
    """The module, or that of the functional form of that name, with its defaults."""
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str):
        raise ValueError(f"loss: expected a loss of fastdml or its name, got {loss!r}")
    found = {m.function: m for m in MODULES.values() if m.function is not None}
    if loss not in found:
        known = sorted({*LOSSES, *FUNCTIONS})
        raise ValueError(f"loss: expected one of {known}, got {loss!r}")
    module = found[loss]
    sizes: dict[str, Any] = {"num_classes": classes, "embedding_size": dimension}
    sizes |= {"descriptors_dim": dimension, "l": dimension}
    asked = inspect.signature(module.__init__).parameters
    with torch.device("meta"):  # proxies without memory
        return module(**{k: v for k, v in sizes.items() if k in asked})


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected 'cpu', 'cuda' or another of torch's, got {device!r}") from error


def _explained(
    module: Loss | None, parts: list[Any], backend: str | None, device: torch.device
) -> Explanation:
    found = [e for part in parts for e in _of_part(part, backend, device)]
    if not found:
        name = "loss" if module is None else type(module).__name__
        raise ValueError(f"loss: {name} makes no call of the engine for such a batch")
    main = 0
    if module is not None and len(found) > 1:
        names = [e.loss for e in found]
        wanted = module.description().name
        main = names.index(wanted) if wanted in names else 0
    first = found.pop(main)
    return dataclasses.replace(first, further=tuple(found))


def _of_part(part: Any, backend: str | None, device: torch.device) -> list[Explanation]:
    """Of one part of a loss; empty of what compares no pairs."""
    if isinstance(part, Call):
        before = () if part.before is None else part.before.calls
        return [of_call(call, backend, device) for call in (part, *before)]
    if isinstance(part, Elements):
        return [of_call(part.call, backend, device)]
    if isinstance(part, Weighed) and part.call is not None:
        one = of_call(part.call, backend, device)
        how = in_torch.plan(Problem.of(part.call, device))
        return [dataclasses.replace(one, executor="chunked", plan=f"{how}, twice")]
    if isinstance(part, Reduced):
        found = [_of_elements(part, call, backend, device) for call in part.calls]
        others = [p for p in part.parts if not isinstance(p, Call)]
        return found + [e for p in others for e in _of_part(p, backend, device)]
    if isinstance(part, OneByOne):
        return [_of_triplets(part, backend, str(device))]
    if isinstance(part, Vertices):
        one = of_call(part.call, backend, device)
        return [dataclasses.replace(one, plan=f"{one.plan}; one vertex after another")]
    return []


def of_call(call: Call, backend: str | None, device: torch.device) -> Explanation:
    problem = Problem.of(call, device)
    executor, reason = choose(problem, backend or call.backend)
    refusals = {name: e.refuses(problem) for name, e in EXECUTORS.items() if e is not executor}
    return Explanation(
        loss=call.loss.name,
        rows=problem.relation.rows,
        columns=problem.relation.columns,
        dimension=call.anchors.shape[1],
        device=str(device),
        executor=executor.name,
        reason=reason,
        plan=executor.plan(problem),
        refused={name: why for name, why in refusals.items() if why is not None},
    )


def _candidates(rows: Tensor, *batch: Any) -> int:
    """How many there are of what rows are compared with: a second set of their kind, else themselves."""
    others = next((t for t in batch if isinstance(t, Tensor) and t.dim() == rows.dim()), rows)
    return others.shape[0]


def _plain(
    module: Loss, rows: int, dimension: int, device: str, backend: str | None, columns: int | None = None
) -> Explanation:
    """Of a loss that makes no calls."""
    name = module.function or type(module).__name__
    chosen = backend or module.backend
    reason = in_torch.refuses(chosen)
    if reason is not None:
        raise ValueError(f"backend: {chosen!r} cannot run {name!r}: {reason}")
    assert module.in_torch is not None
    refused = {n: why for n in EXECUTORS if (why := in_torch.refuses(n)) is not None}
    columns = rows if columns is None else columns
    return Explanation(
        name, rows, columns, dimension, device, "chunked", "no sum over rows", module.in_torch, refused
    )


def _of_elements(
    part: Reduced, call: Call, backend: str | None, device: torch.device
) -> Explanation:
    found = of_call(call, backend, device)
    kind = type(part.reducer).__name__
    if not call.loss.in_pieces:
        return dataclasses.replace(found, plan=f"{found.plan}; {kind} of the rows' losses")
    how = in_torch.plan(Problem.of(call, device)) if part.by_blocks else "in torch, as a list of all elements"
    return dataclasses.replace(found, executor="chunked", reason=f"{kind} of elements", plan=how)


def _of_triplets(part: OneByOne, backend: str | None, device: str) -> Explanation:
    chosen = backend or part.backend
    reason = part.refuses(chosen)
    if reason is not None:
        raise ValueError(f"backend: {chosen!r} cannot run {part.description.name!r}: {reason}")
    batch = part.batch
    refused = {name: part.refuses(name) for name in EXECUTORS}
    return Explanation(
        loss=part.description.name,
        rows=batch.embeddings.shape[0],
        columns=batch.columns.shape[0],
        dimension=batch.embeddings.shape[1],
        device=device,
        executor="chunked",
        reason="triplets one by one" if chosen == "auto" else "asked for",
        plan=part.plan,
        refused={name: why for name, why in refused.items() if why is not None},
    )
