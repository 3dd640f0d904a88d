"""SPCE and PCE: the pairwise losses that cross-entropy bounds and equals."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...engine import autograd, check
from ...engine.dispatch import check_backend
from ...engine.op import statistic_type
from ...engine.registry import handle, register
from ..base import SampleLoss, sample_loss
from ..pair_means import class_numbers
from ..representation import arguments
from ..softmax.row_cross_entropy import RowCrossEntropy

__all__ = ["PCELoss", "SPCELoss", "pce", "spce"]


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

    default_similarity = "dot"

    def description(self) -> SPCE:
        return SPCE(similarity=self.similarity)


def spce(
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: object = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    similarity: str = "dot",
    **options: Any,
) -> Tensor:
    """Simplified pairwise cross-entropy as a function; see `SPCELoss`. options: see `sample_loss`."""
    description = SPCE(similarity=similarity)
    return sample_loss(
        description, embeddings, labels, indices_tuple, ref_emb, ref_labels, **options
    )


class PCELoss(nn.Module):
    """Pairwise cross-entropy: what the cross-entropy of a ridge-regularised classifier becomes once its
    weights are eliminated.

    Boudiaf et al., ECCV 2020 (arXiv 2003.08983). With p the classifier's softmax (constants of this
    loss) and c_k = (1/n) sum_i p_ik x_i:

        -(1/(2 ridge n^2)) sum_{y_i = y_j} x_i.x_j + (1/n) sum_i log sum_k exp(x_i.c_k / ridge)
        - (1/(2 ridge)) sum_k |c_k|^2

    Pairs appear in sums over classes only: O(n D K) time, O((n + K) D) memory and no [n, n] matrix.

    Args:
        ridge: > 0, the constant of the regulariser.
        backend, validate: see `SampleLoss`.

    One number of the batch, as the square of a class's sum is not of a row: there is no `reduction`. The
    pairs are those of the batch, with themselves too: there is neither `indices_tuple` nor `ref_emb`.
    """

    def __init__(
        self, ridge: float = 1.0, *, backend: str = "auto", validate: bool = False
    ) -> None:
        super().__init__()
        check_backend(backend)
        self.ridge = check.positive(ridge, "ridge")
        self.backend = backend
        self.validate = validate

    def description(self) -> SPCE:
        """The half that is a row loss: the classifier's partition function, candidates its centres."""
        return SPCE(self.ridge)

    def extra_repr(self) -> str:
        return arguments(self)

    def forward(self, embeddings: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
        """The loss of embeddings [n, D], labels [n] of any values and probabilities [n, K]."""
        return pce(
            embeddings,
            labels,
            probabilities,
            ridge=self.ridge,
            backend=self.backend,
            validate=self.validate,
        )


def pce(
    embeddings: Tensor,
    labels: Tensor,
    probabilities: Tensor,
    *,
    ridge: float = 1.0,
    backend: str = "auto",
    validate: bool = False,
) -> Tensor:
    """Pairwise cross-entropy of embeddings [n, D]; see `PCELoss`. No gradient reaches probabilities.

    Raises:
        ValueError: naming the argument and what was expected of it.
    """
    check_backend(backend)
    check.positive(ridge, "ridge")
    check.embeddings(embeddings, "embeddings", validate)
    check.embeddings(probabilities, "probabilities", validate)
    check.same_device(probabilities, embeddings, "probabilities", "embeddings")
    n = embeddings.shape[0]
    if probabilities.shape[0] != n:
        raise ValueError(
            f"probabilities: expected {n} rows, one per row of embeddings, got {probabilities.shape[0]}"
        )
    labels = check.labels(labels, n, embeddings.device, "labels", "embeddings")
    with torch.autocast(embeddings.device.type, enabled=False):
        return _pce(embeddings, labels, probabilities.detach(), ridge, backend)


def _pce(
    embeddings: Tensor, labels: Tensor, probabilities: Tensor, ridge: float, backend: str
) -> Tensor:
    n = embeddings.shape[0]
    kind = statistic_type(embeddings)
    x = embeddings.to(kind)
    centres = probabilities.to(kind).t() @ x / n  # [K, D]
    # A classifier without bias, every centre a candidate and none a positive: row losses are the logs.
    rows = torch.zeros(n, dtype=torch.int64, device=x.device)
    columns = torch.ones(centres.shape[0], dtype=torch.int64, device=x.device)
    partition = autograd.row_loss(
        x,
        centres,
        rows,
        columns,
        loss=handle(SPCE(ridge)),
        backend=backend,
    )
    sums = torch.zeros_like(x).index_add(0, class_numbers(labels), x)
    return partition - (sums.square().sum() / n**2 + centres.square().sum()) / (2 * ridge)
