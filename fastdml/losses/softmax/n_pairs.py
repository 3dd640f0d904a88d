"""N-pair losses: one positive of every anchor against negatives of other classes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import statistic_type
from ...engine.distances import metric_of
from ...engine.loss import RowLoss
from ...engine.places import places
from ...engine.registry import register
from ...engine.similarity import lengths
from ...engine.summed import values_of
from ...language import Row, log_sum_exp, softplus, sum
from ...language.described import Described
from ...mining.batch import checked
from ..base import SampleLoss, Term
from ..reduced import Elements
from ..twotower.paired import PairedLoss

__all__ = ["NPairsLoss", "PairedNPairsLoss"]

FORMS = ("mc", "ovo", "all")
L2_KINDS = ("norm", "squared")


@register
@dataclasses.dataclass(frozen=True)
class NPair(Described):
    """SPEC 2.9. row_values[:, 0]: similarity of the anchor and its positive, in a pair's own terms.

    paired: the positive is among the candidates, the only one of the anchor's class, and there are no
    row_values.
    padded: col_values [1, N] are 0 for candidates that are none, and 1.
    """

    name = "n_pair"
    provenance = "released code"
    derived = ("sign",)

    one_vs_one: bool = False
    paired: bool = False
    padded: bool = False
    similarity: str = dataclasses.field(default="dot", kw_only=True)

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [
            cls(similarity="cosine"),
            cls(True, similarity="cosine"),
            cls(False, True, similarity="cosine"),
            cls(True, True, similarity="distance"),
            cls(padded=True, similarity="cosine"),
            cls(True, padded=True, similarity="distance"),
        ]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        found = {} if self.paired else {"row_values": torch.linspace(-0.6, 0.8, rows)[:, None]}
        if self.padded:
            found["col_values"] = (torch.arange(columns) % 3 > 0).float()[None]
        return found

    def row(self, p: Row) -> Any:
        own = sum(p.s, where=p.positive) if self.paired else p.row_value(0)
        negative = p.negative & (p.column(0) > 0) if self.padded else p.negative
        gap = self.sign * (p.s - own)
        if self.one_vs_one:
            return sum(softplus(gap), where=negative)
        return log_sum_exp(gap, where=negative, one=True)


class NPairsLoss(SampleLoss):
    """N-pair loss.

    *Improved Deep Metric Learning with Multi-class N-pair Loss Objective*, Sohn, NIPS 2016:

        (1/N) sum_i log(1 + sum_n exp(s_in - s_ip(i)))  (equation 6)

    The paper's s are products of embeddings as they are, `similarity="dot"`; the default is the cosine,
    as in pytorch-metric-learning, whose DotProductSimilarity normalises embeddings.

    Args:
        form: "mc" (the default): the first two samples of every class that has two are anchor and
            positive, and the positives of the other classes are the negatives. "ovo": the same pairs
            one against one, sum_n log(1 + exp(s_in - s_ip)) (equation 8). "all": every sample
            that has a positive is an anchor, its positive is drawn at random, and all samples of other
            classes are its negatives.
        l2_reg: weight of the penalty on the embeddings that enter. 0: none, as in
            pytorch-metric-learning.
        l2_kind: "norm" or "squared": the mean of |x| or |x|^2 over the batch for "all", over anchors
            plus over positives for the others.
        similarity: "cosine" by default; on distances, signs turn.

    With `indices_tuple`, "mc" and "ovo" take the first positive pair of every class from it; its
    negatives are not used. `ref_emb` is refused. Forms "mc" and "ovo" ask how many classes have two
    samples: a wait on a GPU and a break in a compiled graph, which "mean" and "sum" without `indices_tuple`
    do not need: there the pairs are padded to half the batch. Other arguments: see `SampleLoss`.
    """

    function = "n_pairs"
    mean_over = "anchors"
    inputs = {"anchors": (), "positives": (), "generator": ()}

    def __init__(
        self,
        form: str = "mc",
        *,
        l2_reg: float = 0.0,
        l2_kind: str = "norm",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check(form, l2_reg, l2_kind)
        self.form = form
        self.l2_reg = float(l2_reg)
        self.l2_kind = l2_kind

    def description(self) -> NPair:
        return NPair(self.form == "ovo", self.form != "all", similarity=self.similarity)

    def calls(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: object = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        own: int | Tensor | None = None,
        anchors: Tensor | None = None,
        positives: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Any]:
        """anchors, positives: [N] indices of the pairs, instead of those `form` chooses. generator: of the
        random positives of form "all"."""
        for value, name in ((ref_emb, "ref_emb"), (ref_labels, "ref_labels"), (own, "own")):
            if value is not None:
                raise ValueError(f"{name}: N-pair takes its pairs from one batch; expected None")
        batch = checked(embeddings, labels, indices_tuple, validate=self.validate)
        if batch.predicate is not None:
            raise ValueError(
                "indices_tuple: N-pair takes one pair of a class; expected index tensors or None, got a "
                "function"
            )
        y = batch.need_labels()
        if (anchors is None) != (positives is None):
            raise ValueError("positives: expected anchors and positives together")
        weight, kept = None, None
        # Of one pair a class, a row finds the positive among its candidates itself.
        paired = anchors is None and self.form != "all"
        if anchors is not None and positives is not None:
            none = y.new_empty(0)
            check.pairs((anchors, positives, none, none), y.shape[0], y.shape[0], embeddings)
        elif self.form == "all":
            anchors, positives, some = _random_positives(y, generator)
            weight = some.double()
            if self.gives_elements:  # of anchors that have a positive
                chosen = places(some)
                anchors, positives, weight = anchors[chosen], positives[chosen], None
            elif self.reduction != "nonzero":
                weight = weight * (some.shape[0] / weight.sum().clamp(min=1))
        elif not batch.pairs and _padded(embeddings, self.reduction):
            anchors, positives, kept = _padded_pairs(y)
            weight, paired = kept.double(), False
            if self.reduction == "mean":
                weight = weight * (kept.shape[0] / weight.sum().clamp(min=1))
        else:
            anchors, positives = _first_pairs(y, batch.pairs)
        # A graph holds the case of pairs alone, whose number it does not know. No pair: 0, with a gradient.
        if not torch.compiler.is_compiling() and anchors.shape[0] == 0:
            nothing = Term(_nothing, (embeddings, "sum" if self.gives_elements else self.reduction))
            if self.form == "all" and embeddings.shape[0]:  # the penalty is that of the batch
                return [nothing, *penalties(self.l2_reg, self.l2_kind, embeddings)]
            return [nothing]
        # One gather: its derivative fills one gradient of all embeddings instead of two.
        both = values_of(embeddings, torch.stack([anchors, positives]).flatten())
        x, x_p = both.view(2, anchors.shape[0], embeddings.shape[1]).unbind(0)
        if kept is not None:  # nothing of what is in a pair that is none
            x, x_p = (torch.where(kept[:, None], v, torch.zeros_like(v)) for v in (x, x_p))
        every = self.form == "all"
        description = dataclasses.replace(
            self.description(), paired=paired, padded=kept is not None
        )
        call = self.call(
            description,
            x,
            candidates=embeddings if every else x_p,
            anchor_labels=y[anchors],
            candidate_labels=y if every else y[positives],
            row_values=None if paired else _own(self.similarity, x, x_p),
            row_weight=weight,
            col_values=None if kept is None else kept.to(x.dtype)[None],
        )
        sets = (embeddings,) if every else (x, x_p)
        count = None if kept is None else kept.sum()
        part = Elements(call, anchors) if self.gives_elements else call
        return [part, *penalties(self.l2_reg, self.l2_kind, *sets, count=count)]


class PairedNPairsLoss(PairedLoss):
    """N-pair loss of N pairs of N different classes; see `NPairsLoss`.

    Called as `loss(embeddings [N, D], ref_emb [N, D])`: row i of ref_emb is the positive of row i of
    embeddings, and all its other rows are negatives.

    Args:
        one_vs_one: the form "ovo".
        l2_reg, l2_kind: see `NPairsLoss`.
        similarity: "dot" by default, as in the paper.
    """

    function = "n_pairs_mc"
    mean_over = "pairs"
    default_similarity = "dot"

    def __init__(
        self,
        one_vs_one: bool = False,
        *,
        l2_reg: float = 0.0,
        l2_kind: str = "squared",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check("mc", l2_reg, l2_kind)
        self.one_vs_one = one_vs_one
        self.l2_reg = float(l2_reg)
        self.l2_kind = l2_kind

    def description(self) -> NPair:
        return NPair(self.one_vs_one, True, similarity=self.similarity)

    def calls(self, embeddings: Tensor, ref_emb: Tensor) -> list[Any]:
        call = self.paired_call(self.description(), embeddings, ref_emb, {})
        return [call, *penalties(self.l2_reg, self.l2_kind, embeddings, ref_emb)]


def _check(form: str, l2_reg: float, l2_kind: str) -> None:
    check.one_of(form, "form", FORMS)
    check.one_of(l2_kind, "l2_kind", L2_KINDS)
    check.non_negative(l2_reg, "l2_reg")


def _nothing(embeddings: Tensor, reduction: str) -> Tensor:
    nothing = (embeddings * 0).sum(1).to(statistic_type(embeddings))
    return nothing if reduction == "none" else nothing.sum()


def _own(similarity: str, anchors: Tensor, positives: Tensor) -> Tensor:
    """[N, 1] similarities of the anchors and their positives."""
    return metric_of(similarity).paired(anchors, positives)[:, None]


def penalties(weight: float, kind: str, *sets: Tensor, count: Tensor | None = None) -> list[Term]:
    """The penalty on the lengths of the embeddings, if there is one."""
    function = functools.partial(_penalty, kind, count=count)
    return [Term(function, sets, weight)] if weight else []


def _penalty(kind: str, *sets: Tensor, count: Tensor | None = None) -> Tensor:
    """Mean length (or its square) of the embeddings of a set, summed over sets.

    count: how many embeddings of a set count; the others are 0.
    """
    total = torch.zeros((), dtype=sets[0].dtype, device=sets[0].device)
    for x in sets:
        norm = lengths(x)
        size = norm.square() if kind == "squared" else norm
        total = total + (size.mean() if count is None else size.sum() / count.clamp(min=1))
    return total


def _first_pairs(y: Tensor, pairs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The first positive pair of every class, in the order of labels."""
    if pairs:
        a, p = pairs[0], pairs[1]
        order = y[a].argsort(stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = y[a][order][1:] != y[a][order][:-1]
        kept = order[places(first)]
        return a[kept], p[kept]
    order = y.argsort(stable=True)
    found = y[order]
    first = torch.ones_like(found, dtype=torch.bool)
    first[1:] = found[1:] != found[:-1]
    again = torch.zeros_like(first)
    again[:-1] = ~first[1:]
    start = places(first & again)
    return order[start], order[start + 1]


def _padded(embeddings: Tensor, reduction: str) -> bool:
    """Whether pairs are padded, as their number would be a question to the device or break a graph."""
    return not check.readable(embeddings) and embeddings.shape[0] > 1 and reduction in ("mean", "sum")


def _padded_pairs(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first two samples of every class that has two, in the order of labels, among B // 2 pairs; and
    which of these they are."""
    order = y.argsort(stable=True)
    found = y[order]
    same = found[1:] == found[:-1]
    starts = torch.cat([same, torch.zeros_like(same[:1])])
    starts[1:].logical_and_(same.logical_not())
    half = y.shape[0] // 2
    at = starts.logical_not().to(torch.uint8).argsort(stable=True)[:half]
    kept = torch.arange(half, device=y.device) < starts.sum()
    return order[at], order[(at + 1).clamp(max=y.shape[0] - 1)], kept


def _random_positives(
    y: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Every sample, another one of its class, drawn uniformly, and bool [B], whether there is one."""
    order = y.argsort(stable=True)
    found = y[order].contiguous()
    start = torch.searchsorted(found, found)
    size = torch.searchsorted(found, found, right=True) - start
    place = torch.arange(y.shape[0], device=y.device) - start
    # Not torch.rand: with a generator it takes no size that a graph leaves open.
    draw = torch.empty(y.shape[0], device=y.device, dtype=torch.float64).uniform_(
        generator=generator
    )
    step = 1 + (draw * (size - 1)).long().clamp(max=(size - 2).clamp(min=0))
    other = order[start + (place + step) % size]
    # From the order of labels to that of the batch.
    place = order.argsort()
    return torch.arange(y.shape[0], device=y.device), other[place], (size > 1)[place]
