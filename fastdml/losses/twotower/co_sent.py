"""Sentence pairs with scores: their similarities should be ordered as the scores are."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ...engine import check
from ...engine.distances import metric_of
from ...engine.similarity import unit, wide_type
from ..base import Loss, Term, total
from .paired import check_pairs

__all__ = ["AnglELoss", "CoSENTLoss"]

ANGLE = "angle"


class CoSENTLoss(Loss):
    """Ranking of scored pairs.

    *CoSENT: Consistent Sentence Embedding via Similarity Ranking*, Huang et al., TASLP 2024, equation 4:
    log(1 + sum exp((s_j - s_i) / t)) over all pairs i, j of the batch of which i has the larger score, s_i
    the similarity of row i of both sets.

    The sum is made of sums over the pairs of smaller scores, in their order: O(B log B), no matrix.

    Args:
        temperature: t > 0.
        compare: "similarity", or "angle": AnglE's, see `AnglELoss`.

    Other arguments: see `Loss`; reduction is of one number. Called as
    `loss(embeddings [B, D], ref_emb [B, D], scores [B])`.
    """

    function: ClassVar[str | None] = "co_sent"
    in_torch = "in torch, on the pairs in the order of their scores"
    reductions = ("mean", "sum")
    mean_over = "the batch, as a whole"

    def __init__(
        self, temperature: float = 0.05, *, compare: str = "similarity", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.temperature = check.positive(temperature, "temperature")
        self.compare = check.one_of(compare, "compare", ("similarity", ANGLE))
        if compare == ANGLE and self.similarity != "cosine":
            raise ValueError(f"similarity: expected 'cosine' with angles, got {self.similarity!r}")

    def calls(self, embeddings: Tensor, ref_emb: Tensor, scores: Tensor) -> list[Any]:
        check_pairs(embeddings, ref_emb, self.validate)
        check.shape(scores, "scores", embeddings.shape[:1], ", one per row of embeddings")
        check.same_device(scores, embeddings, "scores", "embeddings")
        return [Term(self._value, (embeddings, ref_emb, scores.detach()))]

    def _value(self, embeddings: Tensor, ref_emb: Tensor, scores: Tensor) -> Tensor:
        if self.compare == ANGLE:
            s = angle_similarity(embeddings, ref_emb)
        else:
            metric = metric_of(self.similarity)
            s = metric.sign * metric.paired(embeddings, ref_emb)
        return ordered_as(s / self.temperature, scores)

    def forward(  # type: ignore[override]
        self, embeddings: Tensor, ref_emb: Tensor, scores: Tensor
    ) -> Tensor:
        """The loss of row i of embeddings [B, D] and of ref_emb [B, D], whose score is scores[i], any number.

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        return total(self.parts(embeddings, ref_emb, scores))


class AnglELoss(CoSENTLoss):
    """CoSENT of angles of complex embeddings.

    *AnglE-optimized Text Embeddings*, Li and Li, 2023 (arXiv 2309.12871), equation 9, in the released code's
    form: dimension i and i + D/2 are the parts of a complex number, and a pair is compared by |Re + Im| of
    the sum of the quotients of the normalised embeddings (an odd D is filled up with a 0). See `CoSENTLoss`.
    """

    function = None
    sets = ("compare",)

    def __init__(self, temperature: float = 0.05, **kwargs: Any) -> None:
        super().__init__(temperature, compare=ANGLE, **self.unset(kwargs))


def angle_similarity(a: Tensor, c: Tensor) -> Tensor:
    """[M] of rows of a, c [M, D]."""
    kind = wide_type(a, c)
    a, c = unit(a.to(kind)), unit(c.to(kind))
    if a.shape[1] % 2:
        a, c = (torch.nn.functional.pad(x, (0, 1)) for x in (a, c))
    (re_a, im_a), (re_c, im_c) = a.chunk(2, 1), c.chunk(2, 1)
    return ((a * c).sum(1) + (im_a * re_c - re_a * im_c).sum(1)).abs()


def ordered_as(z: Tensor, scores: Tensor) -> Tensor:
    """log(1 + sum of exp(z_j - z_i) over pairs of which i has the larger score), of z and scores [B]."""
    ordered, order = scores.sort()
    z = z[order]
    smaller = torch.searchsorted(ordered, ordered)  # how many scores are below each
    # The log of the sum over the first k, for k = 0, ... B; over none the most negative number.
    sums = torch.cat([z.new_full((1,), torch.finfo(z.dtype).min), torch.logcumsumexp(z, 0)])
    some = smaller > 0
    terms = torch.where(some, sums[smaller] - z, torch.finfo(z.dtype).min)
    return torch.cat([z.new_zeros(1), terms]).logsumexp(0)
