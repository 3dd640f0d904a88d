"""Over 1 to 4 ranks everything is as in one process with the whole batch.

All checks that a run asks for are run once, whichever worker is the first to need one.
"""

import checks_faults
import checks_losses
import checks_memory
import checks_shards
import checks_training
import checks_twotower
import pytest
import ranks

# What runs over how many ranks, in this order: memory is measured first, and a process dies last.
RUNS = {
    1: (checks_losses, checks_shards, checks_training),
    2: (checks_losses, checks_twotower, checks_training),
    3: (checks_losses, checks_shards, checks_training, checks_faults),
    4: (checks_memory, checks_losses, checks_training),
}


@pytest.fixture(scope="session")
def found(request, tmp_path_factory):
    """What the checks found of which a test is to be run."""
    asked = {
        (item.callspec.params["size"], item.callspec.params["module"].__name__)
        for item in request.session.items
        if getattr(item, "function", None) is test_check
    }
    wanted = [
        (size, [m.__name__ for m in modules if (size, m.__name__) in asked])
        for size, modules in RUNS.items()
    ]
    wanted = [(size, names) for size, names in wanted if names]
    return ranks.once(request, tmp_path_factory, "ranks", wanted)


@pytest.mark.parametrize(
    ("module", "size", "name"),
    [
        pytest.param(module, size, name, id=f"{module.__name__}-{size}-{name}")
        for size, modules in RUNS.items()
        for module in modules
        for name in module.CHECKS(size)
    ],
)
def test_check(found, module, size, name):
    assert not found.get(f"{size}"), found[f"{size}"]
    key = f"{size} {module.__name__} {name}"
    assert key in found and not found[key], found.get(key)
