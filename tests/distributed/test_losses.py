"""Losses over 1 to 4 ranks are those of one process with the whole batch."""

import checks_losses
import pytest
import ranks

SIZES = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return {size: ranks.run("checks_losses", size, tmp_path_factory.mktemp(f"ranks{size}")) for size in SIZES}


@pytest.mark.parametrize(("size", "name"), [(s, n) for s in SIZES for n in checks_losses.CHECKS(s)])
def test_check(found, size, name):
    results = found[size]
    assert not results.get("started"), results["started"]
    assert name in results and not results[name], results.get(name)
