"""SigLIP: the sigmoid loss of image and text pairs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import Call
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, count, maximum, softplus, sum
from ...language.described import Described
from ..base import total
from .paired import PairedLoss, as_scalars, check_own, check_sets
from .scale import clamped_scale

__all__ = ["SigLIPLoss"]


@register
@dataclasses.dataclass(frozen=True)
class SigLIP(Described):
    """SPEC 3.7. Learnable scalars: scale and bias."""

    name = "siglip"
    provenance = "released code"
    learnable = (10.0, -10.0)
    graded = True
    additive = True

    def row(self, p: Row) -> Any:
        u = p.scalar(0) * p.s + p.scalar(1)
        pull = sum(p.graded(softplus(-u)), where=p.positive)
        return pull + sum(softplus(u), where=p.negative)


@register
@dataclasses.dataclass(frozen=True)
class SigLIPPlus(Described):
    """SigLIP of rows with several positives, which weigh one over how many the row has; of columns, the
    mean of that and of one over how many the column has, which is the first value of the column.

    Learnable scalars: scale and bias.
    """

    name = "siglip_plus"
    provenance = "siglip-kernel"
    learnable = (10.0, -10.0)

    of_columns: bool = True

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(False)]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        found = super().example_values(rows, columns)
        return found | ({"col_values": torch.linspace(0.2, 1.0, columns)[None]} if self.of_columns else {})

    def row(self, p: Row) -> Any:
        u = p.scalar(0) * p.s + p.scalar(1)
        pull, push = softplus(-u), sum(softplus(u), where=p.negative)
        share = 1.0 / maximum(count(where=p.positive), 1.0)
        mine = share * sum(pull, where=p.positive)
        if not self.of_columns:
            return mine + push
        return 0.5 * (mine + sum(p.column(0) * pull, where=p.positive)) + push


POSITIVE_WEIGHTS = ("each", "rows", "both")


class SigLIPLoss(PairedLoss):
    """Sigmoid loss of image and text pairs.

    *Sigmoid Loss for Language Image Pre-Training*, Zhai et al., ICCV 2023 (arXiv 2303.15343),
    equation 1: (1/B) sum_ij softplus(-z_ij (t s_ij + b)), z = 1 for a pair and -1 otherwise.

    Args:
        init_scale, init_bias: initial t > 0 and b. Learnable as `log_scale` and `bias`.
        positive_weights: what the pairs of a row with several weigh: "each", 1; "rows", one over how many the
            row has; "both", the mean of that and of one over how many the column has, as in SigLIP+ (which
            divides by B N, not by B).
        max_scale: no larger scale is used; see `InfoNCELoss`.

    Other arguments: see `SampleLoss`.
    """

    function = "siglip"
    mean_over = "pairs"
    describes = SigLIP
    positional = ("embeddings", "ref_emb", "scale", "bias")
    inputs = {"scale": ("init_scale", "max_scale"), "bias": ("init_bias",)}

    log_scale: Tensor
    bias: Tensor

    def __init__(
        self,
        init_scale: float = 10.0,
        init_bias: float = -10.0,
        *,
        positive_weights: str = "each",
        max_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        scale, bias = check.positive(init_scale, "init_scale"), check.finite(init_bias, "init_bias")
        self.learn("log_scale", torch.tensor(math.log(scale), dtype=torch.float64))
        self.learn("bias", torch.tensor(bias, dtype=torch.float64))
        self.positive_weights = check.one_of(positive_weights, "positive_weights", POSITIVE_WEIGHTS)
        self.max_scale = None if max_scale is None else check.positive(max_scale, "max_scale")
        self.description()  # checks the similarity

    def description(self) -> RowLoss:
        check.larger_for_alike(self.similarity)
        if self.positive_weights == "each":
            return super().description()
        return SigLIPPlus(self.positive_weights == "both", similarity=self.similarity)

    def calls(
        self,
        embeddings: Tensor,
        ref_emb: Tensor,
        labels: Tensor | None = None,
        *,
        ref_labels: Tensor | None = None,
        own: int | Tensor = 0,
        positives: Callable[..., Any] | None = None,
        scale: Tensor | float | None = None,
        bias: Tensor | float | None = None,
    ) -> list[Any]:
        check_sets(embeddings, ref_emb, self.validate)
        values = {
            "scale": clamped_scale(self, scale),
            "bias": self.bias if bias is None else bias,
        }
        scalars = as_scalars(values, embeddings, ref_emb)
        if (labels is not None or positives is not None) and not (isinstance(own, int) and own == 0):
            raise ValueError("own: expected 0 where something else says what belongs together")
        if labels is None and ref_labels is not None:
            raise ValueError("ref_labels: expected None without labels")
        if positives is not None:
            check.function(positives, "positives")
            if labels is not None or self.positive_weights == "both":
                name = "labels" if labels is not None else "positive_weights"
                raise ValueError(f"{name}: expected another value with a function of positives")
            call = self.call(
                self.description(), embeddings, candidates=ref_emb, predicate=positives, scalars=scalars
            )
        elif labels is not None:
            call = self._labelled(embeddings, ref_emb, labels, ref_labels, scalars)
        else:
            where = check_own(own, embeddings, ref_emb)
            call = self.partner_call(self.description(), embeddings, ref_emb, where, scalars=scalars)
        if self.positive_weights == "both":
            call = call.replace(col_values=_shares_of_columns(call)[None])
        return [call]

    def _labelled(
        self,
        embeddings: Tensor,
        ref_emb: Tensor,
        labels: Tensor,
        ref_labels: Tensor | None,
        scalars: Tensor | None,
    ) -> Call:
        rows, columns = embeddings.shape[0], ref_emb.shape[0]
        mine = check.labels(labels, rows, embeddings.device, "labels", "embeddings")
        if ref_labels is None and rows != columns:
            raise ValueError(f"ref_labels: expected {columns} labels of ref_emb, got None")
        theirs = mine
        if ref_labels is not None:
            theirs = check.labels(ref_labels, columns, ref_emb.device, "ref_labels", "ref_emb")
        return self.call(
            self.description(), embeddings, candidates=ref_emb, anchor_labels=mine,
            candidate_labels=theirs, scalars=scalars,
        )  # fmt: skip

    def forward(  # type: ignore[override]
        self,
        embeddings: Tensor,
        ref_emb: Tensor,
        labels: Tensor | None = None,
        *,
        ref_labels: Tensor | None = None,
        own: int | Tensor = 0,
        positives: Callable[..., Any] | None = None,
    ) -> Tensor:
        """The loss of row i of embeddings [B, D] paired with row i of ref_emb [N, D], N >= B.

        Args:
            labels, ref_labels: int64 [B], [N]: rows of both sets belong together where these are equal
                (ref_labels None: those of row i of both are labels[i]), rather than by their places.
            own: where the rows' partners stand in ref_emb; see `InfoNCELoss.forward`.
            positives: a function of indices says which pairs are positives and how much they weigh
                (`fastdml.labels.LabelSets`, docs/labels.md): several of a row.

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        return total(
            self.parts(
                embeddings, ref_emb, labels, ref_labels=ref_labels, own=own, positives=positives
            )
        )


def _shares_of_columns(call: Call) -> Tensor:
    """[N] one over how many rows belong to each column; 1 where none does."""
    rows, columns = call.anchor_labels, call.candidate_labels
    assert rows is not None and columns is not None and call.scalars is not None
    found = rows.sort().values
    same = torch.searchsorted(found, columns, right=True) - torch.searchsorted(found, columns)
    return same.clamp(min=1).to(call.scalars.dtype).reciprocal()
