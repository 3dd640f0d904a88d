"""The examples of other libraries, as the document has them, and the versions it names."""

import importlib.metadata
import re
import runpy
import shlex
import sys

import others
import pytest
import texts
from conftest import ROOT

DOCUMENT = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python (examples/integrations/.*)$", DOCUMENT, re.M)
SCRIPTS = sorted((ROOT / "examples" / "integrations").glob("train_*.py"))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_runs_as_written(command, monkeypatch, tmp_path):
    others.open_clip()
    script, *arguments = shlex.split(command)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    score = runpy.run_path(str(ROOT / script))["main"]()
    assert 0 < score <= 1


def test_every_example_has_its_command():
    assert len(COMMANDS) == len(SCRIPTS) > 0
    for script in SCRIPTS:
        mine = [c for c in COMMANDS if c.startswith(f"examples/integrations/{script.name} ")]
        assert mine and f"python {mine[0]}\n" in script.read_text(encoding="utf-8")


def test_the_versions_are_those_of_these_tests():
    named = dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", DOCUMENT, re.M))
    assert len(named) == 6 and {"sentence-transformers", "open_clip_torch", "lightning"} < set(named)
    assert named == {name: importlib.metadata.version(name) for name in named}


def test_the_document_runs_as_it_stands():
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL):
        exec(code, names)
    assert names["optimizer"]


def test_words_of_a_file_of_wordnet(tmp_path):
    file = tmp_path / "data.noun"
    line = "00017222 03 n 02 living_thing 0 being 2 000 | a thing that lives; \"a second sentence\"  \n"
    file.write_text("  1 This is the licence\n" + line, encoding="utf-8")
    assert texts.glosses(file, 5) == [("living thing", "a thing that lives")]
