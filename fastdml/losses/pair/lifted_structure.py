"""Lifted structure loss and its generalised form."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ...engine import check
from ...engine.distances import metric_of
from ...engine.loss import Piece, RowLoss, Rows
from ...engine.pair_values import pair_values
from ...engine.registry import register
from ...engine.summed import add_
from ...language import (
    Row,
    absolute,
    count,
    detach,
    log_sum_exp,
    lowest,
    maximum,
    relu,
    sigmoid,
    softplus,
    square,
    sum,
    where,
)
from ...language.described import Described
from ...mining.batch import Batch
from ...mining.pairs import distinct_pairs
from ..base import SampleLoss
from ..presweeps import LogSumExp
from ..terms import rows_per
from ..triplet.listed import wide

__all__ = [
    "GeneralizedLiftedStructureLoss",
    "LiftedStructureLoss",
]


@register
@dataclasses.dataclass(frozen=True)
class LiftedStructure(Described):
    """A positive pair (i, p) against the negatives of i and of p: half of [log sum + margin]^2.

    The derivative through the log of sum L_p of the other sample does not come with the row, and is the
    row's own business in another place: with symmetric pairs the pairs (i, p) and (p, i) are equal, and
    what (p, i) sends through L_i is what (i, p) does. So `push` is 2 where pairs are symmetric. Where
    they are not, two calls with rows and columns swapped have 1 each, and one of them pull = 0.
    """

    name = "lifted_structure"
    provenance = "pytorch-metric-learning"
    derived = ("sign",)
    detaches = True  # other values of pull and push than 1 and 2 are half of a loss

    pos_margin: float = 0.0
    neg_margin: float = 1.0
    pull: float = 1.0
    push: float = 2.0
    similarity: str = dataclasses.field(default="distance", kw_only=True)

    def __post_init__(self) -> None:
        check.finite(self.pos_margin, "pos_margin")
        check.finite(self.neg_margin, "neg_margin")

    def count_scalars(self, positives: Tensor, negatives: Tensor) -> Tensor:
        return rows_per(positives)

    def presweep(self) -> RowLoss:
        sign = self.metric.sign
        return LogSumExp(sign, -sign * self.neg_margin, True, similarity=self.similarity)

    def row(self, p: Row) -> Any:
        level = log_sum_exp(self.sign * (p.s - self.neg_margin), where=p.negative)
        own, other = detach(level), detach(p.column(0))
        both = maximum(own, other) + softplus(-absolute(own - other))
        some = both > 0.5 * lowest(p.s)
        excess = where(some, relu(both - self.sign * (p.s - self.pos_margin)), 0.0)
        slope = detach(sum(excess * sigmoid(own - other), where=p.positive))
        through = slope * (level - own)  # 0, with the derivative of the row's log of sum
        value = sum(square(excess), where=p.positive) / 2
        return p.scalar(0) * (self.pull * value + self.push * through)

    def pieces(self, rows: Rows) -> dict[str, Piece]:
        assert rows.col_values is not None
        sign = self.metric.sign
        own = log_sum_exp(sign * (rows.s - self.neg_margin), where=rows.negative)
        loss = _half_square(own, rows.col_values[-2], sign * (self.pos_margin - rows.s))
        return {"loss": Piece("pos_pair", loss, rows.positive)}


def _half_square(own: Tensor, other: Tensor, pull: Tensor) -> Tensor:
    """Half of [log(exp own + exp other) + pull]_+^2; 0 where neither sample has a negative."""
    some = torch.maximum(own, other).detach() > 0.5 * torch.finfo(own.dtype).min
    both = torch.where(some, torch.logaddexp(own, other), torch.zeros_like(own))
    return torch.where(some, (both + pull).relu().square() / 2, torch.zeros_like(pull))


@register
@dataclasses.dataclass(frozen=True)
class GeneralizedLiftedStructure(Described):
    """All positives of a row against all its negatives."""

    name = "generalized_lifted_structure"
    provenance = "pytorch-metric-learning"
    derived = ("sign",)
    numbers = ("needs_both",)

    pos_margin: float = 0.0
    neg_margin: float = 1.0
    needs_both: bool = False
    similarity: str = dataclasses.field(default="distance", kw_only=True)

    def __post_init__(self) -> None:
        check.finite(self.pos_margin, "pos_margin")
        check.finite(self.neg_margin, "neg_margin")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(0.2, 1.5, True), cls(0.9, 0.1, similarity="cosine")]

    def row(self, p: Row) -> Any:
        parts, some = [], []
        for z, mask in (
            (self.sign * (self.pos_margin - p.s), p.positive),
            (self.sign * (p.s - self.neg_margin), p.negative),
        ):
            some.append(count(where=mask) > 0)
            parts.append(where(some[-1], log_sum_exp(z, where=mask), 0.0))
        counts = (some[0] & some[1]) | (self.needs_both < 0.5)
        return where(counts, relu(parts[0] + parts[1]), 0.0)


class LiftedStructureLoss(SampleLoss):
    """Lifted structure loss.

    *Deep Metric Learning via Lifted Structured Feature Embedding*, Oh Song et al., CVPR 2016 (arXiv
    1511.06452), equation 4: the mean over positive pairs (i, p) of half of

        [log( sum_{n in N_i} exp(neg_margin - d_in) + sum_{n in N_p} exp(neg_margin - d_pn) )
         + d_ip - pos_margin]_+^2

    With `ref_emb`, i and its positives' and negatives' partners are on different sides: N_i are the
    candidates and N_p the anchors of another class.

    Args:
        neg_margin, pos_margin: in units of `similarity`, "distance" by default; on similarities all
            signs turn.

    Of an `indices_tuple` the listed negatives of the anchor and of the positive count (of two sets, those of
    the candidate that is the positive); O(pairs) memory. Other arguments: see `SampleLoss`.
    """

    function = "lifted_structure"
    mean_over = "positive pairs"
    reducers = {"MeanReducer": "mean"}
    describes = LiftedStructure
    reductions = ("mean", "sum")  # rows share their derivatives
    default_similarity = "distance"

    def __init__(self, neg_margin: float = 1, pos_margin: float = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.neg_margin = neg_margin
        self.pos_margin = pos_margin
        self.description()  # checks the margins

    def _of_elements(self) -> nn.Module | None:
        if not metric_of(self.similarity).in_torch:
            return super()._of_elements()
        # (i, p) and (p, i) may differ: pairs go one by one through what torch differentiates.
        return self.reducer  # type: ignore[no-any-return]

    def calls(self, *batch: Any, own: int | Tensor | None = None) -> list[Any]:
        description, found = self.resolved(*batch, own=own)
        if found.predicate is not None:
            raise ValueError(
                "indices_tuple: lifted structure takes labels or listed pairs; expected index tensors, got a "
                "function"
            )
        if found.pairs:
            return [
                OfListed(description, found.replace(pairs=distinct_pairs(found)), self.reduction)
            ]
        if found.ref_emb is None:
            return [self.sample_call(description, found)]
        call = self.sample_call(
            LiftedStructure(self.pos_margin, self.neg_margin, push=1.0, similarity=self.similarity),
            found,
        )
        some = found.ref_emb.requires_grad or found.embeddings.requires_grad
        # Pairs one by one have their whole derivative.
        if self.gives_elements or not some:
            return [call]
        # The same pairs seen from the other side: no value of its own, and the rest of the derivative.
        # Both means are over positive pairs, whose number is the same.
        far = call.replace(
            loss=LiftedStructure(
                self.pos_margin, self.neg_margin, 0.0, 1.0, similarity=self.similarity
            ),
            anchors=found.ref_emb,
            candidates=found.embeddings,
            anchor_labels=found.ref_labels,
            candidate_labels=found.labels,
            own=found.own_of_candidates(),
            reduction="mean",
            weight=1.0 if self.reduction == "mean" else float(found.embeddings.shape[0]),
        )
        return [call, far]


@dataclasses.dataclass(frozen=True)
class OfListed:
    """The loss of listed pairs: what a list says, and no more."""

    description: LiftedStructure
    batch: Batch
    reduction: str

    def losses(self) -> Tensor:
        """[P] of the positive pairs."""
        loss, batch = self.description, self.batch
        a1, p, a2, n = batch.pairs
        x, y = wide(batch)
        sign = loss.metric.sign
        other_set = None if batch.ref_emb is None else y
        near, far = pair_values(loss.similarity, x, other_set, [(a1, p), (a2, n)])
        pull = sign * (loss.pos_margin - near)
        push = sign * (far - loss.neg_margin)
        own = _log_sums(push, a2, x.shape[0])
        # What else is a negative of the positive: of one set it is an anchor too.
        other = own if batch.ref_emb is None else _log_sums(push, n, y.shape[0])
        return _half_square(own[a1], other[p], pull)

    def evaluate(self) -> Tensor:
        losses = self.losses()
        total = losses.sum()
        return total if self.reduction == "sum" else total / torch.sym_max(1, losses.shape[0])

    def elements(self, name: str) -> dict[str, Any]:
        """The list, for a reducer object."""
        index = self.batch.pairs[:2]
        return {name: {"losses": self.losses(), "indices": index, "reduction_type": "pos_pair"}}


def _log_sums(z: Tensor, group: Tensor, groups: int) -> Tensor:
    """[groups] log of the sum of exp z [T] of a group; the most negative number of the type without any."""
    low = torch.finfo(z.dtype).min
    top = z.detach().new_full((groups,), low).scatter_reduce(0, group, z.detach(), "amax")
    total = add_(z.new_zeros(groups), group, (z - top[group]).exp())
    some = total > 0
    return torch.where(some, torch.where(some, total, 1.0).log() + top, low)


class GeneralizedLiftedStructureLoss(SampleLoss):
    """Generalised lifted structure loss.

    *In Defense of the Triplet Loss for Person Re-Identification*, Hermans et al., 2017 (arXiv
    1703.07737), equation 7, on distances d:

        (1/B) sum_i [log sum_P exp(d - pos_margin) + log sum_N exp(neg_margin - d)]_+

    Args:
        neg_margin, pos_margin: in units of `similarity`, "distance" by default ("raw_distance" for
            embeddings that are not normalised); on similarities all signs turn.
        variant: "pml" (the default): the logarithm of an empty sum counts as 0, so that a row without
            positives is still pushed. "paper": a row that lacks either kind has a loss of 0.

    Other arguments: see `SampleLoss`.
    """

    function = "generalized_lifted_structure"
    open = ("neg_margin", "pos_margin")
    default_similarity = "distance"

    def __init__(
        self,
        neg_margin: float = 1,
        pos_margin: float = 0,
        *,
        variant: str = "pml",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.neg_margin = neg_margin
        self.pos_margin = pos_margin
        self.variant = variant
        self.description()  # checks the parameters

    def description(self) -> GeneralizedLiftedStructure:
        check.one_of(self.variant, "variant", ("pml", "paper"))
        return GeneralizedLiftedStructure(
            self.pos_margin, self.neg_margin, self.variant == "paper", similarity=self.similarity
        )
