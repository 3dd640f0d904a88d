"""A program on tensors, with the derivatives of the printed forms: the differentiation checked without a
compiler."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor, stack

from fastdml.engine.loss import Rows
from fastdml.language.evaluate import values
from fastdml.language.graph import Node
from fastdml.language.program import Program


@dataclasses.dataclass
class Evaluated:
    """outputs [R, outputs]; weight [R, N]; derivatives by scalars and values of the row [R], and of the
    pairs by values of their candidates [R, N], by index."""

    outputs: Tensor
    weight: Tensor
    d_scalars: dict[int, Tensor]
    d_values: dict[int, Tensor]
    d_columns: dict[int, Tensor]


def evaluate(
    program: Program,
    rows: Rows,
    parameters: Mapping[str, float] | None = None,
    weights: Tensor | None = None,
) -> Evaluated:
    """weights [R, outputs]: of several outputs in the result."""
    r, n = rows.s.shape
    known = values(program.roots, rows, parameters, weights)

    def of_row(x: Node) -> Tensor:
        return known[x].expand(r, 1)[:, 0]

    return Evaluated(
        stack([of_row(x) for x in program.outputs], dim=1),
        known[program.weight].expand(r, n),
        {k: of_row(x) for k, x in program.by("scalar").items()},
        {k: of_row(x) for k, x in program.by("row_value").items()},
        {k: known[x].expand(r, n) for k, x in program.by("column").items()},
    )
