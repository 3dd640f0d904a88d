"""SupAP: a smooth upper bound of 1 - average precision."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ..base import PRODUCTS, SampleLoss
from ..terms import sort_code

__all__ = ["SupAPLoss"]


@register
@dataclasses.dataclass(frozen=True)
class SupAP(RowLoss):
    """SPEC 2.10. A query is its own positive."""

    name = "sup_ap"
    provenance = "released code"
    self_pair = "keep"
    threshold_list = True

    temperature: float = 0.01
    rho: float = 100.0
    delta: float = 0.05
    offset: float = 1.44
    start: float = 0.5
    sort: bool | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        sort_code(self.sort)
        check.positive(self.temperature, "temperature")
        for name in ("rho", "delta", "offset", "start"):
            check.non_negative(getattr(self, name), name)

    def parameters(self) -> tuple[float, ...]:
        return (
            self.temperature,
            self.rho,
            self.delta,
            self.offset,
            self.start,
            sort_code(self.sort),
        )

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(temperature=0.05, rho=20.0, delta=0.1, offset=1.0, start=0.0, sort=True)]

    def spec(self, rows: Rows) -> Tensor:
        threshold, _, valid = rows.thresholds()
        t = rows.s[:, None, :] - threshold[:, :, None]
        sigma = torch.sigmoid(t / self.temperature)
        # Equal similarities (duplicates) tie however their last digits fell.
        tie = 8 * torch.finfo(t.dtype).eps
        gentle = sigma + torch.where(t > tie, self.start, 0.0)
        height = torch.where(t > self.delta, self.rho * (t - self.delta) + self.offset, gentle)
        rank_own = ((t >= -tie) & rows.positive[:, None, :]).sum(2).to(t.dtype)
        rank_all = rank_own + (height * rows.negative[:, None, :]).sum(2)
        precision = torch.where(valid, rank_own / rank_all.clamp(min=1e-30), 0.0)
        count = valid.sum(1)
        loss = 1 - precision.sum(1) / count.clamp(min=1)
        return torch.where(count > 0, loss, torch.zeros_like(loss))


class SupAPLoss(SampleLoss):
    """SupAP loss, the ranking half of ROADMAP.

    *Robust and Decomposable Average Precision for Image Retrieval*, Ramzi et al., NeurIPS 2021 (arXiv
    2110.01445), equations 4 to 6, on cosine similarities: 1 - mean over queries of

        (1/|P|) sum_{k in P} r_k / (r_k + sum_{j in N} h(s_j - s_k))

    where r_k counts the positives ranked no lower than k (no gradient) and h is sigmoid(t/temperature)
    for t <= 0, start + sigmoid(t/temperature) up to delta, and rho (t - delta) + offset beyond, so
    that a negative far above a positive keeps its gradient. A query counts among its own positives,
    as in the released code. Similarities closer than 8 units of rounding are equal. Classes may have
    any sizes and labels any order. With `ref_emb` the positives are those in `ref_emb`; queries
    without any have a loss of 0.

    Args:
        temperature: > 0, width of the sigmoid in units of similarity.
        rho, delta, offset, start: >= 0, as above. Defaults are the released ones. The height that
            makes h continuous at delta is offset = start + sigmoid(delta/temperature) (1.4933 for the
            defaults, the paper's definition); the released iNaturalist setting is start=0, offset=1.
        sort: whether a row of similarities is sorted once, so that only the pairs within the loss's
            window of a positive are evaluated one by one: None where a class is large enough for
            that to pay, on CUDA for more than 256 candidates of one class; True always, False never.
            The result is the same to rounding: a sigmoid is cut off where it is within 1e-13
            (float64: 3e-20) of 0 or 1.

    Other arguments: see `SampleLoss`.
    """

    function = "sup_ap"
    similarities = PRODUCTS
    describes = SupAP

    def __init__(
        self,
        temperature: float = 0.01,
        rho: float = 100,
        delta: float = 0.05,
        offset: float = 1.44,
        start: float = 0.5,
        sort: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature
        self.rho = rho
        self.delta = delta
        self.offset = offset
        self.start = start
        self.sort = sort
        self.description()  # checks the parameters
