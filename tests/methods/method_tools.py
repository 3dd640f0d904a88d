"""What the tests of the methods share."""

import io

import torch
from torch import Tensor, nn


def saved(module: nn.Module) -> dict:
    """The state as a checkpoint holds it: written and read again."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=dtype)


def batches(count: int, size: int, dim: int, classes: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Random batches of unbalanced classes, a few rows repeated, in float64."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        x = torch.randn(size, dim, generator=g, dtype=torch.float64)
        y = (torch.rand(size, generator=g).square() * classes).long()
        x[size // 2] = x[0]
        y[size // 2] = y[0]
        found.append((x, y))
    return found


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(
        torch.equal(v, b[k]) if isinstance(v, Tensor) else v == b[k] for k, v in a.items()
    )

