"""The description of a loss: what it computes on one row, never how it is scheduled."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .counting import longest_row
from .distances import metric_of
from .lazy import lazy
from .relation import LabelRelation
from .similarity import METRICS, Metric


@dataclasses.dataclass(frozen=True)
class Piece:
    """Elements of a block of rows that a loss is made of: what a reducer object reduces.

    kind: "element" (one of a row), "pos_pair", "neg_pair" (of the row's candidates) or "triplet".
    losses, mask: [R, K], and which of them there are. divisor: [R] what rows add to the loss's own divisor.
    columns: of triplets, the candidates [R, K] that are positives and negatives.
    """

    kind: str
    losses: Tensor
    mask: Tensor
    divisor: Tensor | None = None
    columns: tuple[Tensor, Tensor] | None = None


@dataclasses.dataclass
class Rows:
    """A block of rows, as the spec of a loss sees it.

    s: [R, N] similarities of R anchors and all N candidates, differentiable.
    positive, negative: bool [R, N]. A sample's pair with itself is in neither, unless the loss keeps
        it, and then it is a positive.
    pair: bool [R, N] or None: False for the pairs of samples with themselves; None if all count.
    teacher: [R, N] second matrix over the same pairs, or None.
    scalars: [n] values of this call: the learnable ones first, then those of
        `RowLoss.label_scalars`, then those of `RowLoss.count_scalars`.
    row_values: [R, k] values of the rows (a learnable margin of its class, say), or None.
    col_values: [k, N] values of the candidates; those of `RowLoss.presweep` come last.
    first: the number of the first row.
    weight: [R, N] weights of the positives, above 0, of a loss that is `graded`; None: 1.
    """

    s: Tensor
    positive: Tensor
    negative: Tensor
    pair: Tensor | None = None
    teacher: Tensor | None = None
    scalars: Tensor | None = None
    row_values: Tensor | None = None
    col_values: Tensor | None = None
    weight: Tensor | None = None
    first: int = 0

    def one_detached(self) -> Rows:
        """The first row, none of whose numbers wants a gradient."""
        whole = ("scalars", "col_values")
        given: dict[str, Any] = {
            k: x.detach() for k, x in vars(self).items() if isinstance(x, Tensor)
        }
        return dataclasses.replace(
            self, **{k: x if k in whole else x[:1] for k, x in given.items()}
        )

    def thresholds(self) -> tuple[Tensor, Tensor, Tensor]:
        """The row's positives as a padded list: (similarities [R, P], columns [R, P], valid [R, P])."""
        longest = longest_row(self.positive)
        # topk of a 0/1 row returns the ones first; which columns they are does not matter.
        valid, index = self.positive.to(torch.uint8).topk(max(1, longest), dim=1)
        return self.s.gather(1, index), index, valid.bool()


@dataclasses.dataclass(frozen=True)
class Learnt:
    """A parameter of a description that is no number of its own, but parameter k of those that a call hands
    in among its scalars and that may want a gradient."""

    k: int


@dataclasses.dataclass(frozen=True)
class RowLoss:
    """A loss that is a function of one row, summed over rows. Subclasses are frozen dataclasses.

    Their fields are the parameters; `parameters()` hands them to the compiled functor of the same
    `name` in the order of its members. `similarity` is what every loss has: a name in
    `similarity.SIMILARITIES` or of `distances`; the numbers of a row are that.

    Four kinds of losses fit:
    1. a sum of row losses (most): `spec` returns [R].
    2. a function of sums over all rows (normalisers that count active pairs, a softmax over all
       pairs): `outputs` > 1, `spec` returns [R, outputs], and `combine` makes the loss of all rows'
       outputs. The matrix is then visited twice: for the outputs, and for the weights; block by block
       where the loss is `grouped`.
    3. a mean over things that rows count: `counted`, `spec` returns [R, 2], in one visit.
    4. rows that need a statistic of the other row of a pair: `presweep` describes it.
    """

    name: ClassVar[str]
    # What the formula was checked against: "released code", "paper", "pytorch-metric-learning", ... or
    # "inferred" where no code or text settles it.
    provenance: ClassVar[str] = "formula"
    # Whether rows are the samples of a batch or the proxies of its classes.
    rows: ClassVar[Literal["samples", "proxies"]] = "samples"
    # Whether candidates are samples or proxies: then every class is `columns_per_class` consecutive
    # columns, classes in the order 0, 1, ... .
    columns: ClassVar[Literal["samples", "proxies"]] = "samples"
    # What the pair of a sample with itself is, when anchors and candidates are one set.
    self_pair: ClassVar[Literal["exclude", "keep"]] = "exclude"
    # Initial values of the learnable scalars a call must hand in.
    learnable: ClassVar[tuple[float, ...]] = ()
    # Values a row returns. More than one: the loss is `combine` of all rows' values.
    outputs: ClassVar[int] = 1
    # True: `combine` is the mean of a function of `rows_together` rows in turn: a block of rows then has its
    # second visit right after its first, and its products are made once.
    grouped: ClassVar[bool] = False
    # True: a row's outputs are a loss and the number of things it sums (a constant for the gradient);
    # the mean divides by the sum of those numbers instead of the number of rows.
    counted: ClassVar[bool] = False
    # col_values[0] is added to every product ("dot" only): its derivative is a sum of weights.
    column_bias: ClassVar[bool] = False
    # What an index tuple is: the pairs that count, or weights of the samples it names.
    tuples: ClassVar[Literal["pairs", "weights"]] = "pairs"
    # True: the spec knows weights of positives (`Rows.weight`).
    graded: ClassVar[bool] = False
    # True: the spec reads or counts pairs that are neither positive nor negative.
    unlisted: ClassVar[bool] = False
    # True: reductions are over a row's pairs of either kind, of which one that a list names as both is one.
    joint: ClassVar[bool] = False
    # What the teacher's pairs are, where the loss has a teacher.
    teacher_similarity: ClassVar[str | None] = None
    # True: derivatives are left out on purpose (weights that count as constants): the gradient is not
    # the one of finite differences.
    detaches: ClassVar[bool] = False
    # By how many values of a candidate, from the first, the compiled functor gives derivatives.
    column_slopes: ClassVar[int] = 0
    # True: among samples of one set the weight of a pair is the same in the rows of both (the loss is a
    # sum over pairs, each a function of its similarity and relation): one product of weights serves both.
    symmetric: ClassVar[bool] = False
    # True: a pair adds to its row's outputs what depends on no other pair of it, so that the outputs over
    # some candidates and over others add up.
    additive: ClassVar[bool] = False
    # Whether the symmetric schedule is faster than rows where it takes two sweeps for statistics: measured.
    # (A sweep among positives counts for next to nothing.)
    two_sweeps_pay: ClassVar[bool] = False
    # Bytes the spec needs per pair beyond the similarity itself, for the size of chunked blocks.
    spec_bytes: ClassVar[int] = 48
    # True where the row owns a list of thresholds: the spec then holds one copy per threshold.
    threshold_list: ClassVar[bool] = False

    # Tile functor of a description that is not among the library's losses: an object with the functions
    # `tile(loss)` and `parameters(loss)` of a module in fastdml/kernels/tiles.
    tiles: ClassVar[Any] = None

    similarity: str = dataclasses.field(default="cosine", kw_only=True)

    def __getstate__(self) -> dict[str, Any]:
        # What it has found of itself, functions among it, a copy finds anew.
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @property
    def columns_per_class(self) -> int:
        """Consecutive candidates that are one class, for losses over several proxies per class."""
        return 1

    @property
    def rows_together(self) -> int:
        """Consecutive rows that the spec must see in one block: several proxies of one class; or that
        `combine` reads together (`grouped`)."""
        return 1

    @property
    def teacher_from_differences(self) -> bool:
        """Whether the teacher's pairs are exact differences, of numbers in double precision."""
        kind = self.teacher_similarity
        return kind is not None and metric_of(kind).from_differences

    @lazy
    def metric(self) -> Metric:
        return METRICS.get(self.similarity) or metric_of(self.similarity)

    def spec(self, rows: Rows) -> Tensor:
        """[R] losses of a block of rows ([R, outputs] if several), in differentiable torch."""
        raise NotImplementedError

    def pieces(self, rows: Rows) -> Mapping[str, Piece]:
        """The elements of a block by the names of the loss's parts, where these are not the rows' losses.

        Overridden only by losses whose elements are pairs, triplets, or some rows only.
        """
        raise NotImplementedError

    @lazy
    def only_in_torch(self) -> str | None:
        """Why these parameters have no compiled form, or None."""
        if self.metric.in_torch:
            return f"{self.similarity!r} is not made of products"
        return None

    @property
    def in_pieces(self) -> bool:
        """Whether its elements are others than the rows' losses."""
        return type(self).pieces is not RowLoss.pieces

    # The row in the words of `fastdml.language`, a method `row(p)`, where a description has it: then its
    # statistics over some candidates and over others can be merged.
    row: ClassVar[Any] = None

    def parameters(self) -> tuple[float, ...]:
        """Members of the compiled functor."""
        names = (f.name for f in dataclasses.fields(self) if f.name != "similarity")
        return tuple(float(getattr(self, name)) for name in names)

    @lazy
    def learns(self) -> bool:
        """Whether a call hands in some of its parameters."""
        return any(isinstance(value, Learnt) for value in self.__dict__.values())

    def told(self, scalars: Tensor | None) -> RowLoss:
        """The description with the values of a call in place of what is learnt: `pieces` reads fields."""
        if not self.learns:
            return self
        assert scalars is not None
        first, made = len(self.learnable), copy.copy(self)
        found = {k: scalars[first + v.k] for k, v in self.__dict__.items() if isinstance(v, Learnt)}
        made.__dict__.update(found)
        return made

    @lazy
    def members(self) -> tuple[float, ...]:
        """`parameters()`, asked for once."""
        return self.parameters()

    def with_rule(self, rule: Mapping[str, Any]) -> RowLoss | None:
        """The loss that chooses its pairs by a miner's rule, whose fields it has; None: it has not, or they
        say another rule already, which must not be lost."""
        fields = {f.name: f for f in dataclasses.fields(self)}
        if not set(rule) <= set(fields):
            return None
        own = any(getattr(self, name) not in (fields[name].default, rule[name]) for name in rule)
        return None if own else dataclasses.replace(self, **rule)

    @property
    def functor_name(self) -> str:
        """The functor's name in the compiled library."""
        return self.name

    def functor(self) -> int | str | None:
        """For a description that brings a compiled functor of its own: its id, for the CPU, or why there
        is none. None: the compiled functor is that of `functor_name`."""
        return None

    def streamed(
        self, ranges: Mapping[str, Sequence[tuple[float, float]]], size: int
    ) -> tuple[Any, tuple[float, ...]] | str | None:
        """For the symmetric schedule (executors/symmetric.py): a streamed form and its members, or why
        there is none; None: the loss has none. ranges: between which numbers the inputs of a row lie, in a
        type of `size` bytes, by name ("s", "teacher", "scalar", "row_value", "column") and index."""
        return None

    @classmethod
    def examples(cls) -> list[RowLoss]:
        """Parameters under which tests and benchmarks run the loss: between them, every branch."""
        return [cls()]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        """The further inputs of a call (scalars, row_values, col_values) with which they run it."""
        return {"scalars": torch.tensor(self.learnable)} if self.learnable else {}

    def label_scalars(self, relation: LabelRelation) -> Tensor | list[float] | None:
        """Values of one call that every row reads (counts of classes, say); no host sync.

        Numbers where they are known on the host.
        """
        return None

    def count_scalars(self, positives: Tensor, negatives: Tensor) -> Tensor | None:
        """More values of one call, from the numbers [M] of positives and negatives of the rows.

        For normalisers that count pairs: known without looking at a similarity. No host sync.
        """
        return None

    @lazy
    def combined(self) -> bool:
        """Whether the loss is `combine` of the outputs of all rows."""
        return self.outputs > 1 and not self.counted

    @lazy
    def combines_all(self) -> bool:
        """Whether `combine` needs the outputs of all rows before one has its weight."""
        return self.combined and not self.grouped

    def combine(self, outputs: Tensor, reduction: str) -> Tensor:
        """The loss as a differentiable function of all rows' outputs [M, outputs]; O(M) memory."""
        raise NotImplementedError

    def weighed(self, outputs: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
        """What `combine` makes of outputs, and its derivatives by them: the weights of the rows in it."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            value = self.combine(leaf, reduction)
            return value.detach(), torch.autograd.grad(value, leaf)[0]

    def presweep(self) -> RowLoss | None:
        """A loss of columns against rows whose outputs become the last `col_values`.

        Its derivative is not followed: the spec must be stationary in those values, or account for
        them itself.
        """
        return None

    @lazy
    def before(self) -> RowLoss | None:
        """`presweep()`, asked for once: what it finds of itself is kept."""
        return self.presweep()

    def distance_epsilon(self, dimension: int) -> float:
        """Added to squared distances (under the root, for distances)."""
        return 0.0
