"""Trainers of others over two ranks give the losses, weights and metrics of one process."""

import sys

import checks_trainers
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "distributed"))
import ranks

SIZE = checks_trainers.RANKS


@pytest.fixture(scope="session")
def found(request, tmp_path_factory):
    return ranks.once(request, tmp_path_factory, "trainers", [(SIZE, ["checks_trainers"])])


@pytest.mark.parametrize("name", checks_trainers.CHECKS(SIZE))
def test_a_trainer_over_ranks(found, name):
    key = f"{SIZE} checks_trainers {name}"
    assert key in found and not found[key], found.get(key, found[str(SIZE)])
