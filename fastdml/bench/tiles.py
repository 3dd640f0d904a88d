"""Every tile functor as it is usually called: what `kernels.aot` compiles, on a machine without a GPU."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from .. import losses as losses  # that they are registered
from ..engine.executors.triton import functor_of
from ..engine.loss import RowLoss
from ..engine.problem import computed_scalars
from ..engine.registry import LOSSES
from ..engine.relation import LabelRelation

if TYPE_CHECKING:
    from ..kernels.aot import Usual


@functools.cache
def _forms() -> dict[str, RowLoss]:
    """By name: every form that the examples of a loss have, that of its defaults first, and what they read of
    their columns."""
    found: dict[str, RowLoss] = {}
    for kind in LOSSES.values():
        for loss in (kind(), *kind.examples()):
            for one in (loss, loss.presweep()):
                if one is not None:
                    found.setdefault(one.functor_name, one)
    return found


def names() -> list[str]:
    """Those that have tiles."""
    return [name for name, loss in _forms().items() if _known(loss)]


def _known(loss: RowLoss) -> bool:
    functor = functor_of(loss)
    if functor is None:
        return False
    try:
        return functor.tile(loss) is not None
    except NotImplementedError:  # a form that it does not know
        return False


def usual(name: str) -> Usual:
    """How the form of that name is usually called."""
    from ..kernels.aot import Usual

    loss = _forms()[name]
    functor: Any = functor_of(loss)
    labels = torch.arange(8) // 2
    relation = LabelRelation(labels, labels)
    computed = computed_scalars(loss, relation, labels.device, torch.float32)
    count = len(functor.parameters(loss)) + getattr(functor, "COUNTS_OWN", False) + len(loss.learnable)
    of_columns = name not in LOSSES and loss.name not in LOSSES
    return Usual(
        functor.tile(loss),
        count + (0 if computed is None else computed.numel()) + of_columns,
        loss.similarity,
        loss.columns_per_class,
        # Two towers have a learnable scale.
        two_sets="proxies" in (loss.rows, loss.columns) or bool(loss.learnable) or of_columns,
        gradient=not of_columns,
    )
