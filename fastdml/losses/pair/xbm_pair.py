"""The pair loss of cross-batch memory."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...engine import check
from ...engine.loss import RowLoss
from ...engine.registry import register
from ...language import Row, sum
from ...language.described import Described
from ..base import PRODUCTS
from ..duplicates import DroppingDuplicates

__all__ = ["XBMPairLoss"]


@register
@dataclasses.dataclass(frozen=True)
class XBMPair(Described):
    """SPEC 2.10: sums over pairs, no counts. A negative above the margin costs s - offset."""

    name = "xbm_pair"
    provenance = "released code"

    margin: float = 0.5
    offset: float = 0.5
    max_positive: float = float("inf")

    def __post_init__(self) -> None:
        check.finite(self.margin, "margin")

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(0.3, 0.0, 1 - 1e-5)]

    def row(self, p: Row) -> Any:
        kept = p.positive & (p.s < self.max_positive)
        hit = p.negative & (p.s > self.margin)
        return sum(1 - p.s, where=kept) + sum(p.s - self.offset, where=hit)


class XBMPairLoss(DroppingDuplicates):
    """The contrastive loss on similarities of cross-batch memory.

    *Cross-Batch Memory for Embedding Learning*, Wang et al., CVPR 2020 (arXiv 1912.06798):

        (1/B) sum_i ( sum_P (1 - s) + sum_N [s - margin]_+ )

    Sums over pairs, not means: a larger memory (`ref_emb`) makes a larger loss.

    Args:
        margin: similarity above which a negative counts.
        variant: "paper", or "released" for the code in use, which drops positives of similarity
            1 - 1e-5 and above (duplicates) and adds s instead of s - margin for a negative above the
            margin: another value, the same gradient.

    Other arguments: see `SampleLoss`.
    """

    function = "xbm_pair"
    describes = XBMPair
    similarities = PRODUCTS
    open = ("margin",)

    def __init__(self, margin: float = 0.5, *, variant: str = "paper", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = margin
        self.variant = variant
        self.description()  # checks the parameters

    @property
    def offset(self) -> float:
        return 0.0 if self.variant == "released" else self.margin
