"""Recall@k surrogate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.loss import RowLoss, Rows
from ...engine.registry import register
from ...mining.batch import checked
from ...mixing import similarity_mixup
from ..base import PRODUCTS, SampleLoss
from ..terms import sort_code

__all__ = ["RecallAtKLoss"]


SLOTS = 12  # csrc/rows/recall_at_k.h


@register
@dataclasses.dataclass(frozen=True)
class RecallAtK(RowLoss):
    """SPEC 3.2. The query is a candidate of its own ranking but not one of its positives."""

    name = "recall_at_k"
    provenance = "released code"
    outputs = 2
    counted = True
    threshold_list = True
    unlisted = True

    k: tuple[int, ...] = (1, 2, 4, 8, 16)
    rank_temperature: float = 0.01
    recall_temperature: float = 1.0
    exclude_self: bool = False
    sort: bool | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        sort_code(self.sort)
        check.positive(self.rank_temperature, "rank_temperature")
        check.positive(self.recall_temperature, "recall_temperature")
        if not 1 <= len(self.k) <= SLOTS:
            raise ValueError(f"k: expected 1 to {SLOTS} positive integers, got {self.k}")
        for k in self.k:
            check.count(k, "k")

    def parameters(self) -> tuple[float, ...]:
        padded = (*self.k, *([1] * (SLOTS - len(self.k))))
        widths = (self.rank_temperature, self.recall_temperature)
        switches = (sort_code(self.sort), float(not self.exclude_self), float(len(self.k)))
        return (*widths, *switches, *(float(k) for k in padded))

    @classmethod
    def examples(cls) -> list[RowLoss]:
        return [cls(), cls(k=(3, 1), rank_temperature=0.1, exclude_self=True, sort=True)]

    def spec(self, rows: Rows) -> Tensor:
        threshold, index, valid = rows.thresholds()
        above = torch.sigmoid((rows.s[:, None, :] - threshold[:, :, None]) / self.rank_temperature)
        above = above.scatter(2, index[:, :, None], 0.0)  # j = i is not a competitor
        counted = rows.positive | rows.negative
        if rows.pair is not None and not self.exclude_self:
            counted = counted | ~rows.pair
        above = above * counted[:, None, :]
        rank = 1 + above.sum(2)
        count = valid.sum(1)
        # Of how many candidates a ranking is, the query's own copy among them.
        size = (rows.positive | rows.negative).sum(1)
        size = size if rows.pair is None else size + (~rows.pair).sum(1)
        recall = torch.zeros_like(rows.s[:, 0])
        for k in self.k:
            within = size.clamp(max=k)
            found = torch.sigmoid((within[:, None] - rank) / self.recall_temperature) * valid
            full = torch.minimum(count.clamp(min=1), within)
            recall = recall + torch.minimum(found.sum(1), within) / full.clamp(min=1)
        present = (count > 0).to(rows.s.dtype)
        return torch.stack([(1 - recall / len(self.k)) * present, present], dim=1)


class RecallAtKLoss(SampleLoss):
    """Recall@k surrogate loss.

    *Recall@k Surrogate Loss with Large Batches and Similarity Mixup*, Patel et al., CVPR 2022 (arXiv
    2108.11179), equations 3 to 5, on cosine similarities. For a query with positives P (itself not
    among them), with rank_i = 1 + sum_{j != i} sigmoid((s_j - s_i) / rank_temperature),

        recall_k = min(sum_{i in P} sigmoid((k - rank_i) / recall_temperature), k) / min(k, |P|)

    and the loss is 1 - the mean of recall_k over the given k, averaged over the queries that have a
    positive. A k above the number of candidates counts as that number.

    Args:
        k: a positive integer, or 1 to 12 of them.
        rank_temperature: > 0, width of a rank's sigmoid in units of similarity.
        recall_temperature: > 0, width of the sigmoid around k in units of rank.
        exclude_self: False, as released: the query, at similarity 1, takes a place in its own ranking
            and adds about 1 to each rank. True: it does not.
        sort: whether a row of similarities is sorted once, so that only the pairs within the loss's
            window of a positive are evaluated one by one: None where a class is large enough for
            that to pay, on CUDA for more than 256 candidates of one class; True always, False never.
            With None, rows of half and float32 may also be compared on a mesh on the CPU, where that
            costs less still (classes of about 50 or more). The result is the same to rounding: a
            sigmoid is cut off where it is within 1e-13 (float64: 3e-20) of 0 or 1.
        simix: adds a mixture of every pair of samples of one class to the batch (section 3.3 of the
            paper; see `fastdml.mixing.similarity_mixup`), freshly drawn by torch's generator in every
            call in training mode. With similarity "cosine" only, and without other candidates.

    Other arguments: see `SampleLoss`.
    """

    function = "recall_at_k"
    similarities = PRODUCTS
    mean_over = "queries with a positive"
    describes = RecallAtK

    def __init__(
        self,
        k: int | Sequence[int] = (1, 2, 4, 8, 16),
        rank_temperature: float = 0.01,
        recall_temperature: float = 1.0,
        exclude_self: bool = False,
        sort: bool | None = None,
        simix: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.simix = simix
        if simix and self.similarity != "cosine":
            raise ValueError(f"similarity: expected 'cosine' with simix, got {self.similarity!r}")
        self.k = _several(k)
        self.rank_temperature = rank_temperature
        self.recall_temperature = recall_temperature
        self.exclude_self = exclude_self
        self.sort = sort
        self.description()  # checks the parameters

    def rest(self) -> None:
        """In either mode: what mixtures are drawn with is torch's."""

    def calls(self, *batch: Any, own: int | Tensor | None = None) -> list[Any]:
        if not (self.simix and self.training):
            return super().calls(*batch, own=own)
        embeddings, labels, *others = batch
        if labels is None or any(x is not None for x in (*others, own)):
            raise ValueError(
                "simix: expected labels, and neither indices_tuple nor ref_emb, with it"
            )
        mixed, labels = similarity_mixup(embeddings, labels)
        # Of mixtures and unit vectors, the product: a mixture of similarities.
        description = dataclasses.replace(self.description(), similarity="dot")
        return [self.sample_call(description, checked(mixed, labels, validate=self.validate))]


def _several(k: int | Sequence[int]) -> tuple[int, ...]:
    one = not isinstance(k, Iterable) or (isinstance(k, Tensor) and k.dim() == 0)
    return tuple(check.count(number, "k") for number in ((k,) if one else k))  # type: ignore
