"""The pair loss beside a cross-batch memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..engine import check
from ..engine.loss import RowLoss, Rows
from ..engine.registry import register
from .base import SampleLoss, sample_loss

__all__ = ["XBMPairLoss", "xbm_pair"]


@register
@dataclasses.dataclass(frozen=True)
class XBMPair(RowLoss):
    """SPEC 2.10. A negative costs its similarity, not its excess over the margin."""

    name = "xbm_pair"
    provenance = "released code"

    margin: float = 0.5
    max_positive: float = 1 - 1e-5

    def __post_init__(self) -> None:
        check.finite(self.margin, "margin")

    def spec(self, rows: Rows) -> Tensor:
        pull = rows.positive & (rows.s < self.max_positive)
        push = rows.negative & (rows.s > self.margin)
        zero = torch.zeros_like(rows.s)
        return torch.where(pull, 1 - rows.s, torch.where(push, rows.s, zero)).sum(1)


class XBMPairLoss(SampleLoss):
    """Contrastive loss of a cross-batch memory, on cosine similarities s.

    The pair loss of *Cross-Batch Memory for Embedding Learning*, Wang et al., CVPR 2020 (arXiv
    1912.06798), as released and used beside SupAP: the mean over rows of

        sum_{P, s < 1 - 1e-5} (1 - s) + sum_{N, s > margin} s

    A negative above the margin costs s itself, so the loss jumps there. Positives that are copies of
    the anchor are dropped.

    Args:
        margin: in units of similarity.

    Other arguments: see `SampleLoss`.
    """

    def __init__(self, margin: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = margin
        self.description()  # checks the parameters

    def description(self) -> XBMPair:
        return XBMPair(self.margin, similarity=self.similarity)


def xbm_pair(
    embeddings: Tensor,
    labels: Tensor | None = None,
    indices_tuple: object = None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.5,
    similarity: str = "cosine",
    **options: Any,
) -> Tensor:
    """Pair loss of a cross-batch memory as a function; see `XBMPairLoss`. options: see `sample_loss`."""
    description = XBMPair(margin, similarity=similarity)
    return sample_loss(
        description, embeddings, labels, indices_tuple, ref_emb, ref_labels, **options
    )
