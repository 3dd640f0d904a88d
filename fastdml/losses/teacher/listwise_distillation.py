"""List-wise self-distillation."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...engine import check
from ...engine.lazy import lazy
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, amax, detach, exp, log, log_sum_exp, sum, where
from ...language.described import Described, Positive
from .relations import RelationalLoss

__all__ = ["ListwiseSelfDistillationLoss"]


@register
@dataclasses.dataclass(frozen=True)
class ListwiseDistillation(Described):
    """SPEC 2.12. A sample is a candidate of its own row, in both matrices."""

    name = "listwise_distillation"
    provenance = "released code"
    self_pair = "keep"
    derived = ("away",)

    temperature: Positive = 1.0
    similarity: str = dataclasses.field(default="dot", kw_only=True)

    def __post_init__(self) -> None:
        check.positive(self.temperature, "temperature")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(4.0), cls(0.2, similarity="cosine")]

    @property
    def teacher_similarity(self) -> str:  # type: ignore[override]
        return self.similarity

    @lazy
    def away(self) -> bool:
        """Whether numbers are distances."""
        return self.metric.sign < 0

    def row(self, p: Row) -> Any:
        every, sharpness = p.pair, 1 / self.temperature
        s, t = (-p.s, -p.teacher) if self.away else (p.s, p.teacher)
        mine = sharpness * (s - detach(amax(s, where=every)))
        theirs = sharpness * (t - amax(t, where=every))
        share = exp(theirs)
        total = sum(share, where=every)
        some = total > 0
        total = where(some, total, 1.0)
        entropy = sum(share * (theirs - mine), where=every) / total - log(total)
        return where(some, entropy + log_sum_exp(mine, where=every), 0.0)


class ListwiseSelfDistillationLoss(RelationalLoss):
    """List-wise self-distillation.

    *Improving Generalization of Metric Learning via Listwise Self-distillation*, Zeng et al., 2022
    (arXiv 2206.08880), equation 5: the mean over samples of KL(softmax(t / temperature) || softmax(s /
    temperature)), s the products of the sample with all samples, itself included, t the teacher's.
    The teacher is the network as it was an epoch ago. Add it to another loss.

    Args:
        temperature: > 0.
        similarity: of student and teacher: "dot" as released, or any other, see `SampleLoss`; on distances
            s and t are minus these.
        weight: factor of the loss; the paper's schedule is `scheduled_weight`.

    Other arguments: see `RelationalLoss`.
    """

    function = "listwise_self_distillation"
    open = ("temperature",)
    describes = ListwiseDistillation
    default_similarity = "dot"

    def __init__(self, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature
        self.description()  # checks the parameters

    def scheduled_weight(self, epoch: int, epochs: int, alpha: float = 200.0) -> float:
        """The paper's weight in an epoch: (epoch / epochs) alpha temperature^2."""
        return epoch / epochs * alpha * self.temperature**2
