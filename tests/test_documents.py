"""The documents: every reference to the specification resolves."""

import re
import sys

import pytest
from conftest import ROOT, python

SPECIFICATION = ROOT / "docs" / "specification.md"
# "SPEC 2.11", and lists of sections: "SPEC 2.6, 2.8 and 2.16".
REFERENCE = re.compile(r"\bSPEC ((?:\d+\.\d+)(?:(?:, | and |, and )\d+\.\d+)*)")
TEXTS = {".py", ".h", ".cuh", ".cpp", ".cu", ".md", ".pyi"}


def sections() -> set[str]:
    return set(re.findall(r"^#+ (\d+\.\d+) ", SPECIFICATION.read_text(encoding="utf-8"), re.M))


def references(text: str) -> set[str]:
    return {number for found in REFERENCE.findall(text) for number in re.findall(r"\d+\.\d+", found)}


def test_a_list_of_sections_is_read_whole():
    assert references("(SPEC 2.6, 2.8 and 2.16), SPEC 3.7; 1.5 of SPECS 9.9") == {"2.6", "2.8", "2.16", "3.7"}


@pytest.mark.parametrize("folder", ["fastdml", "csrc", "tests", "docs"])
def test_references_to_the_specification_resolve(folder):
    known, found = sections(), {}
    for path in sorted((ROOT / folder).rglob("*")):
        # This file's own examples are none.
        if path.suffix in TEXTS and path.name != "test_documents.py":
            text = path.read_text(encoding="utf-8")
            found |= dict.fromkeys(references(text), path.relative_to(ROOT))
    assert found, f"no reference to the specification in {folder}"
    dangling = {number: str(path) for number, path in found.items() if number not in known}
    assert not dangling, f"specification.md has no section {dangling}"


def test_references_within_the_specification_resolve():
    text = SPECIFICATION.read_text(encoding="utf-8")
    known, within = sections(), set(re.findall(r"\bsection (\d+\.\d+)", text))
    assert within and within <= known, within - known


def test_the_stub_of_the_functional_forms_is_up_to_date():
    sys.path.insert(0, str(ROOT / "docs"))
    import make_stub

    assert make_stub.STUB.read_text() == make_stub.stub(), "run python docs/make_stub.py"


def test_the_tables_of_scaling_are_up_to_date():
    sys.path.insert(0, str(ROOT / "docs"))
    import make_scaling

    text = make_scaling.PAGE.read_text(encoding="utf-8")
    assert make_scaling.page(text) == text, "run python docs/make_scaling.py"


def test_names_that_documents_spell_out_are_there_after_the_import():
    """As a reader types them after `import fastdml`; but for what needs other packages, and one to write."""
    texts = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {n for t in texts for n in re.findall(r"\bfastdml(?:\.\w+)+", t.read_text(encoding="utf-8"))}
    apart = ("fastdml.kernels", "fastdml.demo", "fastdml.integrations.", "fastdml.functional.soft_lifted")
    named = {n for n in named if not n.startswith(apart)}
    code = f"import operator, fastdml\nfor n in {sorted(named)}: operator.attrgetter(n[8:])(fastdml)"
    assert len(named) > 10 and python(code) == ""
