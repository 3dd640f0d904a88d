"""Smooth-AP: average precision with sigmoid ranks."""

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

__all__ = ["SmoothAPLoss"]


@register
@dataclasses.dataclass(frozen=True)
class SmoothAP(RowLoss):
    """SPEC 3.1. A query is its own positive."""

    name = "smooth_ap"
    provenance = "released code"
    self_pair = "keep"
    tuples = "weights"
    threshold_list = True

    temperature: float = 0.01
    sort: bool | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        sort_code(self.sort)
        check.positive(self.temperature, "temperature")

    def parameters(self) -> tuple[float, ...]:
        return (self.temperature, sort_code(self.sort))

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(0.1), cls(sort=True)]

    def spec(self, rows: Rows) -> Tensor:
        threshold, index, valid = rows.thresholds()
        # above[q, k, j]: how far candidate j ranks above positive k, smoothly.
        above = torch.sigmoid((rows.s[:, None, :] - threshold[:, :, None]) / self.temperature)
        above = above.scatter(2, index[:, :, None], 0.0)  # j = k is not a competitor
        above = above * (rows.positive | rows.negative)[:, None, :]
        rank_all = 1 + above.sum(2)
        rank_own = 1 + (above * rows.positive[:, None, :]).sum(2)
        precision = torch.where(valid, rank_own / rank_all, torch.zeros_like(rank_all))
        count = valid.sum(1)
        loss = 1 - precision.sum(1) / count.clamp(min=1)
        return torch.where(count > 0, loss, torch.zeros_like(loss))


class SmoothAPLoss(SampleLoss):
    """Smooth-AP loss.

    *Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval*, Brown et al., ECCV 2020
    (arXiv 2007.12163), equations 6 and 7, on cosine similarities: 1 - mean over queries of

        (1/|P|) sum_{k in P} (1 + sum_{j in P, j != k} sigma_jk) / (1 + sum_{j != k} sigma_jk)

    with sigma_jk = sigmoid((s_j - s_k) / temperature). A query counts among its own positives, as in
    the released code. Classes may have any sizes and labels any order; without `ref_emb` the value
    equals the released code's where classes are equal and contiguous, which that code requires.
    With `ref_emb` the positives are those in `ref_emb`; queries without any have a loss of 0.

    Args:
        temperature: > 0, width of the sigmoid in units of similarity.
        sort: whether a row of similarities is sorted once, so that only the pairs within the loss's
            window of a positive are evaluated one by one: None where a class is large enough for
            that to pay, on CUDA for more than 256 candidates of one class; True always, False never.
            With None, rows of half and float32 may also be compared on a mesh on the CPU, where that
            costs less still (classes of about 50 or more). The result is the same to rounding: a
            sigmoid is cut off where it is within 1e-13 (float64: 3e-20) of 0 or 1.

    Other arguments: see `SampleLoss`.
    """

    function = "smooth_ap"
    similarities = PRODUCTS
    describes = SmoothAP

    def __init__(self, temperature: float = 0.01, sort: bool | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature
        self.sort = sort
        self.description()  # checks the parameters
