"""A weighted sum of losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..engine import check
from ..engine.arguments import NamedArguments
from ..losses.base import Loss, weighted
from ..losses.parts import expect_number
from ..mining.pairs import mined


class MultipleLosses(NamedArguments):
    """The weighted sum of several losses of one batch.

    Args:
        losses: a list or a dict of losses, called alike.
        miners: None; or as the losses, a miner or None for each (of a dict, for some of them); its pairs go
            to that loss.
        weights: None, for 1; or as the losses.

    `losses`, `miners` and `weights` are kept as they came: lists where the losses are a list.

    Called as its losses are, `loss(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None, *,
    own=None)`; an `indices_tuple` goes to losses without a miner of their own. Losses of two arguments take
    what comes second for what they call it.

    Raises:
        ValueError: naming the argument and what was expected of it.
    """

    def __init__(
        self,
        losses: Sequence[nn.Module] | Mapping[str, nn.Module],
        miners: Sequence[nn.Module | None] | Mapping[str, nn.Module | None] | None = None,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__(**unknown)
        named = _named(losses, "losses")
        if not named:
            raise ValueError("losses: expected at least one loss, got none")
        for loss in named.values():
            expect_number(loss)
        rows = {name: of for name, loss in named.items() if (of := _rows(loss)) is not None}
        if len(set(rows.values())) > 1:
            raise ValueError(f"losses: expected rows of one kind to be added up, got {rows}")
        if wrong := [x for x in named.values() if not isinstance(x, nn.Module)]:
            raise ValueError(f"losses: expected modules, got {wrong[0]!r}")
        mine = _named(miners, "miners", named, some=True) if miners is not None else {}
        if wrong := [x for x in mine.values() if x is not None and not isinstance(x, nn.Module)]:
            raise ValueError(f"miners: expected modules or None, got {wrong[0]!r}")
        for x in mine.values():
            check.miner(x, "miners")
        given = _named(weights, "weights", named) if weights is not None else dict.fromkeys(named, 1)
        factors = {k: check.finite(given[k], f"weights[{k!r}]") for k in named}
        self.losses: nn.ModuleList | nn.ModuleDict
        self.miners: nn.ModuleList | nn.ModuleDict
        self.weights: list[float] | dict[str, float]
        if isinstance(losses, (Mapping, nn.ModuleDict)):
            self.losses, self.weights = nn.ModuleDict(named), factors
            self.miners = nn.ModuleDict({k: m for k, m in mine.items() if m is not None})
        else:
            self.losses, self.weights = nn.ModuleList(named.values()), list(factors.values())
            self.miners = nn.ModuleList([mine[k] for k in named] if mine else [])

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        own: int | Tensor | None = None,
    ) -> Tensor:
        given = (embeddings, labels, indices_tuple, ref_emb, ref_labels)
        further = {} if own is None else {"own": own}
        found = []
        for loss, weight, batch in self._batches(further, *given):
            found.append(weight * loss(*batch, **further))
        return sum(found[1:], found[0])

    def parts(self, *batch: Any, own: int | Tensor | None = None) -> list[Any]:
        """The parts of all losses, of the arguments of `forward`."""
        given = (*batch, *(None,) * 4)[:5]
        further = {} if own is None else {"own": own}
        return [
            weighted(part, weight)
            for loss, weight, its in self._batches(further, *given)
            for part in loss.parts(*its, **further)
        ]

    def _batches(
        self, further: dict[str, Any], embeddings: Any, labels: Any, pairs: Any, ref_emb: Any, ref_labels: Any
    ) -> Iterator[tuple[Any, float, tuple[Any, ...]]]:
        """Each loss, its weight, and what it is called with: what there is, as others than losses over
        samples take less."""
        losses: Any = self.losses
        weights: Any = self.weights
        for name in range(len(losses)) if isinstance(losses, nn.ModuleList) else losses:
            found = [embeddings, labels, pairs, ref_emb, ref_labels]
            miner: Any = self.miners._modules.get(str(name))
            if miner is not None:
                found[2] = mined(miner, embeddings, labels, ref_emb, ref_labels, further.get("own"))
            while found[-1] is None:
                found.pop()
            yield losses[name], weights[name], tuple(found)


def _rows(loss: object) -> str | None:
    """What the rows are of a loss that returns them; None of a number, or where nobody can tell."""
    if not isinstance(loss, Loss) or loss.reduction != "none" or loss._reducer is not None:
        return None
    described = loss.describes is not None or type(loss).description is not Loss.description
    return loss.description().rows if described else "samples"


def _named(
    given: object, name: str, like: Mapping[str, Any] | None = None, some: bool = False
) -> dict[str, Any]:
    """A list or a dict as a dict; like: whose names it must have; some: of a dict only some of them."""
    if isinstance(given, Mapping):
        found = dict(given)
    elif isinstance(given, (list, tuple, nn.ModuleList)):
        found = {str(k): x for k, x in enumerate(given)}
    elif isinstance(given, nn.ModuleDict):
        found = dict(given.items())
    else:
        raise ValueError(f"{name}: expected a list or a dict, got {type(given).__name__}")
    some = some and isinstance(given, (Mapping, nn.ModuleDict)) and set(found) <= set(like or ())
    if like is not None and set(found) != set(like) and not some:
        raise ValueError(f"{name}: expected one for each of {sorted(like)}, got {sorted(found)}")
    return found
