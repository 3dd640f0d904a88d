"""Modules that pass for pytorch-metric-learning's where that library asks for its own classes."""

from __future__ import annotations

import functools
import sys
from typing import Any

from torch import nn


@functools.cache
def _both(mine: Any, theirs: Any) -> type:
    return type(mine.__name__, (mine, theirs), {"__module__": mine.__module__})


def _new(kind: Any) -> Any:
    return kind.__new__(kind)


class SeenAsPeer(nn.Module):
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
        return mine if theirs is None else _both(mine, theirs)  # type: ignore[no-any-return]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # pickle compares __class__ with what it is about to make.
        found: Any = super().__reduce_ex__(protocol)
        _, (kind, *rest), *state = found
        return (_new, (kind, *rest), *state)
