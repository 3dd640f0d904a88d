"""Functors run on a block of similarities, by the operator that all have."""

import torch

from fastdml.engine.relation import LabelRelation


class Block:
    """s [rows, columns] and labels, as both functors take them."""

    def __init__(
        self, rows, columns, dtype, seed=0, classes=None, one_set=False, scale=0.3, **values
    ):
        g = torch.Generator().manual_seed(seed)
        self.s = (
            (torch.randn(rows, columns, generator=g, dtype=torch.float64) * scale)
            .clamp(-1, 1)
            .to(dtype)
        )
        classes = max(1, columns // 4) if classes is None else classes
        labels = torch.randint(0, classes, (columns,), generator=g)
        if classes == columns:
            labels = torch.arange(columns)
        own = labels[:rows] if one_set else torch.randint(0, classes + 1, (rows,), generator=g)
        self.index = LabelRelation(own.contiguous(), labels).class_index
        self.offset = 0 if one_set else -1
        self.values = {k: v.to(dtype) for k, v in values.items()}

    def run(self, functor, parameters, outputs=1, gradient=True, row_weight=None):
        """(losses, weights, derivatives by scalars, by values of the row)"""
        s = self.s.clone()
        loss = s.new_empty(s.shape[0], outputs)
        scalars, row_values = self.values.get("scalars"), self.values.get("row_values")
        d_scalars = None if scalars is None else s.new_zeros(s.shape[0], scalars.numel())
        d_values = None if row_values is None else torch.zeros_like(row_values)
        index = self.index
        torch.ops.fastdml_native.rows_(
            s, functor, parameters, self.values.get("teacher"), None, None, None, None, 0, 0.0,
            index.row_class, index.col_class, index.start, index.order, index.longest, self.offset, None,
            row_weight, 1.0, scalars, row_values, self.values.get("col_values"), loss, d_scalars, d_values,
            gradient,
        )  # fmt: skip
        return loss, s, d_scalars, d_values
