"""What would run, and why."""

from __future__ import annotations

import dataclasses
import inspect

import torch
from torch import nn

from .engine.dispatch import EXECUTORS, choose
from .engine.loss import RowLoss
from .engine.problem import Problem
from .engine.registry import LOSSES
from .engine.relation import LabelRelation
from .losses import FUNCTIONS, MODULES


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The choice of an executor. `print` it.

    executor: its name. reason: why it was chosen. plan: what it does. refused: why others cannot run.
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

    def __str__(self) -> str:
        lines = [
            f"{self.loss}: {self.rows} rows x {self.columns} candidates, D={self.dimension}, {self.device}",
            f"  runs on  {self.executor} ({self.reason})",
            f"  how      {self.plan}",
        ]
        lines += [f"  not on   {name}: {why}" for name, why in self.refused.items()]
        return "\n".join(lines)


def explain(
    loss: str | RowLoss | nn.Module,
    M: int,
    N: int | None = None,
    D: int = 128,
    device: str | torch.device = "cpu",
    *,
    per_class: int = 4,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> Explanation:
    """Says which executor would run a loss, how, and why. Computes nothing.

    Args:
        loss: a loss module, the name of a loss in `fastdml.functional` (with its module's defaults) or
            of a description, such as "multi_similarity", or a description. Of ROADMAP, N-pair and PCE it
            is the half that takes the time, as `description()` of the module says.
        M: rows (samples, or proxies for proxy losses).
        N: candidates; None: the rows themselves.
        D: dimension of the embeddings.
        device: "cpu", "cuda", ...; need not exist here.
        per_class: samples per class, which sizes the threshold lists.
        dtype: of the embeddings.
        backend: as in the losses; None: the module's own, else "auto".

    Raises:
        ValueError: for an unknown loss, sizes below 1, or a forced backend that cannot run it.
    """
    for value, name in ((M, "M"), (1 if N is None else N, "N"), (D, "D"), (per_class, "per_class")):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if isinstance(loss, str):
        description = _named(loss, M if N is None else N, D)
    elif isinstance(loss, RowLoss):
        description = loss
    elif isinstance(loss, nn.Module) and hasattr(loss, "description"):
        description = loss.description()  # type: ignore[operator]
        backend = backend or str(loss.backend)
    else:
        raise ValueError(f"loss: expected a loss of fastdml or its name, got {loss!r}")
    one = torch.zeros(1, 1, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    rows = torch.arange(M) // per_class
    anchors = one.expand(M, D)
    same = N is None
    problem = Problem(
        loss=description,
        anchors=anchors,
        candidates=anchors if same else one.expand(N or M, D),
        relation=LabelRelation(rows, rows if same else torch.arange(N or M) // per_class),
        statistic=one.dtype,
        device=torch.device(device),
    )
    executor, reason = choose(problem, backend or "auto")
    refusals = {name: e.refuses(problem) for name, e in EXECUTORS.items() if e is not executor}
    return Explanation(
        loss=description.name,
        rows=M,
        columns=N or M,
        dimension=D,
        device=str(device),
        executor=executor.name,
        reason=reason,
        plan=executor.plan(problem),
        refused={name: why for name, why in refusals.items() if why is not None},
    )


def _named(name: str, classes: int, dimension: int) -> RowLoss:
    """The description of that name, or of the module of the functional form of that name."""
    if name in LOSSES:
        return LOSSES[name]()
    if name not in FUNCTIONS:
        known = sorted({*LOSSES, *FUNCTIONS})
        raise ValueError(f"loss: expected one of {known}, got {name!r}")
    module = MODULES[module_of(name)]
    sizes = {"num_classes": classes, "embedding_size": dimension}
    asked = inspect.signature(module.__init__).parameters
    with torch.device("meta"):  # proxies without memory
        built = module(**{k: v for k, v in sizes.items() if k in asked})
    return built.description()  # type: ignore[no-any-return, operator]


def module_of(function: str) -> str:
    """The module of a functional form: "n_pairs" and "n_pairs_mc" belong to "NPairsLoss"."""
    joined = function.replace("_", "")
    fitting = [m for m in MODULES if joined.startswith(m.removesuffix("Loss").lower())]
    return max(fitting, key=len)
