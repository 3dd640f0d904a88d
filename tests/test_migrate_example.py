"""The scripts whose imports change, under both libraries, as they stand."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

FOLDER = ROOT / "examples" / "migrate"
SCRIPTS = ("pair_and_miner", "proxies", "memory_and_views")
THEIRS = importlib.util.find_spec("pytorch_metric_learning") is not None


@pytest.mark.parametrize("library", ["fastdml", "pml"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_trains(script, library):
    """A few steps on forty classes."""
    if library == "pml" and not THEIRS:
        pytest.skip("pytorch-metric-learning is not installed")
    small = ["--epochs", "2", "--batch", "32", "--classes", "40"]
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{script}.py"), *small],
        capture_output=True, text=True,
        env={**os.environ, "LIBRARY": library, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["recall@1"] > 1 / 40  # of chance
    assert 0 < found["loss_seconds"] < found["seconds"]


def test_only_imports_differ():
    """No line but those of imports asks which library it is."""
    for script in SCRIPTS:
        text = (FOLDER / f"{script}.py").read_text(encoding="utf-8")
        _, asked, rest = text.partition('if os.environ.get("LIBRARY") == "pml":\n')
        assert asked and "LIBRARY" not in rest
        switch = rest.split("\n\n")[0].splitlines()
        assert all(line == "else:" or line.lstrip().startswith("from ") for line in switch)
