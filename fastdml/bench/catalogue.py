"""From a registered name to a module and what it asks of the engine; new losses appear by themselves."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import autograd
from ..engine.registry import LOSSES
from ..losses import MODULES
from .workload import Inputs, Workload

Call = dict[str, Any]  # arguments of engine.autograd.row_loss
RowLossFunction = Callable[..., Tensor]


# Arguments without a default, by module.
_NEEDED: dict[str, dict[str, Any]] = {"RankedListLoss": {"margin": 0.4, "Tn": 10.0}}


def needed(cls: type) -> dict[str, Any]:
    """Arguments without which a module, ours or its namesake elsewhere, cannot be made."""
    return _NEEDED.get(cls.__name__, {})


def _arguments(cls: type, workload: Workload) -> dict[str, Any]:
    known = {"num_classes": workload.classes, "embedding_size": workload.dim}
    sizes = {k: v for k, v in known.items() if k in inspect.signature(cls).parameters}
    return {**sizes, **needed(cls), **dict(workload.options)}


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


def module_class(name: str) -> type[nn.Module]:
    """Of a registered name or of a module's own: several modules may share a registered loss."""
    return MODULES[name] if name in MODULES else module_classes()[name]


@functools.cache
def registered(name: str) -> str:
    """The registered loss behind a name."""
    if name not in MODULES:
        return name
    cls = MODULES[name]
    return cls(**_arguments(cls, Workload("", batch=8, dim=4, classes=4))).description().name  # type: ignore[operator]


# Modules that are in pytorch-metric-learning 2.9.0 too.
SHARED = (
    "ArcFaceLoss", "CircleLoss", "ContrastiveLoss", "CosFaceLoss", "FastAPLoss",
    "GeneralizedLiftedStructureLoss", "HistogramLoss", "InstanceLoss", "IntraPairVarianceLoss",
    "LargeMarginSoftmaxLoss",
    "LiftedStructureLoss", "MarginLoss", "MultiSimilarityLoss", "NCALoss", "NPairsLoss", "NTXentLoss",
    "NormalizedSoftmaxLoss", "PNPLoss", "ProxyAnchorLoss", "ProxyNCALoss", "RankedListLoss",
    "SignalToNoiseRatioContrastiveLoss", "SmoothAPLoss", "SoftTripleLoss", "SphereFaceLoss",
    "SubCenterArcFaceLoss", "SupConLoss", "TripletMarginLoss", "TupletMarginLoss",
)  # fmt: skip


def check_loss(name: str) -> None:
    """Raises ValueError for a loss that is not registered, or has no module of its own."""
    if name in SHARED:
        return
    if name not in LOSSES:
        raise ValueError(f"--loss: expected one of {', '.join(sorted(LOSSES))}, got {name!r}")
    if name not in module_classes():
        raise ValueError(f"--loss: no module computes {name!r} without arguments of its own")


def measurable() -> list[str]:
    """Names of all losses that can be built from sizes alone."""
    return sorted(module_classes().keys() & LOSSES.keys())


def is_proxy(name: str) -> bool:
    loss = LOSSES[registered(name)]
    return "proxies" in (loss.rows, loss.columns)


def is_paired(name: str) -> bool:
    """Whether the loss pairs row i of two sets, without labels."""
    return "labels" not in inspect.signature(module_class(name).forward).parameters


def inputs(workload: Workload, dtype: torch.dtype | None = None) -> Inputs:
    """The data of a workload, in its own type or another."""
    name = workload.loss
    return workload.inputs(dtype, paired=is_paired(name), proxies=is_proxy(name))


def build(workload: Workload, dtype: torch.dtype | None = None, **settings: str) -> nn.Module:
    """The loss of a workload; settings: backend, reduction. Parameters depend on the seed only."""
    check_loss(workload.loss)
    cls = module_class(workload.loss)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(workload.seed)
        module = cls(**_arguments(cls, workload), **settings)
    kind = workload.torch_dtype
    # Rounded to the type that is measured, so that a reference sees the same numbers.
    return module.to(kind).to(workload.device, dtype or kind)


def arguments(module: nn.Module, data: Inputs) -> dict[str, Tensor]:
    """Keyword arguments of a call."""
    given = {
        "embeddings": data.embeddings,
        "labels": data.labels,
        "ref_emb": data.ref,
        "ref_labels": data.ref_labels,
    }
    taken = inspect.signature(module.forward).parameters
    return {k: v for k, v in given.items() if v is not None and k in taken}


def leaves(module: nn.Module, data: Inputs) -> dict[str, Tensor]:
    """What receives gradients, by name."""
    found = {"embeddings": data.embeddings, **dict(module.named_parameters())}
    if data.ref is not None and data.ref.requires_grad:
        found["ref_emb"] = data.ref
    return found


@contextmanager
def engine_replaced(by: RowLossFunction) -> Iterator[None]:
    """Inside, losses call `by` where they would call the engine."""
    before = autograd.row_loss
    autograd.row_loss = by
    try:
        yield
    finally:
        autograd.row_loss = before


def calls(module: nn.Module, data: Inputs) -> list[Call]:
    """What a loss asks of the engine, without computing it."""
    found: list[Call] = []
    names = list(inspect.signature(autograd.row_loss).parameters)

    def note(*given: Any, **named: Any) -> Tensor:
        found.append({**dict(zip(names, given)), **named})
        return given[0].new_zeros((), requires_grad=True)

    with engine_replaced(note):
        module(**arguments(module, data))
    return found


@dataclasses.dataclass(frozen=True)
class Shape:
    """The matrix products of a problem: rows M, columns N, and how many of the three are needed."""

    rows: int
    columns: int
    products: int
    listed: bool  # whether rows own a list of thresholds


def shape(workload: Workload) -> Shape:
    module = build(workload)
    first = calls(module, inputs(workload))[0]
    a, c = first["anchors"], first["candidates"]
    wanted = 1 + a.requires_grad + (c is None or c.requires_grad)
    listed = LOSSES[registered(workload.loss)].threshold_list
    return Shape(a.shape[0], (a if c is None else c).shape[0], wanted, listed)
