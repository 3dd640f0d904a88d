"""Relaxed contrastive loss: embedding transfer with soft labels."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...engine import check
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, exp, relu, square, sum, where
from ...language.described import Described, Positive
from .relations import RelationalLoss

__all__ = ["RelaxedContrastiveLoss"]


@register
@dataclasses.dataclass(frozen=True)
class RelaxedContrastive(Described):
    """SPEC 1.2. Rows hold distances; the teacher's pairs are squared distances of unit vectors.

    The gradient flows through a row's mean distance. Pairs at a distance of 0 do not count, but in
    the mean. A row of nothing else has a loss of 0.
    """

    name = "relaxed_contrastive"
    provenance = "released code"
    teacher_similarity = "squared_distance"

    sigma: Positive = 1.0
    delta: float = 1.0
    similarity: str = dataclasses.field(default="raw_distance", kw_only=True)

    def __post_init__(self) -> None:
        check.positive(self.sigma, "sigma")
        check.finite(self.delta, "delta")
        check.distance(self.similarity)

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(0.5, 1.5)]

    def row(self, p: Row) -> Any:
        # The pair of a sample with itself has a distance of 0 that counts in the mean.
        mean = sum(p.s, where=p.pair) / p.columns
        # A row of distances 0 has no mean to divide by; its loss is not used.
        r = p.s / where(mean > 0, mean, 1.0)
        w = exp(-p.teacher / self.sigma)
        terms = w * square(r) + (1 - w) * square(relu(self.delta - r))
        return sum(terms, where=p.pair & (p.s > 0))


class RelaxedContrastiveLoss(RelationalLoss):
    """Relaxed contrastive loss.

    *Embedding Transfer with Label Relaxation for Improved Metric Learning*, Kim et al., CVPR 2021
    (arXiv 2103.14908), equation 4: on Euclidean distances d of the embeddings as they are, relative to
    the sample's mean distance, r_ij = d_ij / mean_k d_ik,

        (1/B) sum_ij w_ij r_ij^2 + (1 - w_ij) [delta - r_ij]_+^2,
        w_ij = exp(-|t_i - t_j|^2 / sigma)

    with t the teacher's normalised embeddings. Two augmented views of every image go into the batch.

    Args:
        sigma: > 0, width of the teacher's affinity.
        delta: margin in units of the mean distance.

    Other arguments: see `RelationalLoss`.
    """

    function = "relaxed_contrastive"
    open = ("sigma", "delta")
    describes = RelaxedContrastive
    default_similarity = "raw_distance"

    def __init__(self, sigma: float = 1.0, delta: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sigma = sigma
        self.delta = delta
        self.description()  # checks the parameters
