"""Rows of tensors for functions of the language."""

import torch

from fastdml.engine.loss import Rows


def block(
    rows=11, columns=23, seed=0, classes=4, single=False, dtype=torch.float64, scalars=2, distances=False
):
    """A block with unequal classes, a row without positives and one without negatives; every input wants a
    gradient. single: one positive at most, as proxies have it. distances: s above 0."""
    g = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=g, dtype=torch.float64) * 2 - 1

    owner = torch.randint(0, classes, (columns,), generator=g) ** 2 // 2
    if single:
        owner = torch.arange(columns)
    row = owner[torch.randint(0, columns, (rows,), generator=g)]
    row[0] = 10_000
    positive = row[:, None] == owner
    if not single:
        positive[1] = True
    s = uniform(rows, columns)
    if distances:
        s = s + 1.2
    inputs = (s, uniform(scalars) + 1.5, uniform(rows, 1), uniform(2, columns))
    s, scalars, values, cols = (x.to(dtype).requires_grad_() for x in inputs)
    return Rows(
        s, positive, ~positive, None, uniform(rows, columns).to(dtype), scalars, values, cols
    )
