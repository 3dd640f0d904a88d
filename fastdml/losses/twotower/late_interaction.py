"""Contrastive loss of late interaction: queries and documents are sets of tokens' embeddings."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ...engine import check, late
from ...engine.call import Call
from ...engine.similarity import unit, wide_type
from ..base import Loss, Term, total
from ..terms import nothing
from .info_nce import InfoNCE
from .paired import as_scalars, check_own, partner_columns
from .scale import Tempered, clamped_scale

__all__ = ["LateInteractionLoss"]


@dataclasses.dataclass(frozen=True, eq=False)
class Late:
    """A call whose similarities are those of tokens."""

    call: Call
    queries: late.Tokens
    documents: late.Tokens

    def evaluate(self) -> Tensor:
        return late.value(self.call, self.queries, self.documents)


class LateInteractionLoss(Tempered, Loss):
    """InfoNCE of MaxSim: s_ij = sum over the query's tokens of the largest product with a document's token.

    *ColBERT: Efficient and Effective Passage Search via Contextualized Late Interaction over BERT*,
    Khattab and Zaharia, SIGIR 2020 (arXiv 2004.12832), equation 3, in the cross-entropy of
    softmax_j(s_ij / t) with the target j = i.

    Memory is that of the tokens and of a block: never of all pairs of tokens.

    Args:
        temperature: initial t > 0.
        symmetric: the mean over rows and columns; the products are then made twice.
        learnable: the scale 1 / t is learned, as `log_scale`.
        max_scale: no larger scale is used; see `InfoNCELoss`.
        similarity: "cosine", of tokens brought to length 1 (a copy), or "dot".

    reduction: "mean" or "sum". Other arguments: see `Loss`.
    """

    function = "late_interaction"
    in_torch = "in torch, a block of documents at a time; which token was nearest is kept"
    mean_over = "pairs"
    similarities = ("cosine", "dot")
    reductions = ("mean", "sum")
    positional = ("queries", "documents", "scale")

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        symmetric: bool = False,
        learnable: bool = False,
        max_scale: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(temperature, learnable, max_scale, **kwargs)
        self.symmetric = symmetric

    def calls(
        self,
        queries: Tensor,
        documents: Tensor,
        *,
        query_mask: Tensor | None = None,
        document_mask: Tensor | None = None,
        own: int | Tensor = 0,
        scale: Tensor | float | None = None,
    ) -> list[Any]:
        both = [
            self._tokens(queries, query_mask, "queries", "query_mask"),
            self._tokens(documents, document_mask, "documents", "document_mask"),
        ]
        if queries.shape[2] != documents.shape[2]:
            raise ValueError(
                f"documents: expected tokens of dimension {queries.shape[2]}, got {documents.shape[2]}"
            )
        check.same_device(documents, queries, "documents", "queries")
        kind = wide_type(queries, documents)
        mine, theirs = (late.Tokens(t.x.to(kind), t.kept) for t in both)
        rows, columns, device = mine.count, theirs.count, queries.device
        # What the engine asks of embeddings: how many there are, and their type.
        a, c = (torch.zeros(n, 1, dtype=kind, device=device) for n in (rows, columns))
        own = check_own(own, a, c, ("queries", "documents"))
        if rows == 0:
            return [Term(nothing, (queries, documents))]
        share = 0.5 if self.symmetric else 0.0
        call = Call(
            InfoNCE(1.0 - share, share, similarity="dot"),
            a,
            c,
            partner_columns(own, rows, device),
            torch.arange(columns, device=device),
            scalars=as_scalars({"scale": clamped_scale(self, scale)}, a, c),
            reduction=self.reduction,
            backend=self.backend,
        )
        return [Late(call, mine, theirs)]

    def _tokens(self, x: Tensor, kept: Tensor | None, name: str, mask: str) -> late.Tokens:
        if not isinstance(x, Tensor) or x.dim() != 3 or not x.is_floating_point() or 0 in x.shape[1:]:
            got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name}: expected floats [batch, tokens, dim], got {got}")
        flat = x.reshape(-1, x.shape[2])
        check.embeddings(flat, name, self.validate)
        fits = isinstance(kept, Tensor) and kept.dtype == torch.bool and kept.shape == x.shape[:2]
        if kept is not None and not fits:
            got = f"{kept.dtype} {tuple(kept.shape)}" if isinstance(kept, Tensor) else type(kept).__name__
            raise ValueError(f"{mask}: expected bool {list(x.shape[:2])}, got {got}")
        if kept is not None:
            check.same_device(kept, x, mask, name)
        if kept is not None:  # what is no token is in no gradient either, whatever it holds
            x = x.masked_fill(~kept[:, :, None], 0.0)
        if self.similarity == "cosine":
            flat = x.reshape(-1, x.shape[2])
            x = unit(flat.to(wide_type(flat))).view(x.shape)
        return late.Tokens(x, kept)

    def forward(  # type: ignore[override]
        self,
        queries: Tensor,
        documents: Tensor,
        *,
        query_mask: Tensor | None = None,
        document_mask: Tensor | None = None,
        own: int | Tensor = 0,
    ) -> Tensor:
        """The loss of queries [B, L, D] and documents [N, M, D], tokens' embeddings; query i belongs to
        document i.

        Args:
            query_mask, document_mask: bool [B, L], [N, M], which tokens there are; None: all. A document
                without any has similarity 0.
            own: where the queries' documents stand; see `InfoNCELoss.forward`.

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        return total(
            self.parts(
                queries, documents, query_mask=query_mask, document_mask=document_mask, own=own
            )
        )
