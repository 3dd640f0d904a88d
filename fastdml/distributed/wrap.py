"""A loss of a batch that is shared out among processes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import check
from ..engine.call import Call
from ..losses.base import Loss, Term, total
from ..losses.parts import called_as, expect_number, expect_parts
from ..losses.proxy.proxies import ProxyLoss
from ..losses.twotower.listed import ListedLoss, OfRows
from ..losses.twotower.paired import PairedLoss
from ..mining.pairs import mined
from ..wrappers.memory import CrossBatchMemory
from . import cost
from .arguments import Belonging, Set, Told, join, place, told
from .ranks import Ranks
from .shares import Shares
from .travelling import NotHere, Travelling, refused
from .words import spread

SCHEDULES = ("gather", "ring")
GRADIENTS = ("mean", "sum")


@dataclasses.dataclass(frozen=True)
class Shared:
    """A part of a loss, which all ranks evaluate together. within: see `Distributed.parts`."""

    part: Any
    shares: Shares
    name: str
    within: Any = None

    @torch.compiler.disable
    def evaluate(self) -> Tensor:
        with refused(self.name):
            found: Tensor = self.within((self.shares.value, self.part))
            return found


@dataclasses.dataclass(frozen=True)
class Together:
    """Several parts of a loss, of which some may be losses of rows and others one number."""

    parts: list[Shared]

    def evaluate(self) -> Tensor:
        values = [part.evaluate() for part in self.parts]
        if any(value.dim() for value in values):
            # A number is then in every row: its derivative is the sum over the rows of all ranks.
            ranks = self.parts[0].shares.ranks
            values = [value if value.dim() else spread(value, ranks) for value in values]
        return functools.reduce(torch.add, values)


class Distributed(nn.Module):
    """A loss of the rows of all ranks; made by `wrap`."""

    def __init__(
        self,
        loss: nn.Module,
        group: Any = None,
        schedule: str = "gather",
        gradient: str = "mean",
        miner: nn.Module | None = None,
    ) -> None:
        super().__init__()
        expect_parts(loss)
        expect_number(loss)
        if any(isinstance(module, Distributed) for module in loss.modules()):
            raise ValueError("loss: expected one that is not wrapped yet, got one of all ranks' rows")
        check.one_of(schedule, "schedule", SCHEDULES)
        check.one_of(gradient, "gradient", GRADIENTS)
        self.loss = loss
        self.miner = check.miner(miner)
        self.schedule = schedule
        self.gradient = gradient
        self.ranks = Ranks(group)

    @property
    def called_as(self) -> inspect.Signature:
        """What a call of it takes: what its loss does."""
        return called_as(self.loss)

    @torch.compiler.disable
    def forward(self, *batch: Any, **further: Any) -> Tensor:
        """The loss of the rows of all ranks, called as the loss itself is with this rank's."""
        return total(self.parts(*batch, **further))

    @torch.compiler.disable  # whoever asks for parts, as a memory does, may be compiled
    def parts(self, *batch: Any, **further: Any) -> list[Any]:
        """The parts of the loss of all rows."""
        given: dict[str, Tensor] = {}
        for name, parameter in self.loss.named_parameters():
            if self.gradient == "mean" and parameter.requires_grad:
                given[f"loss.{name}"] = spread(parameter, self.ranks)
        # Whatever reads a parameter, and whenever: a distance, a regularizer or a user's `compute_loss` do so
        # only when a part is evaluated.
        within = functools.partial(torch.func.functional_call, _Body(self.loss), given)
        found: list[Shared] = within((self._parts, batch, further))
        found = [dataclasses.replace(shared, within=within) for shared in found]
        return found if len(found) == 1 else [Together(found)]

    def _parts(self, batch: tuple[Any, ...], further: dict[str, Any]) -> list[Any]:
        signature, failure = called_as(self.loss), ""
        try:
            bound = signature.bind(*batch, **further)
        except TypeError as error:  # the others must not wait for this rank
            bound, failure = signature.bind_partial(), str(error)
        arguments = _named(bound)
        ref = arguments.get("ref_emb")
        # (Where own copies are said to stand, they stand among other candidates.)
        same = ref is not None and ref is arguments.get("embeddings") and "own" not in arguments
        if same:
            del arguments["ref_emb"]
        ranks = self.ranks
        factor = float(ranks.size) if self.gradient == "mean" else 1.0
        if self.miner is not None and "indices_tuple" in arguments:
            failure = failure or "indices_tuple: expected None with a miner, got pairs"
        belonging = Belonging.of(signature, arguments)
        if isinstance(self.loss, CrossBatchMemory):
            belonging = dataclasses.replace(belonging, memory=True)
        known = told(ranks, arguments, factor, self._draws(), failure, belonging)
        bound.arguments.update(place(ranks, arguments, known, belonging))
        if self.schedule == "gather" and self._may_compare_rows_alone(bound.arguments):
            # Of embeddings that are only compared, those that are no candidates need not be gathered. What
            # comes before a call computes with them when it is evaluated.
            with contextlib.suppress(NotHere):
                found = self._made(bound, known, same, travels=True)
                # (A reducer object would compute with them later.)
                if all(_alone(shared.part) for shared in found):
                    return found
        return self._made(bound, known, same, travels=self.schedule == "ring")

    def _may_compare_rows_alone(self, arguments: Mapping[str, Any]) -> bool:
        listed = arguments.get("indices_tuple") is not None or self.miner is not None
        return isinstance(self.loss, (ProxyLoss, PairedLoss, ListedLoss)) and not listed

    def _made(
        self, bound: inspect.BoundArguments, known: Told, same: bool, travels: bool
    ) -> list[Any]:
        """The parts of the loss; travels: made of embeddings that are not here."""
        ranks = self.ranks
        whole = {
            name: Travelling(own) if travels and _embeds(name, own) else join(own, ranks)
            for name, own in known.sets.items()
        }
        _put(bound, whole)
        if same:
            bound.arguments["ref_emb"] = whole["embeddings"]
        ring = self.schedule == "ring"
        shares = Shares(ranks, [(whole[name], own) for name, own in known.sets.items()], ring)
        name = type(self.loss).__name__
        with self._same_draws(known), refused(name) if ring else contextlib.nullcontext():
            if self.miner is not None:
                names = ("embeddings", "labels", "ref_emb", "ref_labels", "own")
                given: Any = map(bound.arguments.get, names)
                bound.arguments["indices_tuple"] = mined(self.miner, *given)
            bound.apply_defaults()
            parts = self.loss.parts(*bound.args, **bound.kwargs)  # type: ignore[operator]
        return [Shared(part, shares, name) for part in parts]

    def explained(self, sizes: Any, backend: str | None, device: torch.device) -> Any:
        """What one rank runs, and the memory that it takes, with this many rows of its own: `explain`."""
        return cost.explained(self, sizes, backend, device)

    @property
    def _draws_from_torch(self) -> bool:
        miner = [] if self.miner is None else [self.miner]
        return any(map(_draws_from_torch, (*self.loss.modules(), *miner)))

    def _draws(self) -> int:
        """Where the loss draws from torch's generator: a number by which all ranks draw alike."""
        return int(torch.randint(1 << 62, (), device="cpu")) if self._draws_from_torch else 0

    def _same_draws(self, known: Told) -> Any:
        device = next(iter(known.sets.values())).local.device
        return _seeded(known.draws, device) if self._draws_from_torch else contextlib.nullcontext()

    def extra_repr(self) -> str:
        return f"schedule={self.schedule!r}, gradient={self.gradient!r}"


def _rest(bound: inspect.BoundArguments) -> str | None:
    """The name of the arguments of which there may be any number, by place."""
    several = inspect.Parameter.VAR_POSITIONAL
    return next((p.name for p in bound.signature.parameters.values() if p.kind is several), None)


def _named(bound: inspect.BoundArguments) -> dict[str, Any]:
    """The arguments that were given, each under a name of its own."""
    found = {k: v for k, v in bound.arguments.items() if v is not None}
    rest = _rest(bound)
    more = found.pop(rest, ()) if rest is not None else ()
    return found | {f"{rest} {k}": v for k, v in enumerate(more)}


def _put(bound: inspect.BoundArguments, values: Mapping[str, Any]) -> None:
    """Gives arguments the values under the names of `_named`."""
    bound.arguments.update({k: v for k, v in values.items() if k in bound.signature.parameters})
    rest = _rest(bound)
    if rest is not None and rest in bound.arguments:
        given = enumerate(bound.arguments[rest])
        bound.arguments[rest] = tuple(values.get(f"{rest} {k}", x) for k, x in given)


def _alone(part: object) -> bool:
    """Whether nothing of a part but the comparison itself computes with embeddings."""
    return isinstance(part, (Call, OfRows, Term)) and getattr(part, "before", None) is None


def _embeds(name: str, own: Set) -> bool:
    """Whether an argument is one of embeddings, rather than numbers of the rows."""
    return own.local.is_floating_point() and own.local.dim() > 1 and name != "hard_weights"


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's generators of the CPU and of a device as one seed leaves them, and afterwards as they were.

    (`torch.random.fork_rng` and `torch.manual_seed` reach for all devices of the machine.)
    """
    drawn_from = [torch.default_generator]
    if device.type == "cuda":
        drawn_from.append(torch.cuda.default_generators[device.index])
    states = [g.get_state() for g in drawn_from]
    try:
        for g in drawn_from:
            g.manual_seed(seed)
        yield
    finally:
        for g, state in zip(drawn_from, states, strict=True):
            g.set_state(state)


def _draws_from_torch(module: object) -> bool:
    """Whether a loss draws from torch's generator; of others' miners nobody knows."""
    if isinstance(module, Loss):
        return "generator" in module.inputs or module.in_torch is not None
    return type(module).__module__.partition(".")[0] not in (__name__.partition(".")[0], "torch")


class _Body(nn.Module):
    """What calls a function while a loss has other parameters in place of its own."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, function: Callable[..., Any], *given: Any) -> Any:
        return function(*given)


def wrap(
    loss: nn.Module,
    group: Any = None,
    schedule: str = "gather",
    gradient: str = "mean",
    miner: nn.Module | None = None,
) -> Distributed:
    """A loss whose batch is that of all processes together.

        loss = fastdml.distributed.wrap(MultiSimilarityLoss())
        loss(network(images), labels).backward()        # this rank's images; the loss of all

    Every rank calls it with its own rows, as it would call the loss: unequally many, or none. The value is
    that of the loss of all ranks' rows in the order of ranks, on every rank; the gradient of a rank's
    embeddings is that of its own rows. A sample's copy among the candidates is known by its place.

    Args:
        loss: a loss of `fastdml.losses`, one made by `row_loss`, or a wrapper of such
            (`CrossBatchMemory`, `SelfSupervisedLoss`, `MultipleLosses`): not wrapped yet, and a number.
        group: a process group of torch.distributed; None: all processes. Without torch.distributed the
            loss is that of this process.
        schedule: "gather": every rank gets all embeddings, and compares its own rows with them. "ring":
            no rank ever has them all; blocks of candidates travel. For losses whose row can be found
            block by block (docs/distributed.md); others are refused.
        gradient: whose convention gradients follow. "mean": the mean of the ranks' gradients is the true
            one, as DDP and FSDP take it. "sum": their sum is.
            Parameters of the loss (proxies, scales) have the whole gradient on every rank with "mean",
            in DDP or not, and their rank's part with "sum".
        miner: called with the rows of all ranks; its pairs go to the loss, whose call then takes none.

    Labels, a teacher's embeddings and other numbers of the rows are told to all ranks. Index tuples and
    `own` name a rank's own rows and candidates (of a memory of all batches, its rows); a function in place
    of index tuples sees places among all rows. `ref_emb` are a rank's own candidates, compared with the
    rows of all ranks. With reduction="none" a rank gets the losses of its own rows (of proxies: all).

    All ranks call the loss equally often, and run backward with the same upstream gradient.

    Raises:
        ValueError: naming the argument and what was expected of it.
        RankError: on all ranks, where one has other shapes, types or arguments than the others; where one
            has ended or takes no part within the group's timeout, on the others. It names the rank.
    """
    return Distributed(loss, group, schedule, gradient, miner)
