"""The tool that plants faults: what its lists say, and that they are kept to."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "mutants"))
import faults as lists
from faults import ListError, parse
from report import table

TEXT = """# A comment.
tests: tests/test_a.py -k {stem} then tests/test_b.py

@ *.h
- b * c
+ b + c
- one
- two
+ three
= it is the same
losses: auc
@ other.h
- x
+
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "rows.h").write_text("a = b * c;\none\ntwo\none\n")
    return tmp_path


def test_a_list_is_read(tree):
    first, second, third = parse(TEXT, "area")
    assert (first.old, first.new, first.losses) == ("b * c", "b + c", "")
    assert (second.old, second.new, second.excuse) == ("one\ntwo", "three", "it is the same")
    assert (third.pattern, third.new, third.losses) == ("other.h", "", "auc")
    assert first.arguments(tree) == [["tests/test_a.py", "-k", "rows"], ["tests/test_b.py"]]
    assert second.mutated(tree)[1] == "a = b * c;\nthree\none\n"


@pytest.mark.parametrize("old, files, problem", [
    ("one", 1, "2 times"), ("none", 1, "0 times"), ("b", 0, "0 files"), ("b", 2, "2 files"),
])  # fmt: skip
def test_a_fault_that_does_not_fit_is_an_error(old, files, problem, tmp_path):
    for k in range(files):
        (tmp_path / f"{k}.h").write_text("a = b * c;\none\ntwo\none\n")
    (fault,) = parse(f"tests: t\n@ *.h\n- {old}\n+ new\n", "area")
    with pytest.raises(ListError, match=problem):
        fault.mutated(tmp_path)
    assert len(lists.errors([fault], tmp_path)) == 1


@pytest.mark.parametrize("text", ["- a\n? b\n", "+ b\n", "@ x\n= why\n"])
def test_a_line_that_says_nothing_is_an_error(text):
    with pytest.raises(ListError, match=r"area, line \d"):
        parse(text, "area")


def test_the_table_names_survivors():
    faults = parse(TEXT, "area")
    status = ("red", "green", "red")
    results = {
        f.key: {"status": s, "test": "tests/test_a.py::test[1]" * (s == "red"), "seconds": 1.0}
        for f, s in zip(faults, status)
    }
    text = table(faults, results, 5, "Here.")
    assert "**2 of 3 faults turned a test red: 66.7 %; of the 2 that" in text and "A sample: 3 of 5" in text
    survivors = text.partition("## Survivors")[2].partition("## All faults")[0]
    assert "`one two`" in survivors and "it is the same" in survivors and "b + c" not in survivors
