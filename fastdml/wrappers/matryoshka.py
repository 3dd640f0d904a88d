"""Matryoshka: a loss of the leading dimensions of embeddings, of several widths at once."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from ..engine import check, prefixes
from ..engine.call import Call
from ..losses.base import total, weighted
from ..losses.parts import called_as, expect_number, expect_parts

# Arguments of losses that are embeddings of the one space.
_EMBEDDINGS = (
    "embeddings", "ref_emb", "hard_negatives", "proxies", "candidates", "queries", "documents",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Widths:
    """One call of a loss, of embeddings of several widths, widest last; its value is their weighted sum."""

    calls: tuple[Call, ...]
    weights: tuple[float, ...]

    def map(self, transform: Callable[[Call], Call]) -> Widths:
        """The calls transformed, and those that come before them."""
        return dataclasses.replace(self, calls=tuple(c.map(transform) for c in self.calls))

    def evaluate(self) -> Tensor:
        return prefixes.total(self.calls, self.weights)


class MatryoshkaLoss(nn.Module):
    """A loss of embeddings cut to several widths, each normalised anew, weighted and added up.

    *Matryoshka Representation Learning*, Kusupati et al., NeurIPS 2022 (arXiv 2205.13147), equation 1: the
    sum over widths m of c_m L(x[:, :m]). The products of a width are those of the width before and of the
    dimensions between: all widths together take the products of the widest (docs/two-towers.md: where).

    Args:
        loss: a loss of embeddings, of this library: of samples, with proxies (whose first dimensions are
            taken), of two towers, or a wrapper of one that has `parts`.
        dims: the widths, ascending, of any sizes, each at least 1; embeddings may have more dimensions.
        weights: one number for each; None: 1 for all, as in the paper.

    Called as its loss is.

    Raises:
        ValueError: naming the argument and what was expected of it.
    """

    def __init__(
        self, loss: nn.Module, dims: Sequence[int], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        expect_parts(loss)
        expect_number(loss)
        self.loss = loss
        self.dims = tuple(check.count(d, "dims") for d in check.sequence(dims, "dims", "ascending widths"))
        if not self.dims or any(a >= b for a, b in zip(self.dims, self.dims[1:])):
            raise ValueError(f"dims: expected ascending widths, got {list(dims)}")
        found: list[float] = [1.0] * len(self.dims)
        if weights is not None:
            found = check.sequence(weights, "weights", "a number for each of dims, or None")
        if len(found) != len(self.dims):
            raise ValueError(f"weights: expected {len(self.dims)} numbers, got {len(found)}")
        self.weights = tuple(check.finite(w, "weights") for w in found)
        methods = (loss.forward, getattr(loss, "calls", loss.forward))
        told = [self.called_as.parameters, *(inspect.signature(m).parameters for m in methods)]
        # The one that spells out the batch has its places; proxies are an argument of `calls`.
        batch = next((t for t in told if "embeddings" in t), told[0]).values()
        self._places = {
            p.name: None if p.default is p.empty else p.default
            for p in batch
            if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        }
        self._any_number = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in batch)
        self._proxies = any("proxies" in t for t in told)
        self._check_vectors()

    def _check_vectors(self) -> None:
        """Vectors that the loss holds must be arguments of its call: else nobody can cut them."""
        cut = {m for one in self.loss.modules() if isinstance(one, MatryoshkaLoss) for m in one.modules()}
        if self._proxies:
            cut.add(self.loss)
        for module in self.loss.modules():
            if module in cut or not hasattr(module, "embedding_size"):
                continue
            expected, outer = "loss: expected one whose vectors are of the call", type(self.loss).__name__
            if module is self.loss:
                raise ValueError(f"{expected}, got {outer}, which keeps some of one width")
            inner = type(module).__name__
            raise ValueError(
                f"{expected}, got {outer} of {inner}; put MatryoshkaLoss around {inner}, and {outer} around "
                "that"
            )

    @property
    def called_as(self) -> inspect.Signature:
        """What a call of it takes: what its loss does."""
        return called_as(self.loss)

    def forward(self, *batch: Any, **more: Any) -> Tensor:
        return total(self.parts(*batch, **more))

    def parts(self, *batch: Any, **more: Any) -> list[Any]:
        """The parts of the loss, each of all widths."""
        given = self._places | dict(zip(self._places, batch, strict=False)) | more
        further = batch[len(self._places) :]
        if further and not self._any_number:
            raise TypeError(f"expected at most {len(self._places)} arguments by place, got {len(batch)}")
        if self._proxies and "proxies" not in given:
            own = getattr(self.loss, "proxies", None)  # of a class that has several, all of them
            given["proxies"] = getattr(self.loss, "all_proxies", own)
            if "bias" in getattr(self.loss, "inputs", {}):  # which goes with the proxies
                given.setdefault("bias", self.loss.bias)
        name = "queries" if "queries" in given else "embeddings"
        whole: Any = given.get(name)
        check.tensor(whole, name)  # of what shape is the loss's to say
        size = whole.shape[-1] if whole.dim() else 0
        if size < self.dims[-1]:
            raise ValueError(f"{name}: expected at least {self.dims[-1]} dimensions, got {size}")
        # Cut, they would all be as wide. (What proxies have is their loss's affair.)
        others = {k: given.get(k) for k in _EMBEDDINGS if k != "proxies"}
        for other, x in (*others.items(), *((f"{name} of another view", x) for x in further)):
            if isinstance(x, Tensor) and x.shape[-1:] != whole.shape[-1:]:
                raise ValueError(
                    f"{other}: expected dimension {whole.shape[-1]}, as in {name}, got shape {tuple(x.shape)}"
                )
        each = [self._of_width(given, further, width) for width in self.dims]
        found: list[Any] = []
        for group in zip(*each, strict=True):
            if all(isinstance(part, Call) for part in group):
                found.append(Widths(group, self.weights))
            else:
                found += [weighted(p, w) for p, w in zip(group, self.weights, strict=True)]
        return found

    def _of_width(self, given: dict[str, Any], further: tuple[Any, ...], width: int) -> list[Any]:
        found = _cut(given, width)
        places = [found.pop(name) for name in self._places]
        places += [prefixes.leading(x, width) if isinstance(x, Tensor) else x for x in further]
        return self.loss.parts(*places, **found)  # type: ignore[no-any-return,operator]

    def extra_repr(self) -> str:
        return f"dims={list(self.dims)}, weights={list(self.weights)}"


def _cut(given: dict[str, Any], width: int) -> dict[str, Any]:
    """The arguments with embeddings of their first dimensions; what was one tensor stays one."""
    views: dict[int, Tensor] = {}

    def cut(x: Tensor) -> Tensor:
        return views.setdefault(id(x), prefixes.leading(x, width))

    return {k: cut(v) if k in _EMBEDDINGS and isinstance(v, Tensor) else v for k, v in given.items()}
