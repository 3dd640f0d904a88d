"""A teacher's scores of every query's own candidates, distilled: their margins, or their softmax."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...engine import check
from .listed import ListedLoss

__all__ = ["CandidateKLLoss", "MarginMSELoss"]


class MarginMSELoss(ListedLoss):
    """Squared difference between the student's and the teacher's margins of the first candidate over others.

    *Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation*, Hofstätter et
    al., 2020 (arXiv 2010.02666), equation 8: the mean over a row's candidates k > 0 of
    ((s_0 - s_k) - (t_0 - t_k))^2, averaged over rows.

    Arguments: see `Loss`; similarity "dot" by default, as in the paper. Called as
    `loss(embeddings [B, D], candidates [B, K, D], teacher_scores [B, K])`, K >= 2.
    """

    function = "margin_mse"
    default_similarity = "dot"
    least = 2

    def of_scores(self, student: Tensor, teacher: Tensor) -> Tensor:
        gap = student - teacher
        return (gap[:, :1] - gap[:, 1:]).square().mean(1)


class CandidateKLLoss(ListedLoss):
    """Divergence of the student's softmax over a row's candidates from the teacher's.

    KL(softmax(t / T') || softmax(s / T)) T^2, averaged over rows: *Distilling Dense Representations for
    Ranking using Tightly-Coupled Teachers*, Lin et al., 2020 (arXiv 2010.11386), with Hinton's factor.

    Args:
        temperature: T > 0 of the student.
        teacher_temperature: T' of the teacher; None: T.

    Other arguments: see `Loss`; similarity "dot" by default. Called as
    `loss(embeddings [B, D], candidates [B, K, D], teacher_scores [B, K])`.
    """

    function = "candidate_kl"
    default_similarity = "dot"

    def __init__(
        self, temperature: float = 1.0, *, teacher_temperature: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.temperature = check.positive(temperature, "temperature")
        self.teacher_temperature = (
            None
            if teacher_temperature is None
            else check.positive(teacher_temperature, "teacher_temperature")
        )

    def of_scores(self, student: Tensor, teacher: Tensor) -> Tensor:
        mine = (student / self.temperature).log_softmax(1)
        theirs = (teacher / (self.teacher_temperature or self.temperature)).log_softmax(1)
        return (theirs.exp() * (theirs - mine)).sum(1) * self.temperature**2
