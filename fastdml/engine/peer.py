"""Modules that pass for pytorch-metric-learning's where that library asks for its own classes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

from torch import nn


@functools.cache
def _both(mine: Any, theirs: Any) -> type:
    return type(mine.__name__, (mine, theirs), {"__module__": mine.__module__})


_KINDS = {"BaseMetricLossFunction": "loss", "CrossBatchMemory": "loss", "BaseMiner": "miner"}


def kind_of(value: object) -> str | None:
    """Of an object of this library or of pytorch-metric-learning "loss" or "miner"; "class" of any class;
    None of anything else."""
    if isinstance(value, type):
        return "class"
    kind = type(value)
    names = (getattr(kind, "peer", ("", ""))[1], *(k.__name__ for k in kind.__mro__))
    return next((_KINDS[n] for n in names if n in _KINDS), None)


def _new(kind: Any) -> Any:
    return kind.__new__(kind)


class Recorded(nn.Module):
    """What constructors of classes derived from pytorch-metric-learning's call. Nothing is collected."""

    def add_to_recordable_attributes(
        self, name: str | None = None, list_of_names: Sequence[str] | None = None, is_stat: bool = False
    ) -> None:
        """Attributes that are not there yet become 0, as there; not those of statistics."""
        for each in () if is_stat else (*([] if name is None else [name]), *(list_of_names or ())):
            if not hasattr(self, each):
                setattr(self, each, 0)

    def reset_stats(self) -> None:
        """There are none."""


class SeenAsPeer(Recorded):
    """A module that isinstance() takes for a class of pytorch-metric-learning too, where that is imported:
    its wrappers and trainers ask for its base classes. It stays what it is: type() says so."""

    # The module and the name of the class.
    peer: tuple[str, str]

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        # isinstance() asks for this after the type.
        module, name = self.peer
        theirs = getattr(sys.modules.get(module), name, None)
        mine: Any = type(self)
        # (One whose class was changed is of both already: what torch adds to a class must be found there.)
        known = theirs is None or issubclass(mine, theirs)
        return mine if known else _both(mine, theirs)  # type: ignore[no-any-return]

    @__class__.setter  # type: ignore[no-redef, attr-defined]
    def __class__(self, kind: type) -> None:
        # torch's own way to extend a module: fully_shard, parametrizations.
        object.__dict__["__class__"].__set__(self, kind)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # pickle compares __class__ with what it is about to make.
        found: Any = super().__reduce_ex__(protocol)
        _, (kind, *rest), *state = found
        return (_new, (kind, *rest), *state)
