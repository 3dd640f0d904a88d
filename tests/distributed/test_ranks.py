"""Over 1 to 4 ranks everything is as in one process with the whole batch.

Ranks start once for a module of checks and a number of them.
"""

import checks_faults
import checks_losses
import checks_memory
import checks_shards
import checks_training
import pytest
import ranks

# What runs over how many ranks.
RUNS = {
    checks_losses: (1, 2, 3, 4),
    checks_shards: (1, 3),
    checks_training: (2, 3),
    checks_faults: (3,),
    checks_memory: (4,),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Results by module and size, each found when it is first asked for."""
    known = {}

    def of(module, size):
        if (module, size) not in known:
            folder = tmp_path_factory.mktemp(f"ranks{size}")
            known[module, size] = ranks.run(module.__name__, size, folder)
        return known[module, size]

    return of


@pytest.mark.parametrize(
    ("module", "size", "name"),
    [
        pytest.param(module, size, name, id=f"{module.__name__}-{size}-{name}")
        for module, sizes in RUNS.items()
        for size in sizes
        for name in module.CHECKS(size)
    ],
)
def test_check(found, module, size, name):
    results = found(module, size)
    assert not results.get("started"), results["started"]
    assert name in results and not results[name], results.get(name)
