"""Bring your own loss."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..engine import check
from ..engine.call import statistic_type
from ..engine.loss import RowLoss, Rows
from ..engine.registry import remember
from ..engine.similarity import SIMILARITIES
from ..kernels.tile import TileLoss
from ..language.described import DescribedLoss, Learnt, is_number
from .base import SampleLoss, as_number, total
from .teacher.relations import check_teacher

__all__ = ["row_loss"]

TorchFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A user's tile functor, as the executor asks for it."""

    functor: TileLoss
    values: tuple[float, ...]

    def tile(self, loss: RowLoss) -> TileLoss:
        return self.functor

    def parameters(self, loss: RowLoss) -> tuple[float, ...]:
        return self.values


def _check_tile(tile: TileLoss | None, parameters: Sequence[float]) -> tuple[float, ...]:
    if tile is None:
        if len(parameters):
            raise ValueError("tile_parameters: expected none without a tile")
        return ()
    if not isinstance(tile, TileLoss):
        raise ValueError(f"tile: expected a fastdml.kernels.tile.TileLoss, got {tile!r}")
    further = (tile.inputs, tile.column_values, tile.scalars, tile.outputs - 1)
    if any(further) or tile.teacher or tile.groups:
        raise ValueError(
            "tile: expected a function of the row alone: one output; no inputs, column values, learnable "
            "scalars, teacher or groups"
        )
    return tuple(check.finite(value, "tile_parameters") for value in parameters)


@dataclasses.dataclass(frozen=True, eq=False)
class UserLoss(RowLoss):
    """A user's function as a description; equal only to itself (functions need not be hashable).

    floor: rows below 0 are 0.
    """

    fn: TorchFunction
    tile: TileLoss | None = None
    tile_parameters: tuple[float, ...] = ()
    floor: bool = False
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        if self.floor and self.tile is not None:
            raise ValueError("reduction: expected 'mean', 'sum' or 'none' with a tile, got 'nonzero'")

    @property
    def name(self) -> str:  # type: ignore[override]
        return getattr(self.fn, "__name__", type(self.fn).__name__)

    @property
    def tiles(self) -> Tiles | None:  # type: ignore[override]
        return None if self.tile is None else Tiles(self.tile, self.tile_parameters)

    def spec(self, rows: Rows) -> Tensor:
        given: list[Tensor] = [rows.s, rows.positive, rows.negative]
        if self._writes(rows):  # into copies: the block is read again
            given = [x.clone() for x in given]
        losses = self.fn(*given)
        expected = (rows.s.shape[0],)
        if not isinstance(losses, Tensor) or tuple(losses.shape) != expected:
            got = check.seen(losses)
            raise ValueError(
                f"fn: expected one loss per row, shape {expected}, from {self.name!r}, got {got}"
            )
        return (losses.clamp(min=0) if self.floor else losses).to(rows.s.dtype)

    def _writes(self, rows: Rows) -> bool:
        """Whether the function writes into what it is given, as one row tells. ValueError if it reads a
        parameter: only embeddings get a gradient, and it would miss its own."""
        copies = [x.detach()[:1].clone() for x in (rows.s, rows.positive, rows.negative)]
        tells = not any(x.is_inference() for x in copies)
        before = [x._version for x in copies] if tells else []
        check.reads_no_parameter(
            self.fn(*copies),
            self.name,
            "expected a function of s, positive and negative (detach that tensor)",
        )
        return not tells or [x._version for x in copies] != before


def _now(module: Any) -> Any:
    """The description of a module, whose similarity or reduction may have been set since it was made: where a
    mean is over rows above 0, those below take no part in it."""
    found, floor = module._description, module.reduction == "nonzero"
    if (found.similarity, found.floor) != (module.similarity, floor):
        module._description = dataclasses.replace(found, similarity=module.similarity, floor=floor)
        remember(module._description)
    return module._description


class UserRowLoss(SampleLoss):
    """Module made by `row_loss` of a function of tensors."""

    def __init__(
        self,
        fn: TorchFunction,
        similarity: str | None = None,
        *,
        tile: TileLoss | None = None,
        tile_parameters: Sequence[float] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(similarity=similarity, **kwargs)
        parameters = _check_tile(tile, tile_parameters)
        self._description: Any = UserLoss(fn, tile, parameters, similarity=self.similarity)
        remember(self.description())  # before a graph is compiled

    def description(self) -> UserLoss:
        return _now(self)  # type: ignore[no-any-return]


class DescribedRowLoss(SampleLoss):
    """Module made by `row_loss` of a function of the row language."""

    def __init__(
        self,
        fn: Callable[..., Any],
        similarity: str | None = None,
        *,
        parameters: Mapping[str, Any] | None = None,
        teacher: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(similarity=similarity, **kwargs)
        if teacher is not None and teacher not in SIMILARITIES:
            raise ValueError(f"teacher: expected one of {sorted(SIMILARITIES)}, got {teacher!r}")
        self._scalars: list[str] = []
        self._plain: list[str] = []  # the other arguments, but for those with the name of something else
        arguments = dict(parameters or {})
        _expect_arguments(fn, arguments)
        for name, value in arguments.items():
            arguments[name] = _argument(name, value)
            if isinstance(value, Tensor):
                self._keep(name, value)
                arguments[name] = Learnt(len(self._scalars))
                self._scalars.append(name)
            elif not hasattr(self, name):
                self.__dict__[name] = arguments[name]
                self._plain.append(name)
        self._description: Any = DescribedLoss(fn, arguments, teacher, similarity=self.similarity)
        remember(self.description())
        self._check_inputs(self._description)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_scalars", ()):
            if not isinstance(value, Tensor):
                raise ValueError(f"{name}: expected a tensor of one number, as it was before, got {value!r}")
            check.scalar(value, name, value)
        if name in self.__dict__.get("_plain", ()):
            self._set_plain(name, value)
        else:
            super().__setattr__(name, value)

    def _set_plain(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            raise ValueError(f"{name}: expected no tensor, as it was none before, got one")
        value = _argument(name, value)
        found = self._description
        old, arguments = found.arguments[name], {**found.arguments, name: value}
        made = dataclasses.replace(found, arguments=arguments)
        if is_number(old) and is_number(value) and (old > 0) == (value > 0):
            # What is traced is the same: a schedule may set a number at every step.
            made.__dict__["forms"] = found.forms
        else:
            self._check_inputs(made)
        self._description, self.__dict__[name] = made, value
        remember(made)

    def _keep(self, name: str, value: Tensor) -> None:
        if hasattr(self, name):
            raise ValueError(f"parameters: a loss has a {name!r} already; expected another name")
        if isinstance(value, nn.Parameter):
            self.register_parameter(name, value)
        else:
            setattr(self, name, value)

    def _check_inputs(self, description: DescribedLoss) -> None:
        """ValueError where the function reads what no argument hands in."""
        found = description.forms.program
        if isinstance(found, str):
            return
        if found.reads("teacher") and description.taught is None:
            raise ValueError(
                "teacher: expected the similarity of the teacher that fn reads, got None"
            )
        for op in ("row_value", "column"):
            if found.reads(op):
                raise ValueError(f"fn: expected no p.{op}, which row_loss has nothing for")
        if found.count("scalar") > len(self._scalars):
            raise ValueError(
                "fn: expected no p.scalar, which row_loss has nothing for; a tensor of one number among "
                "the parameters is read at every call"
            )

    def description(self) -> DescribedLoss:
        return _now(self)  # type: ignore[no-any-return]

    def calls(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        own: int | Tensor | None = None,
        teacher: Tensor | None = None,
        ref_teacher: Tensor | None = None,
    ) -> list[Any]:
        fields: dict[str, Any] = {}
        if (teacher is None) != (self._description.taught is None):
            expected = "embeddings of the teacher" if teacher is None else "None"
            raise ValueError(f"teacher: expected {expected}, got {type(teacher).__name__}")
        if ref_teacher is not None and (teacher is None or ref_emb is None):
            raise ValueError("ref_teacher: expected None without a teacher and ref_emb, got some")
        if teacher is not None:
            check_teacher(embeddings, teacher, "teacher", self.validate)
            theirs = [teacher.detach()]
            if ref_emb is not None and ref_emb is not embeddings:
                if ref_teacher is None:
                    raise ValueError("ref_teacher: expected the teacher's of ref_emb, got None")
                check_teacher(ref_emb, ref_teacher, "ref_teacher", self.validate)
                theirs.append(ref_teacher.detach())
            fields["teacher"] = tuple(theirs)
            if labels is None and indices_tuple is None and ref_emb is None:
                labels = torch.zeros(
                    embeddings.shape[0], dtype=torch.int64, device=embeddings.device
                )
        description, batch = self.resolved(
            embeddings, labels, indices_tuple, ref_emb, ref_labels, own=own
        )
        if self._scalars:
            kind = statistic_type(embeddings, batch.ref_emb)
            values = [
                getattr(self, n).to(embeddings.device, kind).reshape(()) for n in self._scalars
            ]
            fields["scalars"] = torch.stack(values)
        return [self.sample_call(description, batch, **fields)]

    def forward(self, *batch: Any, **further: Any) -> Tensor:
        """The loss, of the arguments of `SampleLoss.forward`, and where fn reads p.teacher of
        teacher [B, any dimension] (and ref_teacher of ref_emb), embeddings that get no gradient."""
        return total(self.parts(*batch, **further))


def _signature(fn: Callable[..., Any]) -> inspect.Signature | None:
    """What fn takes, of a module its `forward`; None: it does not tell."""
    try:
        return inspect.signature(fn.forward if isinstance(fn, nn.Module) else fn)
    except (TypeError, ValueError):
        return None


def _expect_arguments(fn: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """ValueError unless fn can be called with (p, **arguments)."""
    told = _signature(fn)
    assert told is not None
    try:
        told.bind(None, **arguments)
    except TypeError as error:
        raise ValueError(f"parameters: expected those of fn{told}: {error}") from None


def _argument(name: str, value: Any) -> Any:
    """An argument of fn: numbers are Python's own, and finite; a tensor is one number."""
    if isinstance(value, Tensor):
        return check.scalar(value, f"parameters[{name!r}]", value)
    value = as_number(value)
    if not is_number(value):
        return value
    found = check.finite(value, f"parameters[{name!r}]")
    return value if isinstance(value, int) else found


def _is_described(fn: Callable[..., Any], parameters: Mapping[str, Any] | None) -> bool:
    """Whether fn is a function of the row (its other arguments are parameters), not of tensors."""
    told = _signature(fn)
    if told is None:
        return False
    empty = inspect.Parameter.empty
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = parameters or {}
    found = (p for p in told.parameters.values() if p.kind in kinds and p.name not in given)
    needed = [p for p in found if p.default is empty]
    return len(needed) == 1 or (bool(given) and not _takes_three(fn))


def _takes_three(fn: Callable[..., Any]) -> bool:
    """Whether fn can be called with (s, positive, negative), as far as it tells."""
    told = _signature(fn)
    try:
        if told is not None:
            told.bind(None, None, None)
    except TypeError:
        return False
    return True


def row_loss(
    fn: Callable[..., Any],
    similarity: str | None = None,
    *,
    parameters: Mapping[str, Any] | None = None,
    teacher: str | None = None,
    tile: TileLoss | None = None,
    tile_parameters: Sequence[float] = (),
    **kwargs: Any,
) -> UserRowLoss | DescribedRowLoss:
    """Turns a function of one row into a loss in linear memory, on any device.

    Args:
        fn: `fn(p, **parameters)` -> a number of the row, in the words of `fastdml.language`
            (docs/language.md): p.s are similarities, p.positive, p.negative and p.pair masks. It is traced,
            differentiated and, on a CPU with a C++ compiler, compiled at its first use (some seconds,
            then kept in a folder: FASTDML_CACHE, else fastdml in the user's cache). With other functions
            of torch, or without a compiler, it runs block by block as it is: `fastdml.explain` says which
            word stopped it.

            Or `fn(s, positive, negative)` -> [R], differentiable torch on the similarities [R, N] of R
            anchors and all N candidates and bool masks [R, N]. A sample's pair with itself is in neither
            mask: use the masks. Only the embeddings get a gradient: a parameter that it reads must be
            detached (ValueError).

            Either is called once per block of rows and must treat rows independently; rows may have no
            positives or no negatives.
        similarity: what a pair is compared by, "cosine" unless `distance=` is given: see `losses.base.Loss`.
        parameters: keyword arguments of fn. Numbers may differ between losses without compiling again;
            a tensor of one number is read at every call and gets a gradient if it wants one (an
            `nn.Parameter` becomes one of the module); flags and names choose what is traced. All are
            attributes of the module that may be set. What fn brings along otherwise is as it was traced.
        teacher: the similarity of p.teacher, where fn reads that: the loss then takes `teacher=`,
            embeddings [B, any dimension] of the same samples.
        tile: the same loss as Triton functions of a pair, for fn of tensors, which then run on CUDA (or
            wherever backend="triton" may): docs/triton-functors.md. Everywhere else, and for index
            tuples and float64, fn runs.
        tile_parameters: numbers that those functions read as p.
        **kwargs: reduction, backend, validate: see `SampleLoss`. With "nonzero" rows below 0 are as those
            of 0.

    Returns:
        A module `loss(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None)` with
        exact gradients, never holding more than a block of the matrix.

    Raises:
        ValueError: naming the argument and what was expected of it.

    Example:
        >>> from fastdml.language import log_sum_exp, relu
        >>> def lifted(p, margin):
        ...     return relu(log_sum_exp(p.s + margin, where=p.negative)
        ...                 + log_sum_exp(-p.s, where=p.positive))
        >>> loss = fastdml.row_loss(lifted, parameters={"margin": 0.5})
        >>> loss(embeddings, labels).backward()
    """
    if not callable(fn):
        raise ValueError(f"fn: expected a function of p, or of (s, positive, negative), got {fn!r}")
    if not _is_described(fn, parameters):
        for value, name in ((parameters, "parameters"), (teacher, "teacher")):
            if value is not None:
                raise ValueError(f"{name}: expected None for a function of (s, positive, negative)")
        if not _takes_three(fn):
            raise ValueError(
                "fn: expected a function of p, or of (s, positive, negative), got one of "
                f"{_signature(fn)}"
            )
        return UserRowLoss(fn, similarity, tile=tile, tile_parameters=tile_parameters, **kwargs)
    if tile is not None or len(tile_parameters):
        raise ValueError("tile: expected None for a function of the row language, which is printed")
    return DescribedRowLoss(fn, similarity, parameters=parameters, teacher=teacher, **kwargs)
