"""The README's examples run as they stand, and its files and commands exist."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_examples_run_one_after_the_other(capsys):
    names: dict[str, object] = {}
    for code in blocks("python"):
        exec(code, names)
    assert names["embeddings"].grad is not None
    assert "smooth_ap" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(set(re.findall(r"\bmake ([a-z-]+)\b", TEXT))))
def test_make_has_the_commands(command):
    assert f"\n{command}:" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([^)#:]+)\)", TEXT))))
def test_links_lead_somewhere(path):
    assert (ROOT / path).exists()


def test_tables_are_of_this_tree():
    """`python docs/make_tables.py` writes the status table and the measured one."""
    done = subprocess.run(
        [sys.executable, "docs/make_tables.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
