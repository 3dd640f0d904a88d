"""The README's examples run as they stand, and its files and commands exist."""

import re

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
