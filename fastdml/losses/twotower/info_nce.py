"""InfoNCE of pairs, and CLIP's form over rows and columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import Before, Call
from ...engine.distances import metric_of
from ...engine.lazy import lazy
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, count, log_sum_exp, sum, where
from ...language.described import Described
from ..base import total
from ..presweeps import LogSumExp
from .contrast import Contrast, of_columns, pieces
from .negatives import Beside, Hard, Margin, Pairs
from .paired import PairedLoss, as_scalars, check_own, check_sets
from .scale import Tempered, clamped_scale

__all__ = ["CLIPLoss", "InfoNCELoss"]


@register
@dataclasses.dataclass(frozen=True)
class InfoNCE(Described):
    """Cross-entropy of every row's softmax, and of every column's where `columns` is not 0.

    Learnable scalar: 1 / temperature. Over positive pairs (i, p), with C_j the log of sum of column j:

        sum_(i, p) rows (LSE_i - z_ip) + columns (C_p - z_ip)

    No derivative is followed through C. Instead row i also has columns (sum_j n_j exp(z_ij - C_j) - n_i),
    n_j the number of positives of column j: over all rows that is 0, its derivative by z_ij is that
    through C_j, and the whole is stationary in C. Rows must weigh the same for that (`reduction` "mean"
    or "sum").
    """

    name = "info_nce"
    learnable = (10.0,)
    derived = ("sign", "columnwise")
    # That of fastdml/kernels/tiles, which reads what the sweep of columns leaves there.
    tiles = None

    rows_weight: float = 0.5
    columns_weight: float = 0.5

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(1.0, 0.0)]

    @lazy
    def columnwise(self) -> bool:
        return self.columns_weight != 0

    def presweep(self) -> RowLoss | None:
        if not self.columnwise:
            return None
        return LogSumExp(self.metric.sign, learnable_scale=True, similarity=self.similarity)

    @property
    def additive(self) -> bool:  # type: ignore[override]
        return self.rows_weight == 0

    def row(self, p: Row) -> Any:
        z = self.sign * p.scalar(0) * p.s
        positives = count(where=p.positive)
        target = sum(z, where=p.positive)
        level = where(positives > 0, log_sum_exp(z, where=p.pair), 0.0)
        loss = self.rows_weight * (positives * level - target)
        if not self.columnwise:
            return loss
        return loss + self.columns_weight * of_columns(p, z)


# Pairs that a query's own may be told from, beside those of queries with documents, "qd".
NEGATIVES = ("qd", "qq", "dd", "dq")


class InfoNCELoss(Tempered, PairedLoss):
    """InfoNCE loss of pairs: queries and documents, images and texts.

    *Representation Learning with Contrastive Predictive Coding*, van den Oord et al., 2018 (arXiv
    1807.03748), equation 4: the cross-entropy of softmax_j(s_ij / t) with the target j = i, averaged
    over i; symmetric, the mean of that over rows and over columns, as in *Learning Transferable Visual
    Models From Natural Language Supervision* (CLIP), Radford et al., ICML 2021 (arXiv 2103.00020).

    Args:
        temperature: initial t > 0.
        symmetric: rows and columns instead of rows alone. A column's softmax is over the queries; the
            explicit negatives and those of `negatives` are the rows'.
        learnable: the scale 1 / t is learned, as `log_scale` (its logarithm, which is unbounded).
        max_scale: no larger scale is used: in training `log_scale` is first set back to its logarithm, as
            CLIP's training does after each step.
        negatives: which pairs join the row's denominator beside "qd", query and document: "qq" of queries,
            "dd" of documents, "dq" of the row's document and other queries, as in *Towards General Text
            Embeddings*, Li et al., 2023 (arXiv 2308.03281), and, with false_negative_margin=0.1, the
            report *Qwen3 Embedding*, Zhang et al., 2025 (arXiv 2506.05176), equation 1: ("qd", "qq", "dd").
        false_negative_margin: negatives more similar than the row's own pair by more than this do not
            count; None: all do.
        guide_margin: the same by a guide model's similarities, where a call has a guide. *GISTEmbed*,
            Solatorio, 2024 (arXiv 2402.16829), has 0.
        relative: those margins are shares of the size of the pair's own similarity.
        hardness: beta >= 0, negatives weigh exp(beta s / t) over the mean of that: *Contrastive Learning
            with Hard Negative Samples*, Robinson et al., ICLR 2021 (arXiv 2010.04592).
        prior: tau in [0, 1), the share of negatives that are positives after all, whose sum is corrected
            for that: *Debiased Contrastive Learning*, Chuang et al., NeurIPS 2020 (arXiv 2007.00224),
            equation 8 with M = 1 and N the negatives that count. On "cosine" only.
        decoupled: the pair itself is not in its denominator: *Decoupled Contrastive Learning*, Yeh et al.,
            ECCV 2022 (arXiv 2110.06848), equation 6.
        label_smoothing: in [0, 1): this share of the target is spread evenly over all candidates that count.

    reduction: "mean", "sum" or "none" ([B], the two directions averaged per pair). Other arguments: see
    `SampleLoss`.
    """

    function: ClassVar[str | None] = "info_nce"
    mean_over = "pairs"
    positional = ("embeddings", "ref_emb", "scale")
    reductions = ("mean", "sum", "none")

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        symmetric: bool = False,
        learnable: bool = False,
        max_scale: float | None = None,
        negatives: Sequence[str] = ("qd",),
        false_negative_margin: float | None = None,
        guide_margin: float = 0.0,
        relative: bool = False,
        hardness: float = 0.0,
        prior: float = 0.0,
        decoupled: bool = False,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(temperature, learnable, max_scale, **kwargs)
        self.symmetric = symmetric
        if not isinstance(negatives, (str, list, tuple)):
            raise ValueError(f"negatives: expected a list of {NEGATIVES} with 'qd', got {negatives!r}")
        for name in (negatives,) if isinstance(negatives, str) else negatives:
            check.one_of(name, "negatives", NEGATIVES)
        if isinstance(negatives, str) or "qd" not in negatives:
            raise ValueError(f"negatives: expected a list of {NEGATIVES} with 'qd', got {negatives!r}")
        self.negatives = tuple(dict.fromkeys(negatives))
        self.false_negative_margin = (
            None
            if false_negative_margin is None
            else check.finite(false_negative_margin, "false_negative_margin")
        )
        self.guide_margin = check.finite(guide_margin, "guide_margin")
        self.relative = relative
        self.hardness = check.non_negative(hardness, "hardness")
        self.prior = check.share(prior, "prior")
        if prior > 0 and self.similarity != "cosine":
            raise ValueError(f"prior: expected 0 on similarity {self.similarity!r}, got {prior!r}")
        self.decoupled = decoupled
        self.label_smoothing = check.share(label_smoothing, "label_smoothing")
        if len(self.negatives) > 1 and (hardness or prior or label_smoothing):
            name = "hardness" if hardness else "prior" if prior else "label_smoothing"
            raise ValueError(f"{name}: expected 0 with negatives of other pairs, {self.negatives!r}")

    def description(self) -> InfoNCE | Contrast:
        share = 0.5 if self.symmetric else 0.0
        plain = InfoNCE(1 - share, share, similarity=self.similarity)
        rows = self._rows()
        return plain if rows == Contrast(similarity=self.similarity) else rows

    def _rows(self, **given: Any) -> Contrast:
        """What a row computes, without what a batch may bring."""
        if self.symmetric and metric_of(self.similarity).raw_anchors:
            raise ValueError(
                f"similarity: {self.similarity!r} treats queries and documents differently; expected another "
                "one with symmetric=True"
            )
        given.setdefault("outside", len(self.negatives) > 1)
        return Contrast(
            below=self.false_negative_margin is not None,
            decoupled=self.decoupled,
            hardness=self.hardness or None,
            prior=self.prior or None,
            smoothing=self.label_smoothing or None,
            similarity=self.similarity,
            **given,
        )

    def calls(
        self,
        embeddings: Tensor,
        ref_emb: Tensor,
        hard_negatives: Tensor | None = None,
        *,
        own: int | Tensor = 0,
        hard_weights: Tensor | None = None,
        ids: Tensor | None = None,
        hard_ids: Tensor | None = None,
        guide: Tensor | None = None,
        ref_guide: Tensor | None = None,
        hard_guide: Tensor | None = None,
        mask: Callable[[Tensor, Tensor], Tensor] | None = None,
        scale: Tensor | float | None = None,
    ) -> list[Any]:
        check_sets(embeddings, ref_emb, self.validate)
        pairs = Pairs.checked(
            embeddings, ref_emb, check_own(own, embeddings, ref_emb), ids, guide, ref_guide, mask
        )
        if mask is not None and len(self.negatives) > 1:
            raise ValueError(f"mask: expected None with negatives of other pairs, {self.negatives!r}")
        hard = pairs.hard(hard_negatives, hard_weights, hard_ids, hard_guide, self.validate)
        scalars = as_scalars({"scale": clamped_scale(self, scale)}, embeddings, ref_emb)
        return Contrasted(self, pairs, hard, scalars).calls()

    def forward(  # type: ignore[override]
        self,
        embeddings: Tensor,
        ref_emb: Tensor,
        hard_negatives: Tensor | None = None,
        *,
        own: int | Tensor = 0,
        hard_weights: Tensor | None = None,
        ids: Tensor | None = None,
        hard_ids: Tensor | None = None,
        guide: Tensor | None = None,
        ref_guide: Tensor | None = None,
        hard_guide: Tensor | None = None,
        mask: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The loss of row i of embeddings [B, D] paired with row i of ref_emb [N, D], N >= B.

        Args:
            embeddings, ref_emb: any floating-point type; need not be normalised. Rows of ref_emb that
                belong to no row of embeddings are negatives of all.
            hard_negatives: [B, K, D], each row's own, or [K, D], of all rows. K may be 0.
            own: where the rows' partners stand in ref_emb: a number k >= 0, row i belongs to row i + k;
                or int64 [B], -1 for a row without one, whose loss is 0 and whose query is a negative of the
                others all the same.
            hard_weights: [B, K] or [K] factors > 0 of their exponentials.
            ids: int64 [N] of the documents: those with the id of the row's own document are no negatives
                of the row. hard_ids: int64 [B, K] or [K] of the hard negatives; None: none is.
            guide, ref_guide, hard_guide: embeddings of a guide model, [B, E], [N, E] and as
                hard_negatives: what is more similar in them than the pair itself (`guide_margin`) is no
                negative. No gradient.
            mask: a function of the indices of R rows and of all N documents that returns a bool mask
                [R, N] of those that are no negatives (the row's own document stays its positive): called
                block by block, in eager mode.

        Returns:
            float32 (float64 for float64 embeddings) scalar, or [B] with reduction="none".

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        return total(
            self.parts(
                embeddings, ref_emb, hard_negatives, own=own, hard_weights=hard_weights, ids=ids,
                hard_ids=hard_ids, guide=guide, ref_guide=ref_guide, hard_guide=hard_guide, mask=mask,
            )
        )  # fmt: skip


class CLIPLoss(InfoNCELoss):
    """CLIP's loss: symmetric InfoNCE with a learnable scale; see `InfoNCELoss`."""

    function = None
    sets = ("symmetric",)

    def __init__(self, temperature: float = 0.07, *, learnable: bool = True, **kwargs: Any) -> None:
        super().__init__(
            temperature, symmetric=True, learnable=learnable, **self.unset(kwargs)
        )


@dataclasses.dataclass(eq=False)
class Contrasted:
    """The calls of InfoNCE of a checked batch."""

    loss: InfoNCELoss
    pairs: Pairs
    hard: Hard | None
    scalars: Tensor | None

    def calls(self) -> list[Any]:
        loss, pairs = self.loss, self.pairs
        rows = self._rows()
        columns = 0.5 if loss.symmetric else 0.0
        # Rows of any weight, and columns with options of their own: the two directions apart.
        apart = loss.symmetric and (loss.reduction == "none" or not rows.plain_columns or pairs.masked)
        if rows == Contrast(similarity=loss.similarity) and not pairs.masked:
            description = InfoNCE(1.0 - columns, columns, similarity=loss.similarity)
            if not apart:
                return [self._call(description, pairs)]
            one = InfoNCE(1.0, 0.0, similarity=loss.similarity)
            return [self._call(one, side, weight=0.5) for side in (pairs, pairs.reversed())]
        beside = self._beside()
        levels = tuple(self._levels(rows, beside))
        if not apart:
            whole = dataclasses.replace(rows, columns_weight=columns or None)
            return [self._call(whole, pairs, before=Before(levels, beside))]
        back = dataclasses.replace(rows, outside=False, weighted=False)
        return [
            self._call(rows, pairs, weight=0.5, before=Before(levels, beside)),
            self._call(back, pairs.reversed(), weight=0.5, before=Before((), beside)),
        ]

    def _rows(self) -> Contrast:
        """What a row of this batch computes."""
        loss, pairs = self.loss, self.pairs
        return loss._rows(
            guided=pairs.guide is not None,
            identified=pairs.ids is not None,
            weighted=pairs.log_weights is not None,
            outside=len(loss.negatives) > 1 or self.hard is not None,
        )

    def _beside(self) -> Beside:
        loss, pairs = self.loss, self.pairs
        margin = loss.false_negative_margin
        guide = None
        if pairs.guide is not None and pairs.ref_guide is not None:
            guide = (pairs.guide, pairs.own(pairs.ref_guide))
        return Beside(
            pairs.queries,
            pairs.own(pairs.documents),
            None if margin is None else Margin(margin, loss.relative),
            Margin(loss.guide_margin, loss.relative) if guide is not None else None,
            guide,
            None if pairs.ids is None else pairs.own(pairs.ids),
            self.hard,
        )

    def _levels(self, rows: Contrast, beside: Beside) -> Iterator[Call]:
        """The calls of negatives in other matrices: of one set, or of documents and queries."""
        level = dataclasses.replace(rows, part="level", outside=False, decoupled=False)
        back = self.pairs.reversed()
        # A sample that is another vector as an anchor than as a candidate is in two sets.
        one_set = not rows.metric.raw_anchors  # type: ignore[attr-defined]
        sides = {"qq": self.pairs.of_queries(one_set), "dd": back.of_queries(one_set), "dq": back}
        for name, side in sides.items():
            if name in self.loss.negatives:
                one = dataclasses.replace(level, weighted=side.log_weights is not None)
                yield self._call(one, side, reduction="none", before=Before((), beside))

    def _call(self, description: RowLoss, side: Pairs, **fields: Any) -> Call:
        described = description if isinstance(description, Contrast) else None
        values = []
        if described is not None and described.identified and side.ids is not None:
            values.append(pieces(side.ids))
        if described is not None and described.weighted and side.log_weights is not None:
            values.append(side.log_weights[None])
        if values:
            assert self.scalars is not None
            fields["col_values"] = torch.cat([v.to(self.scalars.dtype) for v in values])
        if described is not None and described.guided:
            fields["teacher"] = side.teacher
        if side.mask is not None:
            fields["predicate"] = side.predicate()
        call = self.loss.partner_call(
            description, side.queries, side.documents, side.where, scalars=self.scalars, **fields
        )
        return call.replace(candidates=None) if side.one_set else call
