"""What the tests compare with: a number that is none agrees with nothing."""

import pytest
import torch
from conftest import CASES, EXAMPLES, assert_agree, call, distance

EXAMPLE = next(p.values[0] for p in EXAMPLES if p.values[0].name == "multi_similarity")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("of", ["result", "reference"])
def test_what_is_not_finite_agrees_with_nothing(bad, of):
    case = CASES["ragged"]()
    true = call(EXAMPLE, case, "dense")
    assert_agree(EXAMPLE, case, true, true)
    broken = [t.clone() for t in true]
    broken[1][0, 0] = bad
    found, reference = (broken, true) if of == "result" else (true, broken)
    with pytest.raises(AssertionError, match="not finite"):
        assert_agree(EXAMPLE, case, found, reference)
    with pytest.raises(AssertionError, match="not finite"):
        distance(found[1], reference[1])
