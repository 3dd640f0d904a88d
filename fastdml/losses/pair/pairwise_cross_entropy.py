"""SPCE and PCE: the pairwise losses that cross-entropy bounds and equals."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import statistic_type
from ...engine.registry import register
from ...engine.similarity import without_autocast
from ...engine.summed import add_
from ..base import SIGNED, Loss, SampleLoss, Term, total
from ..pair_means import class_numbers
from ..softmax.row_cross_entropy import RowCrossEntropy

__all__ = ["PCELoss", "SPCELoss"]


@register
@dataclasses.dataclass(frozen=True)
class SPCE(RowCrossEntropy):
    """SPEC 2.6: what is left of the target is a share of 1 / candidates for every positive."""

    name = "spce"
    provenance = "paper, recalled"
    self_pair = "keep"

    temperature: float = 1.0
    per: Literal["positives", "candidates", "pairs", "row"] = "candidates"
    needs_positive: bool = False
    similarity: str = dataclasses.field(default="dot", kw_only=True)


class SPCELoss(SampleLoss):
    """Simplified pairwise cross-entropy.

    *A Unifying Mutual Information View of Metric Learning: Cross-Entropy vs. Pairwise Losses*, Boudiaf
    et al., ECCV 2020 (arXiv 2003.08983), on products of unnormalised embeddings, self pairs included:

        -(1/n^2) sum_{y_i = y_j} x_i.x_j + (1/n) sum_i log sum_j exp(x_i.x_j)

    Arguments: see `SampleLoss`. similarity: "dot" by default.
    """

    function = "spce"
    reductions = SIGNED
    describes = SPCE
    default_similarity = "dot"


class PCELoss(Loss):
    """Pairwise cross-entropy: what the cross-entropy of a ridge-regularised classifier becomes once its
    weights are eliminated.

    Boudiaf et al., ECCV 2020 (arXiv 2003.08983). With p the classifier's softmax (constants of this
    loss) and c_k = (1/n) sum_i p_ik x_i:

        -(1/(2 ridge n^2)) sum_{y_i = y_j} x_i.x_j + (1/n) sum_i log sum_k exp(x_i.c_k / ridge)
        - (1/(2 ridge)) sum_k |c_k|^2

    Pairs appear in sums over classes only: O(n D K) time, O((n + K) D) memory and no [n, n] matrix.

    Args:
        ridge: > 0, the constant of the regulariser.
        backend, validate: see `Loss`.

    One number of the batch, as the square of a class's sum is not of a row: reduction is "mean". The
    pairs are those of the batch, with themselves too: there is neither `indices_tuple` nor `ref_emb`.
    """

    function = "pce"
    mean_over = "one number of the batch"
    default_similarity = "dot"
    similarities = ("dot",)
    reductions = ("mean",)

    def __init__(self, ridge: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ridge = check.positive(ridge, "ridge")

    def description(self) -> SPCE:
        """The half that is a row loss: the classifier's partition function, candidates its centres."""
        return SPCE(self.ridge)

    def calls(self, embeddings: Tensor, labels: Tensor, probabilities: Tensor) -> list[Any]:
        check.embeddings(embeddings, "embeddings", self.validate)
        check.embeddings(probabilities, "probabilities", self.validate)
        check.same_device(probabilities, embeddings, "probabilities", "embeddings")
        n = embeddings.shape[0]
        size = max(1, n)
        if probabilities.shape[0] != n:
            raise ValueError(
                f"probabilities: expected {n} rows, one per row of embeddings, got "
                f"{probabilities.shape[0]}"
            )
        labels = check.labels(labels, n, embeddings.device, "labels", "embeddings")
        with without_autocast(embeddings.device):
            x = embeddings.to(statistic_type(embeddings))
            centres = probabilities.detach().to(x.dtype).t() @ x / size  # [K, D]
            sums = add_(x.new_zeros(x.shape), class_numbers(labels), x)
            rest = -(sums.square().sum() / size**2 + centres.square().sum()) / (2 * self.ridge)
        # A classifier without bias, every centre a candidate and none a positive: row losses are the logs.
        partition = self.call(
            self.description(),
            x,
            candidates=centres,
            anchor_labels=torch.zeros(n, dtype=torch.int64, device=x.device),
            candidate_labels=torch.ones(centres.shape[0], dtype=torch.int64, device=x.device),
        )
        return [partition, Term(lambda value: value, (rest,))]

    def forward(self, embeddings: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
        """The loss of embeddings [n, D], labels [n] of any values and probabilities [n, K]. No gradient
        reaches the probabilities.

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        return total(self.parts(embeddings, labels, probabilities))
