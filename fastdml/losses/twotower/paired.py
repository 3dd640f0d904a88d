"""What losses of paired embeddings share: row i of one set belongs to a row of the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import Call, statistic_type
from ...engine.loss import RowLoss
from ..base import Loss, total

Own = int | Tensor


def check_pairs(embeddings: Tensor, ref_emb: Tensor, validate: bool) -> None:
    """Two sets of embeddings, row by row."""
    check_sets(embeddings, ref_emb, validate)
    rows, others = embeddings.shape[0], ref_emb.shape[0]
    if rows != others:
        raise ValueError(f"ref_emb: expected {rows} rows, one per row of embeddings, got {others}")


def check_sets(embeddings: Tensor, ref_emb: Tensor, validate: bool) -> None:
    """Two sets of embeddings of one space."""
    check.embeddings(embeddings, "embeddings", validate)
    check.embeddings(ref_emb, "ref_emb", validate)
    check.same_space(embeddings, ref_emb, "embeddings", "ref_emb")


def check_own(
    own: Own, embeddings: Tensor, ref_emb: Tensor, names: tuple[str, str] = ("embeddings", "ref_emb")
) -> Own:
    """Where the rows' partners stand in ref_emb; there must be as many of them from a number on. names: what
    the two are called."""
    rows, partners = names
    found = check.own(own, embeddings, ref_emb.shape[0], partners)
    needed = embeddings.shape[0] + (found if isinstance(found, int) else 0)
    if isinstance(found, int) and ref_emb.shape[0] < needed:
        from_there = f" from row {found} on" if found else ""
        raise ValueError(
            f"{partners}: expected {needed} rows, one per row of {rows}{from_there}, got "
            f"{ref_emb.shape[0]}"
        )
    return found


def partners(x: Tensor, own: Own, rows: int) -> Tensor:
    """[rows, ...] of x [N, ...]: those of the rows; any, for rows that have none."""
    if isinstance(own, Tensor):
        return x[own.clamp(min=0)]
    return x if own == 0 and x.shape[0] == rows else x[own : own + rows]


def partner_columns(own: Own, rows: int, device: torch.device) -> Tensor:
    """int64 [rows]: the columns of the rows' partners; -1 for rows that have none."""
    if isinstance(own, Tensor):
        return own
    return torch.arange(own, own + rows, device=device)


def as_scalars(
    values: Mapping[str, Tensor | float], embeddings: Tensor, ref_emb: Tensor
) -> Tensor | None:
    """[n] of the type of statistics; values, by the names of the arguments that they are, may be tensors of
    one element that want a gradient."""
    kind = statistic_type(embeddings, ref_emb)
    found = [
        torch.as_tensor(
            check.scalar(v, name, embeddings), dtype=kind, device=embeddings.device
        ).reshape(())
        for name, v in values.items()
    ]
    return torch.stack(found) if found else None


class PairedLoss(Loss):
    """A loss called as `loss(embeddings [B, D], ref_emb [B, D])`. Keyword arguments: see `Loss`."""

    paired = True

    def paired_call(
        self,
        description: RowLoss,
        embeddings: Tensor,
        ref_emb: Tensor,
        scalars: Mapping[str, Tensor | float],
        **fields: Any,
    ) -> Call:
        """The call of pairs, row by row."""
        check_pairs(embeddings, ref_emb, self.validate)
        return self.partner_call(
            description, embeddings, ref_emb, 0, scalars=as_scalars(scalars, embeddings, ref_emb), **fields
        )

    def partner_call(
        self, description: RowLoss, embeddings: Tensor, ref_emb: Tensor, own: Own, **fields: Any
    ) -> Call:
        """The call of rows whose partners stand at `own` in ref_emb; everything is checked."""
        device, (rows, columns) = embeddings.device, (embeddings.shape[0], ref_emb.shape[0])
        theirs = torch.arange(columns, device=device)
        same = own == 0 if isinstance(own, int) else False
        mine = theirs if same and rows == columns else partner_columns(own, rows, device)
        return self.call(
            description, embeddings, candidates=ref_emb, anchor_labels=mine, candidate_labels=theirs, **fields
        )

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """The loss of row i of embeddings [B, D] paired with row i of ref_emb [B, D].

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        return total(self.parts(embeddings, ref_emb))
