"""fastdml._C.apply_rows: the compiled row functors on arrays of any framework."""

import numpy as np
import pytest
import torch
from conftest import EXAMPLES, needs_compiled

from fastdml.engine.loss import Rows
from fastdml.engine.relation import LabelRelation
from fastdml.engine.similarity import PRODUCT

pytestmark = needs_compiled
COMPILED = []
try:
    from fastdml import _C

    COMPILED = [p for p in EXAMPLES if p.values[0].functor_name in _C.functors()]
except ImportError:
    pass
SMOOTH_AP = (0.1, 0)  # parameters of the functor: temperature, whether to sort
PLAIN = [p for p in COMPILED if p.values[0].presweep() is None]


def labels_of(description, rng, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Any numbers for samples; for proxies their classes in order."""
    if description.columns == "proxies":
        col_labels = np.arange(columns) // description.columns_per_class
        return rng.choice(col_labels, rows), col_labels
    if description.rows == "proxies":
        return np.arange(rows), rng.integers(0, rows, columns)
    row_labels, col_labels = rng.integers(-3, 4, rows), rng.integers(-3, 4, columns) * 2**33
    row_labels[::2] = col_labels[rng.integers(0, columns, (rows + 1) // 2)]
    return row_labels, col_labels


def scalars_of(description, rows, columns, same) -> list[float]:
    """Those that may be learnt, those from the labels, those from counts: as the engine joins them."""
    t = torch.tensor(same)
    parts = [
        description.example_values(*same.shape).get("scalars"),
        description.label_scalars(LabelRelation(torch.tensor(rows), torch.tensor(columns))),
        description.count_scalars(t.sum(1), (~t).sum(1)),
    ]
    return [float(v) for part in parts if part is not None for v in part]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("columns", [1, 7, 64, 131])
@pytest.mark.parametrize("description", [p for p in PLAIN if p.values[0].outputs == 1])
def test_losses_and_weights(description, columns, dtype):
    """In place: similarities become the derivatives of the rows' losses."""
    rng = np.random.default_rng(columns)
    columns *= description.columns_per_class
    least = -1 if description.metric.kind == PRODUCT else 0  # distances
    s = rng.uniform(least, 1, (9, columns)).astype(dtype)
    row_labels, col_labels = labels_of(description, rng, 9, columns)
    same = row_labels[:, None] == col_labels
    values = description.example_values(9, columns)
    scalars = scalars_of(description, row_labels, col_labels, same)
    given = {k: values[k].numpy().astype(dtype) for k in ("row_values", "col_values") if k in values}
    if description.teacher_similarity is not None:
        given["teacher"] = rng.uniform(least, 1, s.shape).astype(dtype)
    t = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    seen = {k: torch.tensor(v, dtype=torch.float64) for k, v in given.items()}
    positive = torch.tensor(same)
    losses = description.spec(
        Rows(t, positive, ~positive, scalars=torch.tensor(scalars, dtype=torch.float64), **seen)
    )
    (true,) = torch.autograd.grad(losses.sum(), t)
    found = _C.apply_rows(
        description.functor_name, description.members, s, row_labels, col_labels, scalars=scalars, **given
    )
    tolerance = 1e-11 if dtype == np.float64 else 2e-4
    assert found.dtype == dtype and found.shape == (9,)
    scale = max(1.0, float(true.abs().max()))
    np.testing.assert_allclose(found, losses.detach(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(s, true, atol=tolerance * scale)


def test_the_own_pair_is_left_out():
    rng = np.random.default_rng(0)
    s, labels = rng.uniform(-1, 1, (20, 20)), np.arange(20) // 4
    parameters = (2, 50, 0.5, np.inf)
    one, two = s.copy(), s.copy()
    two[np.arange(20), np.arange(20)] = 7.0
    losses = _C.apply_rows("multi_similarity", parameters, one, labels, labels, own_offset=0)
    again = _C.apply_rows("multi_similarity", parameters, two, labels, labels, own_offset=0)
    assert (losses == again).all() and (one == two).all() and (np.diag(one) == 0).all()
    counted = _C.apply_rows("multi_similarity", parameters, s.copy(), labels, labels)
    assert (counted != losses).all()


def test_wrong_input():
    s, rows, cols = np.zeros((3, 4)), np.zeros(3, int), np.zeros(4, int)
    apply = _C.apply_rows
    for arguments, message in (
        (("l2", (), s, rows, cols), "name: no compiled loss is called 'l2'"),
        (("smooth_ap", (), s, rows, cols), "parameters: 'smooth_ap' takes 2"),
        (("smooth_ap", SMOOTH_AP, s[0], rows, cols), "s: expected a matrix"),
        (("smooth_ap", SMOOTH_AP, s, rows[:2], cols), "row_labels: expected one label per row"),
        (("smooth_ap", SMOOTH_AP, s, rows, cols[:2]), "col_labels: expected one label per column"),
        (("smooth_ap", SMOOTH_AP, s, rows, cols, -1, [], s.T), "row_values: expected a matrix \\[3, k\\]"),
        (("smooth_ap", SMOOTH_AP, s, rows, cols, -1, [], None, s[:, :3]), r"col_values: .* matrix \[k, 4\]"),
        (("smooth_ap", SMOOTH_AP, s, rows, cols, -1, [], None, None, s.T), r"teacher: .* matrix \[3, 4\]"),
        (("proxy_anchor", (32, 0.1), s, rows, cols), "scalars: 'proxy_anchor' needs more than the 0 given"),
    ):
        with pytest.raises(ValueError, match=message):
            apply(*arguments)
    for wrong in (s.T, s[:, ::2], s.astype(int), s.tolist()):
        with pytest.raises(TypeError):
            apply("smooth_ap", SMOOTH_AP, wrong, rows, cols)
    frozen = s.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError):
        apply("smooth_ap", SMOOTH_AP, frozen, rows, cols)
