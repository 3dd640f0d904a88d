"""From a registered name to a module that can be called: new losses appear here by themselves."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import autograd
from ..engine.loss import RowLoss
from ..engine.registry import LOSSES, handle
from ..losses import MODULES
from .workload import Workload


class _Described(nn.Module):
    """A registered description that has no module of its own, called through the engine."""

    def __init__(self, description: RowLoss, workload: Workload, **call: str) -> None:
        super().__init__()
        self._description, self._call = description, call
        if description.rows == "proxies":
            self.proxies = nn.Parameter(torch.randn(workload.classes, workload.dim))

    def description(self) -> RowLoss:
        return self._description

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        name = handle(self._description)
        if self._description.rows == "proxies":
            known = torch.arange(self.proxies.shape[0], device=labels.device)
            return autograd.row_loss(
                self.proxies, embeddings, known, labels, loss=name, **self._call
            )
        return autograd.row_loss(
            embeddings, ref_emb, labels, ref_labels, loss=name, **self._call
        )


def _arguments(cls: type, workload: Workload) -> dict[str, Any]:
    known = {"num_classes": workload.classes, "embedding_size": workload.dim}
    return {k: v for k, v in known.items() if k in inspect.signature(cls).parameters}


@functools.cache
def module_classes() -> dict[str, type[nn.Module]]:
    """Registered name -> the first module that computes it."""
    found: dict[str, type[nn.Module]] = {}
    example = Workload("", batch=8, dim=4, classes=4)
    for _, cls in sorted(MODULES.items()):
        try:
            name = cls(**_arguments(cls, example)).description().name  # type: ignore[operator]
        except (TypeError, AttributeError):  # needs arguments only its user can give
            continue
        found.setdefault(name, cls)
    return found


def check_loss(name: str) -> None:
    """Raises ValueError for a loss that is not registered."""
    if name not in LOSSES:
        raise ValueError(f"--loss: expected one of {', '.join(sorted(LOSSES))}, got {name!r}")


def build(workload: Workload, dtype: torch.dtype, **settings: str) -> nn.Module:
    """The loss of a workload; settings: backend, reduction. Parameters depend on the seed only."""
    check_loss(workload.loss)
    cls = module_classes().get(workload.loss)
    options: dict[str, Any] = dict(workload.options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(workload.seed)
        if cls is None:
            module: nn.Module = _Described(
                LOSSES[workload.loss](**options), workload, **settings
            )
        else:
            module = cls(**_arguments(cls, workload), **options, **settings)
    return module.to(workload.torch_dtype).to(workload.device, dtype)


def is_proxy(workload: Workload) -> bool:
    return LOSSES[workload.loss].rows == "proxies"


def shape(workload: Workload) -> tuple[int, int]:
    """(M, N): rows and columns of the similarity matrix."""
    if is_proxy(workload):
        return workload.classes, workload.batch
    return workload.batch, workload.candidates or workload.batch
