"""PNP: penalising negative instances before positive ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import Call, statistic_type
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ...mining.batch import Batch
from ..base import PRODUCTS, SampleLoss
from ..terms import sort_code

__all__ = ["PNPLoss"]


_VARIANTS = {"O": 0, "Ds": 1, "Dq": 2, "Iu": 3, "Ib": 4}


@register
@dataclasses.dataclass(frozen=True)
class PNP(RowLoss):
    """A penalty of the smooth number of negatives ahead of each positive. A query is its own.

    row_values: how many of the row's positives are its own copy, 1 or 0: it counts with more than those.
    """

    name = "pnp"
    provenance = "pytorch-metric-learning"
    self_pair = "keep"
    outputs = 2
    counted = True
    threshold_list = True

    variant: str = "O"
    b: float = 2.0
    alpha: float = 1.0
    anneal: float = 0.01
    sort: bool | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        sort_code(self.sort)
        check.one_of(self.variant, "variant", list(_VARIANTS))
        for name in ("b", "alpha"):
            check.positive(getattr(self, name), name)
        check.positive(self.anneal, "anneal")

    def parameters(self) -> tuple[float, ...]:
        return (
            float(_VARIANTS[self.variant]),
            self.b,
            self.alpha,
            self.anneal,
            sort_code(self.sort),
        )

    @classmethod
    def examples(cls) -> list[RowLoss]:
        sorts = (None, True, False, True, False)
        pairs = zip(_VARIANTS, sorts)
        return [cls(variant=v, anneal=0.05, sort=sort) for v, sort in pairs]

    def example_values(self, rows: int, columns: int) -> dict[str, Tensor]:
        return {"row_values": torch.full((rows, 1), float(rows == columns))}

    def penalty(self, r: Tensor) -> Tensor:
        if self.variant == "Ds":
            return (1 + r).log()
        if self.variant == "Dq":
            return 1 - (1 + r) ** -self.alpha
        if self.variant == "Iu":
            return (1 + r) * (1 + r).log()
        if self.variant == "Ib":
            return (self.b * r - (1 + self.b * r).log()) / self.b**2
        return r

    def spec(self, rows: Rows) -> Tensor:
        threshold, _, valid = rows.thresholds()
        above = torch.sigmoid((rows.s[:, None, :] - threshold[:, :, None]) / self.anneal)
        ahead = (above * rows.negative[:, None, :]).sum(2)
        count = valid.sum(1)
        own = 0 if rows.row_values is None else rows.row_values[:, 0]
        counts = count - own > 0.5
        loss = (self.penalty(ahead) * valid).sum(1) / count.clamp(min=1) * counts
        return torch.stack([loss, counts.to(loss.dtype)], dim=1)


class PNPLoss(SampleLoss):
    """PNP loss: penalises the negatives before each positive.

    *Rethinking the Optimization of Average Precision: Only Penalizing Negative Instances before
    Positive Ones is Enough*, Li et al., 2021 (arXiv 2102.04640), equations 6 to 13, on cosine
    similarities. With r_k = sum_{n in N} sigmoid((s_n - s_k) / anneal) negatives ahead of positive k,
    the loss is the mean over a query's positives, itself among them, and over queries that have
    another one, of

        O: r    Ds: log(1 + r)    Dq: 1 - (1 + r)^-alpha    Iu: (1 + r) log(1 + r)
        Ib: (b r - log(1 + b r)) / b^2

    Args:
        b: > 0, of variant "Ib". alpha: > 0, of variant "Dq".
        anneal: > 0, width of the sigmoid in units of similarity.
        variant: as above.
        sort: whether a row of similarities is sorted once, so that only the pairs within the loss's
            window of a positive are evaluated one by one: None where a class is large enough for
            that to pay, on CUDA for more than 256 candidates of one class; True always, False never.
            With None, rows of half and float32 may also be compared on a mesh on the CPU, where that
            costs less still (classes of about 50 or more). The result is the same to rounding: a
            sigmoid is cut off where it is within 1e-13 (float64: 3e-20) of 0 or 1.

    Other arguments: see `SampleLoss`.
    """

    VARIANTS = tuple(_VARIANTS)
    one_number = "mean"

    function = "pnp"
    describes = PNP
    similarities = PRODUCTS
    reducers = {"MeanReducer": "mean", "AvgNonZeroReducer": "nonzero"}
    mean_over = "queries with a positive"

    def __init__(
        self,
        b: float = 2,
        alpha: float = 1,
        anneal: float = 0.01,
        variant: str = "O",
        sort: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.b = b
        self.alpha = alpha
        self.anneal = anneal
        self.variant = variant
        self.sort = sort
        self.description()  # checks the parameters

    def sample_call(self, description: RowLoss, batch: Batch, **fields: Any) -> Call:
        own = (batch.own_columns() >= 0)[:, None].to(
            statistic_type(batch.embeddings, batch.ref_emb)
        )
        return super().sample_call(description, batch, row_values=own, **fields)
