"""Labels and weights of samples as people have them, around any loss: calls to calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.call import Call, statistic_type
from ..losses.base import Loss, Term, total
from ..losses.parts import expect_parts
from ..losses.reduced import Reduced
from ..losses.representation import ExactNumbers
from ..losses.triplet.listed import OneByOne
from ..mining.identity import same_memory
from ..mining.label_sets import LabelSets
from ..mining.lazy import LazyPairs
from ..mining.miners import Miner
from ..mining.pairs import mined


class Labelled(ExactNumbers):
    """A loss of samples some of which are to be ignored, or weigh more than others.

    Args:
        loss: a loss of samples and labels: over samples, or with proxies.
        ignore_label: samples with this label are not there: no anchors, no candidates, no rows of a mean.
        class_weights: [C] weights, of at least 0, of the rows with label 0 ... C - 1.
        normalize: weights are divided by their mean over the rows, so that the mean is sum w l / sum w; else
            it is sum w l / rows (or over what the loss counts).
        miner: called on what is left of the batch, in the place of an `indices_tuple`.

    Called as `loss(embeddings, labels, indices_tuple=None, ref_emb=None, ref_labels=None, *,
    sample_weights=None, own=None)`: see `SampleLoss.forward`; sample_weights: [B] weights of the rows, of at
    least 0, times those of their classes. Weights are of anchors: a pair weighs as its row does. Pairs of an
    index tuple of the whole batch that name an ignored sample are left out. With reduction="none" an ignored
    row has 0. A batch that is ignored as a whole has a loss of 0. labels may be anything that the loss
    takes, or None, where neither ignore_label nor class_weights reads them.

    Raises:
        ValueError: naming the argument and what was expected of it; also where a loss is no sum over rows
            (contrastive, the histogram loss), whose samples cannot weigh, or a row is no sample.
    """

    constants = ("class_weights",)

    class_weights: Tensor | None

    def __init__(
        self,
        loss: Loss,
        ignore_label: int | None = None,
        class_weights: Tensor | None = None,
        *,
        normalize: bool = False,
        miner: Miner | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(loss, Loss):
            raise ValueError(f"loss: expected a loss of fastdml.losses, got {type(loss).__name__}")
        expect_parts(loss)
        if miner is not None and not isinstance(miner, Miner):
            raise ValueError(f"miner: expected a miner or None, got {type(miner).__name__}")
        self.loss = loss
        self.miner = miner
        if ignore_label is not None:
            ignore_label = check.whole(ignore_label, "ignore_label", -(1 << 63), (1 << 63) - 1)
        self.ignore_label = ignore_label
        if class_weights is not None:
            _check_constant(class_weights, "class_weights")
            class_weights = _as_weights(class_weights)
            _check_weights(class_weights, "class_weights", None)
        self.register_buffer("class_weights", class_weights)
        self.normalize = check.flag(normalize, "normalize")

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        sample_weights: Tensor | None = None,
        own: int | Tensor | None = None,
    ) -> Tensor:
        batch = (embeddings, labels, indices_tuple, ref_emb, ref_labels, sample_weights, own)
        return total(self.parts(*batch))  # type: ignore[no-any-return]

    def parts(self, *batch: Any, **further: Any) -> list[Any]:
        """The parts of the loss of what is left of a batch."""
        given = _Given(*batch, **further)
        kept, rows = self._kept(given)
        found = self._parts(kept)
        if self.loss.reduction != "none" or rows is None:
            return found
        size = given.embeddings.shape[0]
        return [_InPlace(part, rows, size) if _is_of_rows(part) else part for part in found]

    def _kept(self, batch: _Given) -> tuple[_Given, Tensor | None]:
        """The batch without what is ignored, and the rows that are left; None: all."""
        embeddings = batch.embeddings
        check.embeddings(embeddings, "embeddings")
        labels = batch.labels
        if self.ignore_label is not None or self.class_weights is not None:
            labels = check.labels(labels, embeddings.shape[0], embeddings.device, "labels", "embeddings")
        if batch.sample_weights is not None:
            _check_constant(batch.sample_weights, "sample_weights")
            _check_weights(batch.sample_weights, "sample_weights", embeddings.shape[0])
            check.same_device(batch.sample_weights, embeddings, "sample_weights", "embeddings")
        batch = dataclasses.replace(batch, labels=labels)
        if self.ignore_label is None:
            return batch, None
        batch.expect_others()
        return batch.without(self.ignore_label)

    def _parts(self, batch: _Given) -> list[Any]:
        found = [batch.embeddings, batch.labels, batch.indices_tuple, batch.ref_emb, batch.ref_labels]
        if self.miner is not None:
            if batch.indices_tuple is not None:
                raise ValueError("indices_tuple: expected None with a miner, got pairs")
            found[2] = mined(self.miner, found[0], found[1], found[3], found[4], batch.own)
        while found[-1] is None:
            found.pop()
        further = {} if batch.own is None else {"own": batch.own}
        parts = self.loss.parts(*found, **further)
        if self.class_weights is None and batch.sample_weights is None:
            return parts
        return [self._weighted(part, batch) for part in parts]

    def _weighted(self, part: Any, batch: _Given, listed: bool = False) -> Any:
        """A part whose rows weigh; listed: its elements go to a reducer object, as they weigh."""
        if isinstance(part, Term):
            return part
        if isinstance(part, Reduced) and not part.whole:
            return dataclasses.replace(part, parts=[self._weighted(p, batch, True) for p in part.parts])
        name = type(self.loss).__name__
        if isinstance(part, Call) and part.loss.rows == "proxies":
            weight = self.class_weights
            fits = weight is not None and weight.shape[0] == part.anchors.shape[0]
            if batch.sample_weights is not None or not fits or weight is None:
                raise ValueError(
                    f"sample_weights: a row of {name} is a proxy; expected class_weights of its classes alone"
                )
            weight = weight.to(part.anchors.device, statistic_type(part.anchors, part.candidates))
        else:
            weight = self._of_rows(batch)
        if self.normalize:
            weight = weight / weight.mean().clamp(min=torch.finfo(weight.dtype).tiny)
        if isinstance(part, OneByOne):
            return dataclasses.replace(part, batch=part.batch.replace(row_weight=weight))
        rows = "none" in self.loss.reductions and isinstance(part, Call) and not part.loss.combined
        weighs = rows or (listed and isinstance(part, Call) and part.loss.in_pieces)
        if not weighs or part.anchors.shape[0] != weight.shape[0]:
            raise ValueError(f"loss: {name} is no sum over samples, which could weigh; expected another one")
        given = part.row_weight
        return part.replace(row_weight=weight if given is None else weight * given)

    def _of_rows(self, batch: _Given) -> Tensor:
        """[B] weights, in the type of the loss."""
        kind = statistic_type(batch.embeddings, batch.ref_emb)
        weight = batch.sample_weights
        if weight is not None:
            weight = weight.detach().to(kind)
        if self.class_weights is not None:
            each = "one weight per class"
            check.class_range(batch.labels, self.class_weights.shape[0], "labels", False, each)
            of_class = self.class_weights.to(batch.labels.device, kind)[batch.labels]
            weight = of_class if weight is None else weight * of_class
        assert weight is not None
        return weight


@dataclasses.dataclass(frozen=True, eq=False)
class _InPlace:
    """The losses of some rows of a batch, at their places; 0 at the others'."""

    part: Any
    rows: Tensor
    size: int

    @property
    def calls(self) -> list[Call]:
        return [self.part] if isinstance(self.part, Call) else []

    def evaluate(self) -> Tensor:
        value = total([self.part])
        if value.shape != self.rows.shape:  # the rows of an N-pair loss are pairs
            return value  # type: ignore[no-any-return]
        return value.new_zeros(self.size).index_copy(0, self.rows, value)  # type: ignore[no-any-return]


def _is_of_rows(part: Any) -> bool:
    """Whether a part of a loss is made of losses of samples; not of proxies, nor reduced already."""
    return isinstance(part, OneByOne) or (isinstance(part, Call) and part.loss.rows != "proxies")


@dataclasses.dataclass(eq=False)
class _Given:
    """The arguments of a call."""

    embeddings: Tensor
    labels: Any
    indices_tuple: object = None
    ref_emb: Tensor | None = None
    ref_labels: Tensor | None = None
    sample_weights: Tensor | None = None
    own: int | Tensor | None = None

    def expect_others(self) -> None:
        """ValueError unless what comes with other candidates fits them."""
        if self.ref_emb is None:
            if self.ref_labels is not None:
                raise ValueError("ref_emb: expected embeddings with ref_labels, got None")
            return
        check.embeddings(self.ref_emb, "ref_emb")
        count = self.ref_emb.shape[0]
        if self.ref_labels is not None:
            check.labels(self.ref_labels, count, self.ref_emb.device, "ref_labels", "ref_emb")
        if self.own is not None:
            check.own(self.own, self.embeddings, count)

    def without(self, label: int) -> tuple[_Given, Tensor | None]:
        """What is left without samples of a label, and the rows that are; None: all."""
        kept = self.labels != label
        others = self._others(kept, label)
        if bool(kept.all()) and bool(others.all()):
            return self, None
        rows, columns = kept.nonzero()[:, 0], others.nonzero()[:, 0]
        embeddings, labels = self.embeddings[rows], self.labels[rows]
        ref_emb, ref_labels, own = None, None, None
        if self.ref_emb is self.embeddings and others is kept:
            ref_emb, ref_labels = embeddings, labels
        elif self.ref_emb is not None:
            ref_emb = self.ref_emb[columns]
            ref_labels = None if self.ref_labels is None else self.ref_labels[columns]
            if columns.shape[0] == 0:
                rows, embeddings, labels = rows[:0], embeddings[:0], labels[:0]
            own = self._own(rows, others)
        weights = None if self.sample_weights is None else self.sample_weights[rows]
        pairs = self._pairs(rows, kept, columns, others)
        return _Given(embeddings, labels, pairs, ref_emb, ref_labels, weights, own), rows

    def _others(self, kept: Tensor, label: int) -> Tensor:
        """Which candidates are left. Of those without labels only own copies of ignored samples are none."""
        if self.ref_emb is not None and self.ref_labels is not None:
            return self.ref_labels != label
        if self.ref_emb is None or self.ref_emb is self.embeddings:
            return kept
        others = kept.new_ones(self.ref_emb.shape[0])
        if (own := self._places()) is not None:
            others[own[~kept & (own >= 0)]] = False
        return others

    def _places(self) -> Tensor | None:
        """[B] where the rows' own copies stand among other candidates, -1 for nowhere; None: none has one."""
        assert self.ref_emb is not None
        if isinstance(self.own, Tensor):
            return self.own
        if self.own is None and not same_memory(self.embeddings, self.ref_emb):
            return None
        at = torch.arange(self.labels.shape[0], device=self.labels.device) + (self.own or 0)
        return at.masked_fill_(at >= self.ref_emb.shape[0], -1)

    def _own(self, rows: Tensor, others: Tensor) -> Tensor | None:
        own = self._places()
        if own is None:
            return None
        at, place = own[rows], others.cumsum(0) - 1
        return torch.where((at >= 0) & others[at], place[at], -1)

    def _pairs(self, rows: Tensor, kept: Tensor, columns: Tensor, others: Tensor) -> object:
        given = self.indices_tuple
        if given is None:
            return None
        if isinstance(given, LazyPairs):
            given = given.listed()
        if isinstance(given, LabelSets):
            apart = self.ref_emb is not None and not same_memory(self.embeddings, self.ref_emb)
            given.expect(kept.shape[0], others.shape[0], apart)
        if callable(given):
            check.relation(given)
            function: Callable[[Tensor, Tensor], Any] = given
            return lambda a, c: function(rows[a], columns[c])
        pairs = check.pairs(given, kept.shape[0], others.shape[0], self.embeddings)
        to_row, to_column = kept.cumsum(0) - 1, others.cumsum(0) - 1
        a1, p, a2, n = pairs
        positive, negative = kept[a1] & others[p], kept[a2] & others[n]
        if len(given) == 3:  # type: ignore[arg-type]
            both = positive & negative
            return to_row[a1[both]], to_column[p[both]], to_column[n[both]]
        return (
            to_row[a1[positive]], to_column[p[positive]], to_row[a2[negative]], to_column[n[negative]],
        )  # fmt: skip


def _as_weights(weights: Any) -> Any:
    """A tensor in float32, or in float64 as it came, where torch makes one."""
    try:
        wide = str(getattr(weights, "dtype", "")).endswith("float64")  # torch's or numpy's
        return torch.as_tensor(weights, dtype=torch.float64 if wide else torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return weights


def _check_constant(weights: object, name: str) -> None:
    """ValueError for weights that want a gradient, which they would never get."""
    if isinstance(weights, Tensor) and weights.requires_grad:
        raise ValueError(f"{name}: expected weights that want no gradient; detach them")


def _check_weights(weights: Any, name: str, count: int | None) -> None:
    expected = f"[{'classes' if count is None else count}] weights of at least 0"
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        raise ValueError(f"{name}: expected {expected}, got {weights!r}")
    if weights.dim() != 1 or weights.shape[0] == 0 or (count is not None and weights.shape[0] != count):
        raise ValueError(f"{name}: expected {expected}, got shape {tuple(weights.shape)}")
    if weights.device.type == "cpu" and not bool(((weights >= 0) & (weights < torch.inf)).all()):
        raise ValueError(f"{name}: expected {expected}, got negative or infinite ones")
