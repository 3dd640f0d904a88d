"""What losses of paired embeddings share: row i of one set belongs to row i of the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...engine import check
from ...engine.call import Call, statistic_type
from ...engine.loss import RowLoss
from ..base import Loss, total


def check_pairs(a: Tensor, b: Tensor, a_name: str, b_name: str, validate: bool) -> None:
    """Two sets of embeddings, row by row."""
    check.embeddings(a, a_name, validate)
    check.embeddings(b, b_name, validate)
    check.same_space(a, b, a_name, b_name)
    if a.shape[0] != b.shape[0]:
        raise ValueError(
            f"{b_name}: expected {a.shape[0]} rows, one per row of {a_name}, got {b.shape[0]}"
        )


class PairedLoss(Loss):
    """A loss called as `loss(embeddings [B, D], ref_emb [B, D])`. Keyword arguments: see `Loss`."""

    def paired_call(
        self,
        description: RowLoss,
        embeddings: Tensor,
        ref_emb: Tensor,
        scalars: Mapping[str, Tensor | float],
        **fields: Any,
    ) -> Call:
        """The call of pairs. scalars, by the names of the arguments that they are, may be tensors of one
        element that want a gradient."""
        check_pairs(embeddings, ref_emb, "embeddings", "ref_emb", self.validate)
        kind = statistic_type(embeddings, ref_emb)
        values = [
            torch.as_tensor(
                check.scalar(v, name, embeddings), dtype=kind, device=embeddings.device
            ).reshape(())
            for name, v in scalars.items()
        ]
        pairs = torch.arange(embeddings.shape[0], device=embeddings.device)
        return self.call(
            description,
            embeddings,
            candidates=ref_emb,
            anchor_labels=pairs,
            candidate_labels=pairs,
            scalars=torch.stack(values) if values else None,
            **fields,
        )

    def forward(self, embeddings: Tensor, ref_emb: Tensor) -> Tensor:
        """The loss of row i of embeddings [B, D] paired with row i of ref_emb [B, D].

        Raises:
            ValueError: naming the argument and what was expected of it.
        """
        return total(self.parts(embeddings, ref_emb))
