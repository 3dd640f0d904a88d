"""python -m fastdml show."""

import pathlib

import pytest

from fastdml.cli import main
from fastdml.language import compile

HERE = pathlib.Path(__file__).parent
DESCRIBED = f"{HERE / 'described.py'}:"


def shown(capsys, loss, form):
    assert main(["show", loss, "--as", form]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("torch", "def multi_similarity(p"),
        ("cpp", "FASTDML_ROW_LOSS(user_multi_similarity, UserMultiSimilarity)"),
        ("cuda", "row.map("),
        ("triton", "lse_split"),
    ],
)
def test_a_function_in_all_forms(capsys, form, expected):
    assert expected in shown(capsys, DESCRIBED + "multi_similarity", form)


OBJECTS = """
import functools
from fastdml.language import sum

def pull(p, scale, slack):
    return scale * sum(p.s - slack, where=p.positive)

class Pull:
    def __call__(self, p, scale):
        return pull(p, scale, 0.1)

partial, called, method = functools.partial(pull, slack=0.1), Pull(), Pull().__call__
exec("def unwritten(p): return sum(p.s, where=p.positive)")
"""


@pytest.mark.parametrize("name", ["partial", "called", "method"])
def test_objects_that_are_called(capsys, tmp_path, name):
    (tmp_path / "objects.py").write_text(OBJECTS)
    found = shown(capsys, f"{tmp_path / 'objects.py'}:{name}", "torch")
    assert found.strip().startswith("def pull" if name == "partial" else "def __call__")
    assert "FASTDML_ROW_LOSS(" in shown(capsys, f"{tmp_path / 'objects.py'}:{name}", "cpp")


def test_a_function_without_a_text(capsys, tmp_path):
    (tmp_path / "objects.py").write_text(OBJECTS)
    with pytest.raises(SystemExit):
        main(["show", f"{tmp_path / 'objects.py'}:unwritten", "--as", "torch"])
    assert "form: expected another than 'torch'" in capsys.readouterr().err


def test_one_exponential_a_pair_and_one_multiply_add_an_exponent(capsys):
    """Multi-similarity: one sweep for the extremes, one for both sums, one for the weights."""
    text = shown(capsys, DESCRIBED + "multi_similarity", "cpp")
    of_pairs = [line for line in text.splitlines() if "p.s" in line]
    assert text.count("row.reduce(") == 2 and text.count("row.map(") == 1
    exponentials = [line for line in of_pairs if "exp(" in line]
    assert len(exponentials) == 2
    assert all(line.count(" * ") == 1 and line.count("exp(") == 1 for line in exponentials)


@pytest.mark.parametrize(
    ("form", "expected"),
    [("torch", "def spec"), ("cpp", "struct SmoothAP"), ("triton", "ListLoss(")],
)
def test_a_loss_written_by_hand(capsys, form, expected):
    assert expected in shown(capsys, "smooth_ap", form)


@pytest.mark.parametrize(
    ("form", "expected"),
    [("torch", "def row(self"), ("cpp", "FASTDML_ROW_LOSS(nt_xent, NtXent)"), ("triton", "'nt_xent'")],
)
def test_a_described_loss_of_the_library(capsys, form, expected):
    assert expected in shown(capsys, "nt_xent", form)


def test_headers_that_are_not_installed(capsys, monkeypatch):
    def sources():
        raise compile.CannotCompile("the headers of the row language are not installed")

    monkeypatch.setattr(compile, "sources", sources)
    with pytest.raises(SystemExit):
        main(["show", "smooth_ap"])
    assert "form: expected another than 'cpp': the headers of" in capsys.readouterr().err


def test_unknown(capsys):
    with pytest.raises(SystemExit):
        main(["show", "nothing"])
    assert "loss: expected FILE:FUNCTION or one of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["show", "nowhere:function"])
    assert "loss: expected a Python file or module before the colon" in capsys.readouterr().err
