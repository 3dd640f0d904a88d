"""Probabilistic knowledge transfer."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...engine.similarity import lengths
from ...language import Row, count, log, maximum, sum, where
from ...language.described import Described, Positive
from .relations import RelationalLoss, check_teacher

__all__ = ["PKTLoss"]


@register
@dataclasses.dataclass(frozen=True)
class ProbabilisticTransfer(Described):
    """SPEC 1.2. A sample is a candidate of its own row."""

    name = "probabilistic_transfer"
    provenance = "released code"
    self_pair = "keep"

    epsilon: Positive = 1e-7

    def __post_init__(self) -> None:
        check.positive(self.epsilon, "epsilon")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(1e-3)]  # 1e-7 amplifies the rounding of a cosine near -1 by as much

    @property
    def teacher_similarity(self) -> str:  # type: ignore[override]
        return self.similarity

    def row(self, p: Row) -> Any:
        every = p.pair
        mine, theirs = ((c + 1) * 0.5 for c in (p.s, p.teacher))
        totals = [sum(k, where=every) for k in (mine, theirs)]
        valid = (totals[0] > 0) & (totals[1] > 0)
        # Rounding may leave a cosine below -1.
        m, q = (
            maximum(0.0, k / where(valid, total, 1.0)) for k, total in zip((mine, theirs), totals)
        )
        terms = q * (log(q + self.epsilon) - log(m + self.epsilon))
        return where(valid, sum(terms, where=every) / maximum(count(where=every), 1), 0.0)


class PKTLoss(RelationalLoss):
    """Probabilistic knowledge transfer.

    *Learning Deep Representations with Probabilistic Knowledge Transfer*, Passalis and Tefas, ECCV
    2018 (arXiv 1803.10837), equations 5 to 8: the affinities (cosine + 1) / 2 of a sample to all
    samples, over their sum, are a distribution p; the loss is the mean over all B^2 pairs of
    q log((q + epsilon) / (p + epsilon)), q the teacher's.

    Args:
        epsilon: > 0.
        variant: "paper", or "released": embeddings are divided by their length plus epsilon, which takes
            a copy of them.

    Other arguments: see `RelationalLoss`.
    """

    function = "pkt"
    similarities = ("cosine",)

    def __init__(self, epsilon: float = 1e-7, *, variant: str = "paper", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check.variant(variant)
        self.epsilon = epsilon
        self.variant = variant
        self.description()  # checks the parameters

    def description(self) -> ProbabilisticTransfer:
        similarity = "dot" if self.variant == "released" else "cosine"
        return ProbabilisticTransfer(self.epsilon, similarity=similarity)

    def calls(self, embeddings: Tensor, teacher: Tensor) -> list[Any]:
        if self.variant == "released":
            check_teacher(embeddings, teacher, "teacher", self.validate)
            embeddings, teacher = (v / (lengths(v) + self.epsilon) for v in (embeddings, teacher))
        return super().calls(embeddings, teacher)
