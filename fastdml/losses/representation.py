"""How a module shows the arguments of its constructor, and holds those that are state."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..engine.arguments import constructor

_SHOWN = (bool, int, float, str, tuple)


def learnt(value: Tensor) -> Tensor:
    """A parameter. In a module that is made in a compiled graph, which is a functional form's and whose own
    state is not used, a tensor: a graph cannot make parameters."""
    return value if torch.compiler.is_compiling() else nn.Parameter(value)


def shown(module: nn.Module) -> str:
    """The constructor's arguments as the module keeps them: "name=value, ..."."""
    values = {name: getattr(module, name, None) for name in constructor(type(module))}
    return ", ".join(f"{k}={v!r}" for k, v in values.items() if isinstance(v, _SHOWN))


def unrounded(held: Tensor, given: Tensor, narrow: torch.dtype) -> Tensor:
    """held in double precision, with what was given in it where it is still that, rounded to `narrow`."""
    given = given.to(held.device)
    held = held.double()
    return torch.where(held == given.to(narrow).double(), given, held)


class ExactNumbers(nn.Module):
    """A module that holds numbers as they were given: one in double precision has all their digits. Those in
    torch's default type (`starts`), converted before they have changed, are what was given again."""

    # Buffers that a conversion of the module moves and widens, but does not round.
    constants: ClassVar[tuple[str, ...]] = ()
    _given: dict[str, Tensor]

    def learn(self, name: str, value: Tensor) -> None:
        """Registers a parameter that starts at value, in torch's default type."""
        setattr(self, name, learnt(value.to(torch.get_default_dtype())))
        self.starts(name, value)

    def starts(self, name: str, value: Tensor) -> None:
        """Says what a parameter or buffer was before it was rounded."""
        if not torch.compiler.is_compiling():  # what is made in a graph is not converted
            self.__dict__.setdefault("_given", {})[name] = value

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        buffers = {n: self._buffers[n] for n in self.constants if n in self._buffers}
        given: dict[str, Tensor] = self.__dict__.get("_given", {})
        types = {n: getattr(self, n).dtype for n in given}
        super()._apply(fn, *args, **kwargs)
        for name, buffer in buffers.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype.itemsize < buffer.dtype.itemsize:
                self._buffers[name] = buffer.to(moved.device)
        for name, value in given.items():
            held = getattr(self, name)
            if held.dtype == torch.float64 != types[name] and held.device.type != "meta":
                with torch.no_grad():
                    held.copy_(unrounded(held, value, types[name]))
        return self
