"""Intra-pair variance loss."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check, in_torch
from ...engine.call import Call, statistic_type
from ...engine.counting import row_counts
from ...engine.loss import Piece, RowLoss, Rows
from ...engine.registry import register
from ...language import Row, relu, square, sum
from ...language.described import Described
from ...language.row import TensorRow
from ...mining.batch import Batch
from ..base import SampleLoss
from ..pair_means import mean_similarities
from ..terms import masked_sum, rows_per

__all__ = ["IntraPairVarianceLoss"]


@register
@dataclasses.dataclass(frozen=True)
class IntraPairVariance(Described):
    """Scalars of the call: the mean similarity of positives and of negatives, whose derivatives count."""

    name = "intra_pair_variance"
    provenance = "pytorch-metric-learning"
    learnable = (0.5, 0.1)
    derived = ("sign",)

    pos_eps: float = 0.01
    neg_eps: float = 0.01

    def __post_init__(self) -> None:
        check.finite(self.pos_eps, "pos_eps")
        check.finite(self.neg_eps, "neg_eps")

    def count_scalars(self, positives: Tensor, negatives: Tensor) -> Tensor:
        return torch.cat([rows_per(positives), rows_per(negatives)])

    def costs(self, p: Row) -> tuple[Any, Any]:
        """Of pairs as positives and as negatives."""
        sign = self.sign
        low = relu(sign * ((1 - sign * self.pos_eps) * p.scalar(0) - p.s))
        high = relu(sign * (p.s - (1 + sign * self.neg_eps) * p.scalar(1)))
        return square(low), square(high)

    def row(self, p: Row) -> Any:
        low, high = self.costs(p)
        pull, push = sum(low, where=p.positive), sum(high, where=p.negative)
        return p.scalar(2) * pull + p.scalar(3) * push

    def pieces(self, rows: Rows) -> dict[str, Piece]:
        low, high = self.costs(TensorRow(rows))
        return {
            "pos_loss": Piece("pos_pair", low, rows.positive),
            "neg_loss": Piece("neg_pair", high, rows.negative),
        }


class IntraPairVarianceLoss(SampleLoss):
    """Intra-pair variance loss.

    *Deep Metric Learning with Tuplet Margin Loss*, Yu and Tao, ICCV 2019, equation 9, on cosine
    similarities s:

        mean_P [(1 - pos_eps) mean_P s - s]_+^2 + mean_N [s - (1 + neg_eps) mean_N s]_+^2

    with means over all pairs of the batch. The gradient goes through the inner means too.

    Args:
        pos_eps, neg_eps: as above.
        similarity: "cosine" (the default); on distances d all signs turn: [d - (1 + pos_eps) mean_P d]_+^2
            and [(1 - neg_eps) mean_N d - d]_+^2.

    The inner means come from sums over classes, so that one pass over the pairs is enough; on distances they
    take one more, and torch. With
    reduction="none" the result has one value per row whose mean is the loss. Other arguments: see
    `SampleLoss`.
    """

    function = "intra_pair_variance"
    # Rows come divided by how many of them, or of their pairs, count: not to be divided again.
    reductions = ("mean", "sum", "none")
    open = ("pos_eps", "neg_eps")
    mean_over = "pairs of each kind"
    reducers = {"MeanReducer": "mean"}
    part_names = ("pos_loss", "neg_loss")
    describes = IntraPairVariance

    def __init__(self, pos_eps: float = 0.01, neg_eps: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pos_eps = pos_eps
        self.neg_eps = neg_eps
        self.description()  # checks the parameters

    def sample_call(self, description: RowLoss, batch: Batch, **fields: Any) -> Call:
        if self.similarity in ("cosine", "dot"):
            means = torch.stack(mean_similarities(batch, normalized=self.similarity == "cosine"))
        else:
            call = super().sample_call(RowLoss(similarity=self.similarity), batch, reduction="mean")
            # Where there is no pair at all, rows have one 0 each instead of four.
            sums, counts = in_torch.row_outputs(call, _sums).double().sum(0).expand(4).view(2, 2)
            means = (sums / counts.detach().clamp(min=1)).to(statistic_type(batch.embeddings))
        return super().sample_call(description, batch, scalars=means, **fields)


def _sums(rows: Rows) -> Tensor:
    """[R, 4] sums over positives and over negatives, and how many there are."""
    masks = (rows.positive, rows.negative)
    return torch.stack(
        [*(masked_sum(rows.s, m) for m in masks), *(row_counts(m).to(rows.s.dtype) for m in masks)], dim=1
    )
