"""The example and the document of large batches, as they stand."""

import json
import os
import re
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = ROOT / "examples" / "large_batch.py"
DATA = next(
    (
        p
        for p in (
            ROOT / "fastdml" / "demo" / "data" / "glyphs32.npz",
            ROOT.parent / "shared" / "data" / "glyphs32.npz",
        )
        if p.exists()
    ),
    None,
)


@pytest.mark.skipif(DATA is None, reason="glyphs32.npz is not there")
def test_ranks_and_chunks_have_the_losses_of_the_plain_step(tmp_path, capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    small = ["--data", str(DATA), "--batch", "64", "--steps", "3", "--validate", "200"]
    plain = main([*small, "--chunk", "64"])
    cached = main([*small, "--chunk", "12"])
    icons = main([*small, "--data", str(DATA.with_name("icons32.npz")), "--chunk", "64", "--steps", "1"])
    assert 0.01 < icons["before"]["recall@1"] < 1
    assert cached["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert len(set(plain["losses"])) == 3 and "step   3   loss" in capsys.readouterr().out

    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    out = tmp_path / "losses.json"
    done = subprocess.run(
        [*command, str(SCRIPT), *small, "--chunk", "12", "--output", str(out)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text()) == pytest.approx(plain["losses"], rel=1e-5)


def test_the_document_runs_as_it_stands():
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "large-batch.md").read_text(), re.DOTALL):
        exec(code, names)
    assert names["model"].weight.grad is not None and names["answers"].weight.grad is not None
