"""From a registered name to a module and what it asks of the engine; new losses appear by themselves."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.call import Call
from ..engine.registry import LOSSES
from ..losses import MODULES
from .workload import Inputs, Option, Workload

# Arguments with which a registered loss is measured by default, where its own are not the usual.
USUAL: dict[str, tuple[tuple[str, Option], ...]] = {
    "multi_similarity": (("epsilon", 0.1),),
    # On products of embeddings that are not normalised its softmax is one-hot: a loss of 1e-70.
    "listwise_distillation": (("similarity", "cosine"),),
}
# Arguments without a default, by module.
_NEEDED: dict[str, dict[str, Any]] = {"RankedListLoss": {"margin": 0.4, "Tn": 10.0}}


def needed(cls: type) -> dict[str, Any]:
    """Arguments without which a module, ours or its namesake elsewhere, cannot be made."""
    return _NEEDED.get(cls.__name__, {})


def sizes(cls: type, workload: Workload) -> dict[str, int]:
    """The sizes without which a module of ours, or its namesake elsewhere, cannot be made."""
    known = {"num_classes": workload.classes, "embedding_size": workload.dim}
    parameters = inspect.signature(cls).parameters
    return {
        k: v
        for k, v in known.items()
        if k in parameters and parameters[k].default is inspect.Parameter.empty
    }


def _arguments(cls: type, workload: Workload) -> dict[str, Any]:
    return {**sizes(cls, workload), **needed(cls), **dict(workload.options)}


def _described() -> Iterator[tuple[str, type[nn.Module], str]]:
    """(name, module, registered name) of all that can be made from sizes alone and whose products count."""
    for name, cls in sorted(MODULES.items()):
        if cls.in_torch is not None:
            continue
        try:
            registered = _registered(cls)
        except (TypeError, AttributeError):  # needs arguments only its user can give
            continue
        if registered in LOSSES:
            yield name, cls, registered


@functools.cache
def module_classes() -> dict[str, type[nn.Module]]:
    """Registered name -> the first module that computes it, and nothing beside it if there is one."""
    found: dict[str, list[type[nn.Module]]] = {}
    for _, cls, name in _described():
        found.setdefault(name, []).append(cls)

    def alone(cls: type[nn.Module]) -> bool:
        example = Workload("", batch=8, dim=4, classes=4)
        try:
            return len(calls(cls(**_arguments(cls, example)), example.inputs(paired=_paired(cls)))) == 1
        except TypeError:  # its call takes more than a batch
            return False

    return {
        name: next(filter(alone, some), some[0]) if len(some) > 1 else some[0]
        for name, some in found.items()
    }


def _registered(cls: type[nn.Module]) -> str:
    """The name of what a module computes."""
    example = Workload("", batch=8, dim=4, classes=4)
    return cls(**_arguments(cls, example)).description().name  # type: ignore[operator,no-any-return]


def module_class(name: str) -> type[nn.Module]:
    """Of a registered name or of a module's own: several modules may share a registered loss."""
    return MODULES[name] if name in MODULES else module_classes()[name]


@functools.cache
def registered(name: str) -> str:
    """The registered loss behind a name."""
    if name not in MODULES:
        return name
    return _registered(MODULES[name])


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
    if name in SHARED or name in proxy_modules():
        return
    if name not in LOSSES:
        raise ValueError(f"--loss: expected one of {', '.join(sorted(LOSSES))}, got {name!r}")
    if name not in module_classes():
        raise ValueError(f"--loss: no module computes {name!r} without arguments of its own")


def proxy_modules() -> list[str]:
    """Names of all modules whose registered loss has proxies: several may share one."""
    found = []
    for name, _, registered in _described():
        loss = LOSSES[registered]
        if "proxies" in (loss.rows, loss.columns):
            found.append(name)
    return found


def measurable() -> list[str]:
    """Names of all losses that can be built from sizes alone."""
    return sorted(module_classes().keys() & LOSSES.keys())


def is_relational(cls: type[nn.Module]) -> bool:
    """Whether a loss compares the batch with a teacher's embeddings or with distances of labels."""
    return bool({"teacher", "label_distance"} & set(inspect.signature(cls.forward).parameters))


def is_proxy(name: str) -> bool:
    loss = LOSSES[registered(name)]
    return "proxies" in (loss.rows, loss.columns)


def is_paired(name: str) -> bool:
    """Whether the loss pairs row i of two sets, without labels."""
    return _paired(module_class(name))


def _paired(cls: type[nn.Module]) -> bool:
    return bool(getattr(cls, "paired", False))


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
    if _paired(type(module)):
        given["labels"] = given["ref_labels"] = None
    taken = inspect.signature(module.forward).parameters
    if is_relational(type(module)):
        # What a batch is compared with are embeddings, or labels of as many dimensions.
        given = {"embeddings": data.embeddings, "teacher": data.teacher}
        if "teacher" not in taken:
            given["labels"] = data.teacher
    return {k: v for k, v in given.items() if v is not None and k in taken}


def leaves(module: nn.Module, data: Inputs) -> dict[str, Tensor]:
    """What receives gradients, by name."""
    found = {"embeddings": data.embeddings, **dict(module.named_parameters())}
    if data.ref is not None and data.ref.requires_grad:
        found["ref_emb"] = data.ref
    return found


def parts(module: nn.Module, data: Inputs) -> list[Any]:
    """What a loss makes of a batch, without computing it."""
    bound = inspect.signature(module.forward).bind(**arguments(module, data))
    bound.apply_defaults()
    return module.calls(*bound.args)  # type: ignore[operator,no-any-return]


def calls(module: nn.Module, data: Inputs) -> list[Call]:
    """The calls of the engine among them, those that come before another first."""
    found: list[Call] = []
    for part in parts(module, data):
        if isinstance(part, Call):
            found += (() if part.before is None else part.before.calls)
            found.append(part)
    return found


@dataclasses.dataclass(frozen=True)
class Visit:
    """The matrix products of one call of the engine, which no method can do without.

    rows, columns: M, N. similarities: how many times S = A C^T, or the like of a teacher, is formed:
    once, and once more for a teacher; and once more where the weights of a row need numbers of all
    rows (a column's sum, a normaliser that counts active pairs), as S is not kept.
    gradients: which of dA = G C and dC = G^T A are wanted.
    """

    rows: int
    columns: int
    similarities: int
    gradients: tuple[bool, bool]

    @property
    def products(self) -> int:
        return self.similarities + sum(self.gradients)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The matrix products of a problem; rows M and columns N of the last of its visits."""

    visits: tuple[Visit, ...]
    listed: bool  # whether rows own a list of thresholds

    @property
    def rows(self) -> int:
        return self.visits[-1].rows

    @property
    def columns(self) -> int:
        return self.visits[-1].columns

    @property
    def products(self) -> int:
        return sum(v.products for v in self.visits)


def _visit(call: Call) -> Visit:
    a, c, loss = call.anchors, call.candidates, call.loss
    similarities = 1 + bool(call.teacher)
    gradients = (a.requires_grad, a.requires_grad if c is None else c.requires_grad)
    twice = loss.presweep() is not None or (loss.combines_all and any(gradients))
    columns = (a if c is None else c).shape[0]
    return Visit(a.shape[0], columns, similarities + twice, gradients)


def shape(workload: Workload) -> Shape:
    module = build(workload)
    listed = LOSSES[registered(workload.loss)].threshold_list
    asked = calls(module, inputs(workload))
    return Shape(tuple(_visit(call) for call in asked), listed)
