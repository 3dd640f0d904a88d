"""The entries: every loss of the library, and every method.

Settings differ from the library's defaults only where SETTINGS says so; none was chosen on test classes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastdml import losses

from .methods import METHODS
from .networks import source_network
from .plan import D, Plan

# Arguments of losses that have no default, or that are for another scale of data than ours.
SETTINGS: dict[str, dict[str, Any]] = {
    "multi_similarity": {"epsilon": 0.1},
    "ranked_list": {"margin": 0.4, "Tn": 10.0},
    "margin": {"learn_beta": False},
}
RELATIONAL = ("dark_rank", "pkt", "relaxed_contrastive", "rkd_angle", "rkd_distance")
TWO_SETS = ("clip", "info_nce", "paired_n_pairs", "sig_lip")


def registered() -> dict[str, type[nn.Module]]:
    """Every loss of the library; `MultiSimilarityLoss` is multi_similarity."""
    words = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"
    return {
        re.sub(words, "_", name.removesuffix("Loss")).lower(): module
        for name, module in losses.MODULES.items()
    }


# Of numbers, not classes (benchmarks/continuous_labels.py); a method below; or of other batches.
ELSEWHERE = (
    "dense_triplet", "log_ratio", "listwise_self_distillation",
    *(name for name, module in registered().items() if module.in_torch is not None),
)  # fmt: skip


def _arguments(module: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Of the constructor and those that it hands arguments on to."""
    found: dict[str, inspect.Parameter] = {}
    for cls in module.__mro__:
        if cls is not nn.Module and "__init__" in vars(cls):
            for p in list(inspect.signature(vars(cls)["__init__"]).parameters.values())[1:]:
                if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                    found.setdefault(p.name, p)
    return found


def _build(name: str, classes: int) -> nn.Module:
    module = registered()[name]
    taken = _arguments(module)
    size = next((k for k in ("descriptors_dim", "embedding_size") if k in taken), "")
    known = {"num_classes": classes, size: D, **SETTINGS.get(name, {})}
    return module(**{k: v for k, v in known.items() if k in taken})


def learns_proxies(name: str) -> bool:
    """Whether a loss compares with something that it learns per class, not within the batch. (SOPRC counts
    classes for a table that follows the batch: it needs positives there.)"""
    classes = _arguments(registered()[name]).get("num_classes")
    required = classes is not None and classes.default is classes.empty
    return required and any(True for _ in _build(name, 2).parameters())


def loss_plan(name: str) -> type[Plan]:
    """A loss of embeddings and classes."""

    class LossPlan(Plan):
        def build(self) -> None:
            self.loss = _build(name, self.classes)
            self.learnt = [self.loss]
            if learns_proxies(name):
                # Proxies stand in for the class: more classes in a batch serve them better.
                fits = (m for m in (1, 2) if self.budget.batch <= m * self.classes)
                self.per_class = next(fits, self.per_class)

    return LossPlan


def relational_plan(name: str) -> type[Plan]:
    """A loss of the relations that a source network sees: embedding transfer."""

    class RelationalPlan(Plan):
        views = 2

        def build(self) -> None:
            from fastdml.methods import EmbeddingTransfer

            self.loss = EmbeddingTransfer(source_network(self), _build(name, self.classes))

        def objective(
            self, outputs: tuple[Tensor, ...], labels: Tensor, images: Tensor
        ) -> Tensor:
            return self.loss(outputs[0], images)

    return RelationalPlan


def two_set_plan(name: str) -> type[Plan]:
    """A loss of two sets whose rows belong together: two images of a class, one class a row."""

    class TwoSetPlan(Plan):
        per_class = 2

        def build(self) -> None:
            self.loss = _build(name, self.classes)
            self.learnt = [self.loss]

        def objective(
            self, outputs: tuple[Tensor, ...], labels: Tensor, images: Tensor
        ) -> Tensor:
            return self.loss(outputs[0][0::2], outputs[0][1::2])

    return TwoSetPlan


class PCEPlan(Plan):
    """Its probabilities are those of a linear classifier, which learns by cross-entropy beside it."""

    def build(self) -> None:
        self.loss = losses.PCELoss()
        self.classifier = losses.SmoothedCrossEntropyLoss(self.classes, D)
        self.learnt = [self.classifier]

    def objective(self, outputs: tuple[Tensor, ...], labels: Tensor, images: Tensor) -> Tensor:
        x = outputs[0]
        with torch.no_grad():
            probabilities = self.classifier.get_logits(x).softmax(1)
        return self.loss(x, labels, probabilities) + self.classifier(x.detach(), labels)


def entries() -> dict[str, tuple[str, Callable[..., Plan]]]:
    """Kind and plan of every entry, by name."""
    found: dict[str, tuple[str, Callable[..., Plan]]] = {}
    for name in sorted(set(registered()) - set(ELSEWHERE)):
        if name in RELATIONAL:
            found[name] = ("teacher", relational_plan(name))
        elif name in TWO_SETS:
            found[name] = ("two sets", two_set_plan(name))
        elif name == "pce":
            found[name] = ("proxies", PCEPlan)
        else:
            found[name] = ("proxies" if learns_proxies(name) else "pairs", loss_plan(name))
    return found | {name: ("method", plan) for name, plan in METHODS.items()}
