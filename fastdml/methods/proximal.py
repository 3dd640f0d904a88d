"""A pull of the weights to where they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import check
from ..engine.similarity import wide_type


class ProximalTerm(nn.Module):
    """(weight / 2) |theta - theta_0|^2 over the parameters of a network that want a gradient when this is
    made.

    There is no term until `move` has set theta_0. The network is not a submodule: its state is saved
    where it was saved before.

    Args:
        model: the network.
        weight: at least 0.

    State: theta_0, whether there is one, and `weight`, which may be changed at any time.
    """

    def __init__(self, model: nn.Module, weight: float = 2e-4) -> None:
        super().__init__()
        self.weight = check.non_negative(weight, "weight")
        self.active = False
        self._model = (model,)  # a tuple hides it from the module
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        if not self._names:
            raise ValueError("model: expected parameters that require a gradient, got none")
        for k, p in enumerate(self.of):
            self.register_buffer(f"origin_{k}", p.detach().clone())

    @property
    def of(self) -> list[nn.Parameter]:
        """Those of the network as it is now: sharding and states that are assigned bind new ones."""
        try:
            return [self._model[0].get_parameter(name) for name in self._names]
        except AttributeError as error:
            raise ValueError(
                f"model: expected the parameters that it had at first ({error})"
            ) from None

    @property
    def origin(self) -> list[Tensor]:
        """theta_0, in the order of the network's parameters."""
        return [self.get_buffer(f"origin_{k}") for k in range(len(self._names))]

    @torch.no_grad()
    def move(self, to: Sequence[Tensor] | None = None) -> None:
        """theta_0 becomes the weights as they are now, or those given."""
        for old, new in zip(self.origin, self.of if to is None else to, strict=True):
            old.copy_(new)
        self.active = True

    def forward(self) -> Tensor:
        """The term, to add to a loss; a scalar in float32, or float64 for a network in that."""
        of = self.of
        kind = wide_type(*of)
        total = of[0].new_zeros((), dtype=kind)
        if not self.active or self.weight == 0:
            return total
        for p, origin in zip(of, self.origin, strict=True):
            total = total + (p - origin).to(kind).square().sum()
        return self.weight / 2 * total

    @torch.no_grad()
    def add_to_gradients(self) -> None:
        """Adds the term's gradient to the parameters' own, between backward and the optimiser's step (with a
        gradient scaler after `unscale_`): the same as `forward` in the loss, without a graph."""
        if not self.active or self.weight == 0:
            return
        for p, origin in zip(self.of, self.origin, strict=True):
            if not p.requires_grad:  # frozen since; an optimiser would decay what has a gradient of zeros
                continue
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            p.grad.add_(p - origin, alpha=self.weight)

    def get_extra_state(self) -> dict[str, Any]:
        return {"weight": float(self.weight), "active": self.active}

    def set_extra_state(self, state: Any) -> None:
        self.weight, self.active = float(state["weight"]), bool(state["active"])
