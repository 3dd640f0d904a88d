"""What all losses share, and what those over samples do: the call of pytorch-metric-learning's losses."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ..distances import BaseDistance, distance_of, settings_of, similarity_of
from ..engine import check
from ..engine.arguments import NamedArguments, called_with, constructor
from ..engine.call import Call, statistic_type
from ..engine.dispatch import check_backend
from ..engine.loss import Learnt, RowLoss
from ..engine.peer import SeenAsPeer
from ..engine.registry import FIELDS, interned
from ..mining.batch import Batch, resolved
from ..mining.sample_weights import sample_weights
from ..reducers import (
    AvgNonZeroReducer,
    BaseReducer,
    DivisorReducer,
    DoNothingReducer,
    MeanReducer,
    MultipleReducers,
    SumReducer,
    native,
)
from .reduced import Reduced
from .reduced import total_of as total
from .representation import ExactNumbers, shown

Regularizer = Callable[[Tensor], Tensor]


class Part(Protocol):
    """Something that is evaluated as part of a loss other than a call of the engine."""

    def evaluate(self) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of a loss that compares no pairs: `function` of `arguments`, times weight."""

    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    weight: float | Tensor = 1.0

    def evaluate(self) -> Tensor:
        return self.weight * self.function(*self.arguments)


# The similarities that are larger for what is more alike: of losses that a distance would turn around.
PRODUCTS = ("cosine", "dot", "projection")
# Of losses whose rows may be below 0: a mean over those above would be of others than are active.
SIGNED = ("mean", "sum", "none")
_REDUCERS: dict[str, type[BaseReducer]] = {
    "mean": MeanReducer,
    "sum": SumReducer,
    "nonzero": AvgNonZeroReducer,
    "none": DoNothingReducer,
}
_BY_NAME = {kind.__name__: kind for kind in (*_REDUCERS.values(), DivisorReducer)}


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A part of a loss, times weight."""

    part: Part
    weight: float

    def evaluate(self) -> Tensor:
        return self.weight * self.part.evaluate()


def weighted(part: Call | Part, weight: float) -> Call | Part:
    """A part of a loss times a number."""
    if isinstance(part, Call):
        return part.replace(weight=part.weight * weight)
    return Weighted(part, weight)


def as_number(value: Any) -> Any:
    """A tensor or array of one number as that, an integer that torch cannot hold as a float; others as they
    are."""
    if not isinstance(value, (Tensor, int)):
        return value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(value, Tensor):
        constant = value.numel() == 1 and not value.requires_grad and not value.is_complex()
        return value.item() if constant else value
    return float(value) if 1 << 62 < abs(value) < 1 << 127 else value


def _check_one_number(value: Any, name: str) -> None:
    if value.numel() != 1 or not value.is_floating_point():
        raise ValueError(
            f"{name}: expected a number or a tensor of one, got {value.dtype} {tuple(value.shape)}"
        )


def _seeing_learnt(description: Callable[[Any], RowLoss]) -> Callable[[Any], RowLoss]:
    """A module's `description`, for which arguments that are tensors are `Learnt`."""

    @functools.wraps(description)
    def seeing(self: Any) -> RowLoss:
        names = self.tensors
        return description(_learning(self, names) if names else self)

    return seeing


def _learning(loss: Any, names: Sequence[str]) -> Any:
    """A stand-in for the module, which other threads may be reading, with `Learnt` for the arguments of these
    names; of the class before parametrizations, whose properties would stand in their places."""
    own = (k for k in type(loss).__mro__ if not any(isinstance(getattr(k, n, None), property) for n in names))
    found: Any = object.__new__(next(own))
    found.__dict__.update(loss.__dict__, **{name: Learnt(k) for k, name in enumerate(names)})
    return found


class Loss(SeenAsPeer, NamedArguments, ExactNumbers):
    """What all losses share.

    A loss makes calls of the engine (`calls`); its value is their sum. So whatever wraps a loss can take
    its calls and transform them before they are evaluated.

    Keyword arguments of every loss:
        reduction: "mean" over rows, "sum", "nonzero" (mean over the rows with a loss above 0) or
            "none" ([B] row losses).
        similarity: what a pair is compared by: "cosine", "dot", "projection" (the product with the
            normalised candidate), "distance" and "squared_distance" (Euclidean, of normalised
            embeddings), "raw_distance" and "raw_squared_distance" (not normalised). Most losses are
            defined on "cosine", their default.
        backend: "auto", "native", "chunked" or "dense" (see `fastdml.explain`).
        validate: also look for NaN and infinity, which costs a pass and, on CUDA, a synchronisation. In
            a compiled graph, which cannot raise a ValueError of values, it is a RuntimeError as it runs.
        distance: an object of fastdml.distances or of pytorch-metric-learning, or a user's module, in
            place of similarity: kept as `loss.distance`. What is not made of products runs in torch.
        reducer: an object of fastdml.reducers or of pytorch-metric-learning, or a user's module, in place
            of reduction: kept as `loss.reducer`. It may also be the name of a reduction.
        embedding_regularizer: called with the embeddings [B, D], for a scalar that is added to the loss
            times `embedding_reg_weight`.
        collect_stats: taken for pytorch-metric-learning's sake; nothing is collected.
    """

    peer = ("pytorch_metric_learning.losses", "BaseMetricLossFunction")
    # The name of the functional form, which `functional` makes of the module; None: there is none.
    function: ClassVar[str | None] = None
    # What describes the loss, where its fields are called as the module's arguments are.
    describes: ClassVar[type[RowLoss] | None] = None
    # Arguments of the functional form that are the module's own state (keywords of `calls`), each with
    # the constructor's arguments in whose place it stands.
    inputs: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # Their defaults in the functional form, where that is not the module's own state.
    input_defaults: ClassVar[Mapping[str, Any]] = {}
    # Positional arguments of the functional form; empty: those of `calls`.
    positional: ClassVar[tuple[str, ...]] = ()
    # Arguments of the constructor that may be parameters of the module.
    learnt: ClassVar[tuple[str, ...]] = ()
    # Those that may be a tensor of one number, which is read at every call and may want a gradient: fields of
    # a description in the row language.
    open: ClassVar[tuple[str, ...]] = ()
    # What `calls` takes, in order, where it says so.
    batch_names: ClassVar[tuple[str, ...]] = ("embeddings", "labels")
    # A loss that passes its call on whole says in `calls` what it takes.
    entries = ("forward", "calls")
    default_similarity: ClassVar[str] = "cosine"
    # The similarities a loss is defined on; empty: all.
    similarities: ClassVar[tuple[str, ...]] = ()
    # Distance objects that say another similarity of this loss than elsewhere, by their names.
    distances: ClassVar[Mapping[str, str]] = {}
    # What reduction="mean" is the mean over.
    mean_over: ClassVar[str] = "samples"
    reductions: ClassVar[tuple[str, ...]] = ("mean", "sum", "nonzero", "none")
    # Whether row i of one set belongs to row i of another, unless a call says otherwise.
    paired: ClassVar[bool] = False
    # Reducer objects that are a reduction of the loss, by the names of their classes; with others the loss's
    # elements are reduced by torch.
    reducers: ClassVar[Mapping[str, str]] = {
        "MeanReducer": "mean",
        "SumReducer": "sum",
        "AvgNonZeroReducer": "nonzero",
    }
    # What runs, of a loss that is no function of rows of similarities: torch evaluates it, and it has no
    # description. None of others.
    in_torch: ClassVar[str | None] = None
    # The reduction, whatever the reducer object, of a loss that is one number there.
    one_number: ClassVar[str | None] = None
    # The names of its parts, which MultipleReducers asks for.
    part_names: ClassVar[tuple[str, ...]] = ("loss",)
    # The distance object that the similarity was named by, and how the loss's object was set when taken.
    _named: BaseDistance | None = None
    _settings: tuple[Any, ...] | None = None
    # How many classes' labels, from 0 on, the loss takes; None: any.
    num_classes: int | None = None

    def __init__(
        self,
        *,
        reduction: str = "mean",
        similarity: str | None = None,
        backend: str = "auto",
        validate: bool = False,
        distance: object = None,
        reducer: object = None,
        embedding_regularizer: Regularizer | None = None,
        embedding_reg_weight: float = 1,
        **unknown: Any,
    ) -> None:
        super().__init__(**unknown)
        kind = type(self)
        own = kind.get_default_distance is not Loss.get_default_distance
        if own and distance is None and similarity is None:
            distance = self.get_default_distance()
        own = kind.get_default_reducer is not Loss.get_default_reducer and reducer is None
        if own and reduction == constructor(kind)["reduction"].default:
            reducer = self.get_default_reducer()
        if distance is not None:
            if similarity is not None:
                raise ValueError("distance: expected None with similarity, which says the same")
            similarity = self._similarity_of(distance)
        self._reducer: nn.Module | None = None
        if reducer is not None:
            reduction = self._reduction_of(reducer)
        self.similarity = self.default_similarity if similarity is None else similarity
        self._keep_distance(distance)
        if embedding_regularizer is not None:
            self._expect_scalar(reduction)
        self._set_reduction(reduction, self._reducer)
        self.backend = backend
        self.validate = validate
        self.embedding_regularizer = check.function(embedding_regularizer, "embedding_regularizer")
        self.embedding_reg_weight = check.finite(embedding_reg_weight, "embedding_reg_weight")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        told = called_with(cls.calls)
        if told is not None and "embeddings" in told[0]:
            cls.batch_names = told[0]
        if "description" in vars(cls):
            cls.description = _seeing_learnt(cls.description)  # type: ignore[method-assign, assignment]

    def _reduction_of(self, reducer: object) -> str:
        """The reduction that a reducer object is, or that of the elements it takes."""
        if isinstance(reducer, str):
            return check.one_of(reducer, "reducer", self.reductions)
        if not isinstance(reducer, nn.Module):
            raise ValueError(
                f"reducer: expected an object of fastdml.reducers or a reduction, got {reducer!r}"
            )
        self._reducer = reducer
        known = native(reducer)
        if self.one_number is not None:
            self._is_reduction = not isinstance(known, DoNothingReducer)
            return self.one_number
        named = self.reducers.get(type(known).__name__)
        if named in self.reductions:
            self._is_reduction = True
            return named
        self._is_reduction = False
        return "none" if "none" in self.reductions else self.reductions[0]

    def _similarity_of(self, distance: object) -> str:
        """The similarity of this loss that a distance object is; a name is one as it stands."""
        name = similarity_of(distance, type(self).__name__)
        name = self.distances.get(name, name) if isinstance(distance, nn.Module) else name
        check.among(name, "distance", self.similarities)
        return name

    def _distance_of(self, similarity: str) -> BaseDistance:
        """The distance object that a similarity of this loss is."""
        names = {own: name for name, own in self.distances.items()}
        return distance_of(names.get(similarity, similarity))

    def get_default_distance(self) -> Any:
        """The distance object where none is given: a subclass may say another one."""
        return self._distance_of(self.default_similarity)

    def get_default_reducer(self) -> Any:
        """The reducer object where neither that nor a reduction is given: a subclass may say another one."""
        return Loss._reducer_of(self, constructor(type(self))["reduction"].default)

    def _expect_scalar(self, reduction: str) -> None:
        if reduction == "none" and self._reducer is None:
            raise ValueError("reduction: regularizers need a scalar loss; expected another kind")

    @property
    def distance(self) -> Any:
        """What pairs are compared by, as an object."""
        if self._distance is None and self._named is None:
            self._keep_distance(None, self._distance_of(self.similarity))
        return self._named if self._distance is None else self._distance

    @distance.setter
    def distance(self, value: Any) -> None:
        self.similarity = self._similarity_of(value)
        self._keep_distance(value)

    def _keep_distance(self, given: object, named: BaseDistance | None = None) -> None:
        """Keeps a distance object that was given, or that the similarity was named by, and how it is set."""
        self._distance = given if isinstance(given, nn.Module) else None
        self.__dict__["_named"] = named  # no module of the loss's
        kept = named if self._distance is None else self._distance
        self._settings = None if kept is None else settings_of(kept)

    def _heed_distance(self) -> None:
        """Takes its distance object anew where that has been set otherwise since."""
        if self._settings is not None and settings_of(self.distance) != self._settings:
            self.distance = self.distance

    @property
    def reducer(self) -> Any:
        """What makes the loss of its elements, as an object."""
        given = self._reducer if self._reducer is not None else self._reducer_of(self.reduction)
        if len(self.part_names) == 1 or isinstance(native(given), (MultipleReducers, DoNothingReducer)):
            return given
        return MultipleReducers({name: given for name in self.part_names})

    @reducer.setter
    def reducer(self, value: Any) -> None:
        self._set_reduction(self._reduction_of(value), value)

    def _set_reduction(self, reduction: str, reducer: object) -> None:
        """reducer: the object that it stands for, if there is one."""
        self.reduction = reduction
        self._reducer = reducer if isinstance(reducer, nn.Module) else None

    def _reducer_of(self, reduction: str) -> BaseReducer:
        """The object that is this reduction of the loss."""
        names = (name for name, known in self.reducers.items() if known == reduction)
        name = next(names, None)
        return _REDUCERS[reduction]() if name is None else _BY_NAME[name]()

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(getattr(type(self), name, None), property):  # a module would be registered
            return object.__setattr__(self, name, value)
        # An argument is kept under its name: flags are flags, and numbers Python's own.
        if name in self.flags and name not in self.learnt:
            check.flag(value, name)
        elif name == "reduction":
            check.reduction(value)
            check.among(value, name, self.reductions)
            self._reducer = None  # whoever sets one has another object for it
        elif name == "similarity":
            check.similarity(value)
            check.among(value, name, self.similarities)
            self._keep_distance(None)
        elif name == "backend":
            check_backend(value)
        elif name in self.arguments and not isinstance(value, (float, str, nn.Module)):
            held = name in self._buffers or name in self._parameters
            value = value if held else as_number(value)
            if isinstance(value, Tensor) and name in self.open:
                _check_one_number(value, name)
        self.__dict__.pop("_described", None)
        super().__setattr__(name, value)

    def described_once(self) -> RowLoss:
        """The description, made anew only where an attribute has been set since: a small batch feels it."""
        if torch.compiler.is_compiling():
            return self.description()
        found: RowLoss | None = self.__dict__.get("_described")
        if found is None:
            found = self.__dict__["_described"] = interned(self.description())
        return found

    def __getstate__(self) -> dict[str, Any]:
        # What a description has found of itself, functions among it, is found anew by a copy.
        return {name: value for name, value in self.__dict__.items() if name != "_described"}

    @property
    def tensors(self) -> list[str]:
        """The arguments among `open` that are tensors."""
        return [name for name in self.open if isinstance(getattr(self, name, None), Tensor)]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        # A parameter given for a number would stand in `parameters()` and never get a gradient.
        given = param is not None and name in self.arguments
        if given and name in self.open:
            _check_one_number(param, name)
        elif given and name not in self.learnt:
            raise ValueError(
                f"{name}: expected a number, got a parameter; {type(self).__name__} does not learn its {name}"
            )
        super().register_parameter(name, param)

    @_seeing_learnt
    def description(self) -> RowLoss:
        """The loss as mathematics: `describes` with the module's arguments of the names of its fields."""
        assert self.describes is not None
        names = FIELDS[self.describes.name]
        return self.describes(**{n: getattr(self, n) for n in names if hasattr(self, n)})

    def rest(self) -> None:
        """Puts the module where making calls leaves no trace in it: that is how `fastdml.explain` asks."""
        self.train(False)

    def calls(self, *batch: Any, **inputs: Any) -> list[Any]:
        """The calls whose values add up to the loss, of the arguments of `forward`."""
        raise NotImplementedError

    def parts(self, *batch: Any, **inputs: Any) -> list[Any]:
        """The calls, and what else the loss adds up."""
        self._heed_distance()
        found = self.calls(*batch, **inputs)
        reducer = self._of_elements()
        if reducer is None and self.embedding_regularizer is None:
            return found
        embeddings, term = batch[0] if batch else inputs["embeddings"], None
        if self.embedding_regularizer is not None:
            term = Term(self.embedding_regularizer, (embeddings,), self.embedding_reg_weight)
        if reducer is None:
            return [*found, term]
        labels = (dict(zip(self.batch_names, batch)) | inputs).get("labels")
        terms = {} if term is None else {"embedding_reg_loss": term}
        whole = self.one_number is not None
        return [Reduced(reducer, found, embeddings, labels, terms, self.part_names, whole)]

    def _of_elements(self) -> nn.Module | None:
        """The reducer object that makes the loss of its elements; None: it is a reduction."""
        return None if self._reducer is None or self._is_reduction else self._reducer

    def call(self, description: RowLoss, anchors: Tensor, **fields: Any) -> Call:
        """A call of the engine with this loss's reduction and backend."""
        fields.setdefault("reduction", self.reduction)
        fields.setdefault("backend", self.backend)
        metric: Any = description.metric
        if metric.raw_anchors and fields.get("candidates") is None:
            # A sample is another vector as an anchor than as a candidate: two sets, even of one tensor.
            fields.update(candidates=anchors, candidate_labels=fields.get("anchor_labels"), own=0)
        if description.combined and fields["reduction"] == "none":
            raise ValueError(
                f"reduction: {description.name!r} is one number of the batch; expected 'mean' or 'sum'"
            )
        if self.open and description.learns:
            found = fields.get("scalars")
            kind = statistic_type(anchors, fields.get("candidates"))
            values = [getattr(self, n).to(anchors.device, kind).reshape(1) for n in self.tensors]
            fields["scalars"] = torch.cat(values if found is None else [found.to(kind), *values])
        return Call(description, anchors, **fields)

    def forward(self, *batch: Any) -> Tensor:
        return total(self.parts(*batch))

    def extra_repr(self) -> str:
        means = {"mean": self.mean_over}
        if "nonzero" in self.reductions:
            means["nonzero"] = f"{self.nonzero_over} above 0"
        over = means.get(self.reduction)
        return shown(self) + (f", which is over {over}" if over else "")

    @property
    def gives_elements(self) -> bool:
        """Whether a reducer object makes the loss of its elements, rather than a reduction."""
        return self._of_elements() is not None

    @property
    def nonzero_over(self) -> str:
        """What reduction="nonzero" is the mean over, where it is above 0: rows; pairs if there are none."""
        if "none" not in self.reductions:
            return self.mean_over
        return "classes" if self.description().rows == "proxies" else "samples"


class SampleLoss(Loss):
    """A loss whose rows are the samples of the batch. Keyword arguments: see `Loss`."""

    def calls(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        own: int | Tensor | None = None,
    ) -> list[Any]:
        description, batch = self.resolved(
            embeddings, labels, indices_tuple, ref_emb, ref_labels, own=own
        )
        return [self.sample_call(description, batch)]

    def resolved(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        own: int | Tensor | None = None,
    ) -> tuple[Any, Batch]:
        """The description and the checked batch of the arguments of `forward`; an index tuple is weights
        of samples where the loss takes it so, and is left to `weights`."""
        description = self.described_once()
        metric: Any = description.metric
        if metric.raw_anchors and ref_emb is None:
            raise ValueError(
                f"ref_emb: expected other candidates with similarity {description.similarity!r}, got None"
            )
        weights = None
        if description.tuples == "weights" and indices_tuple is not None and not callable(indices_tuple):
            if labels is None:
                raise ValueError("labels: expected one label per row of embeddings, got None")
            weights, indices_tuple = indices_tuple, None
        description, found = resolved(
            description, embeddings, labels, indices_tuple, ref_emb, ref_labels, own, self.validate
        )
        if weights is not None:
            weight = sample_weights(weights, embeddings, ref_emb=found.ref_emb)
            found = found.replace(row_weight=weight)
        if metric.raw_anchors and found.ref_emb is None:
            found = found.replace(ref_emb=found.embeddings, ref_labels=found.labels, own=0)
        return description, found

    def sample_call(self, description: RowLoss, batch: Batch, **fields: Any) -> Call:
        """The call of a checked batch."""
        return self.call(
            description,
            batch.embeddings,
            candidates=batch.ref_emb,
            anchor_labels=batch.labels,
            candidate_labels=batch.ref_labels,
            pairs=batch.pairs,
            predicate=batch.predicate,
            own=batch.own,
            row_weight=batch.row_weight,
            **fields,
        )

    def forward(  # type: ignore[override]
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        own: int | Tensor | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            embeddings: [B, D], any floating-point type; need not be normalised.
            labels: [B] integers of any values, in any order. Equal ones are positives. Or bool [B, C],
                which of C classes a sample is of: those that share one are positives (docs/labels.md).
            indices_tuple: a miner's result: `(a1, p, a2, n)` or `(a, p, n)` index tensors, the pairs
                that count. In FastAP, Smooth-AP and NCA the samples then weigh as often as it names
                them, relative to the most frequent one. Or a function of the indices of R anchors and
                of all N candidates that returns two bool masks [R, N], of positives and of negatives
                (a sample's pair with itself is taken out), and in some losses weights [R, N] of the
                positives (docs/labels.md): called block by block, in eager mode.
            ref_emb, ref_labels: [N, D], [N]: other candidates than the batch itself; then every pair
                counts but those of a row with its own copy. `ref_emb` may be the very tensor
                `embeddings`: one set.
            own: where a row's own copy stands in `ref_emb`: a number k >= 0, row i is candidate i + k;
                or int64 [B], -1 where a row has none. None: no row has one.

        Returns:
            float32 (float64 for float64 embeddings) scalar, or [B] with reduction="none".

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        return total(self.parts(embeddings, labels, indices_tuple, ref_emb, ref_labels, own=own))
