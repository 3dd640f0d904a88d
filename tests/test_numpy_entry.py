"""fastdml._C.apply_rows: the compiled row functors on arrays of any framework."""

import numpy as np
import pytest
import torch
from conftest import EXAMPLES, needs_compiled

from fastdml.engine.loss import Rows

pytestmark = needs_compiled
COMPILED = []
try:
    from fastdml import _C

    COMPILED = [p for p in EXAMPLES if p.values[0].name in _C.functors()]
except ImportError:
    pass
PLAIN = [
    p for p in COMPILED
    if p.values[0].teacher_similarity is None and p.values[0].presweep() is None
    and not p.values[0].example_values(1, 1).keys() & {"row_values", "col_values"}
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("columns", [1, 7, 64, 131])
@pytest.mark.parametrize("description", [p for p in PLAIN if p.values[0].outputs == 1])
def test_losses_and_weights(description, columns, dtype):
    """In place: similarities become the derivatives of the rows' losses."""
    rng = np.random.default_rng(columns)
    s = rng.uniform(-1, 1, (9, columns)).astype(dtype)
    rows, cols = rng.integers(-3, 4, 9), rng.integers(-3, 4, columns) * 2**33
    rows[::2] = cols[rng.integers(0, columns, 5)]
    t = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor(rows), torch.tensor(cols)
    scalars = [description.example_values(9, columns).get("scalars"), description.scalars(*labels)]
    scalars = [v.double() for v in scalars if v is not None]
    scalars = torch.cat(scalars) if scalars else None
    same = labels[0][:, None] == labels[1]
    losses = description.spec(Rows(t, same, ~same, scalars=scalars))
    (true,) = torch.autograd.grad(losses.sum(), t)
    found = _C.apply_rows(
        description.name, description.parameters(), s, rows, cols,
        scalars=[] if scalars is None else scalars.tolist(),
    )
    tolerance = 1e-11 if dtype == np.float64 else 2e-4
    assert found.dtype == dtype and found.shape == (9,)
    scale = max(1.0, float(true.abs().max()))
    np.testing.assert_allclose(found, losses.detach(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(s, true, atol=tolerance * scale)


def test_the_own_pair_is_left_out():
    rng = np.random.default_rng(0)
    s, labels = rng.uniform(-1, 1, (20, 20)), np.arange(20) // 4
    parameters = (2, 50, 0.5, 0, 0, np.inf)
    one, two = s.copy(), s.copy()
    two[np.arange(20), np.arange(20)] = 7.0
    losses = _C.apply_rows("multi_similarity", parameters, one, labels, labels, self_offset=0)
    again = _C.apply_rows("multi_similarity", parameters, two, labels, labels, self_offset=0)
    assert (losses == again).all() and (one == two).all() and (np.diag(one) == 0).all()
    counted = _C.apply_rows("multi_similarity", parameters, s.copy(), labels, labels)
    assert (counted != losses).all()


def test_wrong_input():
    s, rows, cols = np.zeros((3, 4)), np.zeros(3, int), np.zeros(4, int)
    apply = _C.apply_rows
    for arguments, message in (
        (("l2", (), s, rows, cols), "name: no compiled loss is called 'l2'"),
        (("smooth_ap", (), s, rows, cols), "parameters: 'smooth_ap' takes 1"),
        (("smooth_ap", (0.1,), s[0], rows, cols), "s: expected a matrix"),
        (("smooth_ap", (0.1,), s, rows[:2], cols), "row_labels: expected one label per row"),
        (("smooth_ap", (0.1,), s, rows, cols[:2]), "col_labels: expected one label per column"),
        (("proxy_anchor", (32, 0.1), s, rows, cols), "scalars: 'proxy_anchor' needs more than the 0 given"),
    ):
        with pytest.raises(ValueError, match=message):
            apply(*arguments)
    for wrong in (s.T, s[:, ::2], s.astype(int), s.tolist()):
        with pytest.raises(TypeError):
            apply("smooth_ap", (0.1,), wrong, rows, cols)
    frozen = s.copy()
    frozen.flags.writeable = False
    with pytest.raises(ValueError):
        apply("smooth_ap", (0.1,), frozen, rows, cols)
