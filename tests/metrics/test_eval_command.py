"""``fastdml eval``: files in, a table, JSON and a page out."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

import fastdml.metrics as M
from fastdml.cli import main
from fastdml.command_line import BROKEN_PIPE
from fastdml.metrics import definitions, evaluation, files

RNG = np.random.default_rng(0)
X = RNG.standard_normal((70, 5)).astype(np.float32)
Y = np.array([f"kind <{v}> & $more$" for v in RNG.integers(0, 9, 70)])
KEYS = ("recall@1", "recall@10", "map", "auc")


@pytest.fixture
def folder(tmp_path):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    (tmp_path / "y.txt").write_text("\n".join(Y), encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("été\n".encode("latin-1"))
    np.save(tmp_path / "i.npy", RNG.integers(0, 256, (70, 6, 5), dtype=np.uint8))
    return tmp_path


def run(folder, *arguments):
    files = (".npy", ".txt", ".parquet", ".json", ".html")
    return main(["eval", *(str(folder / a) if a.endswith(files) else a for a in arguments)])


def test_table_and_json(folder, capsys):
    assert run(folder, "x.npy", "y.npy", "--json", "r.json") == 0
    shown = capsys.readouterr().out
    true = M.evaluate(X, Y)
    found = json.loads((folder / "r.json").read_text())
    assert found["metrics"] == dict(true) and found["queries"] == 70
    assert found["intervals"]["map"] == list(true.interval("map"))
    for key in KEYS:
        assert re.search(rf"{re.escape(key)}\s*│\s*{true[key]:.4f}", shown)
    pytest.importorskip("sklearn")
    assert run(folder, "x.npy", "y.txt", "--json", "-", "--metrics", "all", "-k", "3") == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == dict(M.evaluate(X, Y, metrics="all", k=3))


def test_gallery(folder, capsys):
    np.save(folder / "g.npy", X[:30] + 0.1)
    np.save(folder / "gy.npy", Y[:30])
    arguments = ("--gallery", "g.npy", "--gallery-labels", "gy.npy", "--similarity", "raw_distance")
    assert run(folder, "x.npy", "y.npy", *arguments, "--json", "-") == 0
    true = M.evaluate(X, Y, X[:30] + np.float32(0.1), Y[:30], similarity="raw_distance")
    assert json.loads(capsys.readouterr().out)["metrics"] == dict(true)


@pytest.mark.parametrize("kind", ["list", "fixed", "half", "integers"])
def test_parquet(folder, capsys, monkeypatch, kind):
    """Streamed in batches into a mapped file, of which nothing is left behind."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    monkeypatch.setattr(files, "_BATCH_BYTES", 100)
    x = {"half": X.astype(np.float16), "integers": (X * 9).astype(np.int32)}.get(kind, X)
    column = pa.array(list(x))
    if kind == "fixed":
        column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 5)
    table = pa.table({"embedding": column, "label": Y.tolist(), "other": list(range(70))})
    pq.write_table(table, folder / "d.parquet", row_group_size=11)
    scratch = folder / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert run(folder, "d.parquet", "--json", "-") == 0
    wide = x.astype(np.float32) if kind == "integers" else x
    assert json.loads(capsys.readouterr().out)["metrics"] == dict(M.evaluate(wide, Y))
    assert not list(scratch.iterdir())
    rows = files.read_embeddings(folder / "d.parquet", scratch)
    assert isinstance(rows, np.memmap) and rows.dtype == wide.dtype and (rows == wide).all()


def test_rows_of_parquet_take_room_as_they_come(folder, monkeypatch):
    """So that a full disk is an error: pages of a mapped file that find no room kill the process."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    inner, seen, scratch = files._lists, [], folder / "scratch"

    def full(*given):
        seen.append(given)
        if len(seen) == 4:
            raise OSError(28, "No space left on device")
        return inner(*given)

    scratch.mkdir()
    pq.write_table(pa.table({"embedding": pa.array(list(X))}), folder / "d.parquet")
    monkeypatch.setattr(files, "_BATCH_BYTES", 10 * X[0].nbytes)
    monkeypatch.setattr(files, "_lists", full)
    with pytest.raises(OSError, match="No space left"):
        files.read_embeddings(folder / "d.parquet", scratch)
    assert sum(file.stat().st_size for file in scratch.iterdir()) < X[:30].nbytes


def test_page(folder):
    pytest.importorskip("matplotlib")
    assert run(folder, "x.npy", "y.npy", "--html", "p.html", "--images", "i.npy") == 0
    text = (folder / "p.html").read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and text.count("<svg") == 3
    assert "data:image/png;base64," in text and "kind &lt;3&gt; &amp; $more$" in text
    assert "kind <" not in text.replace("<text", "")
    # Nothing is fetched from anywhere: what is linked is in the page.
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", text)
    assert links and all(link.startswith(("#", "data:")) for link in links)
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(names) == len(set(names))
    assert {link[1:] for link in links if link[0] == "#"} <= set(names)
    again = (folder / "p.html").read_bytes()
    assert run(folder, "x.npy", "y.npy", "--html", "p.html", "--images", "i.npy") == 0
    assert (folder / "p.html").read_bytes() == again


def test_histogram_of_pairs():
    problem, relation = evaluation._setup(X, Y, None, None, "cosine", None, None, None, "auto")
    found = evaluation.run(problem, relation, definitions.asked("auc", [1], [1]), edges=True)
    edges, right, wrong = found.pairs.histogram()
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    pairs = np.triu_indices(70, 1)
    s, same = (unit @ unit.T)[pairs], (Y[:, None] == Y)[pairs]
    # Float32 scores beside an edge may fall on either side of it.
    assert np.abs(right - np.histogram(s[same], edges)[0]).sum() <= 2
    assert np.abs(wrong - np.histogram(s[~same], edges)[0]).sum() <= 2
    assert found["auc"] == M.pair_auc(X, Y)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (("none.npy", "y.npy"), "none.npy: expected a file, there is none"),
        (("y.npy", "y.npy"), "y.npy: expected a matrix of floats"),
        (("x.npy", "x.npy"), r"x.npy: expected 70 labels, .* got \(70, 5\)"),
        (("x.npy", "short.npy"), r"short.npy: expected 70 labels"),
        (("x.npy",), "labels: expected a file of labels"),
        (("y.txt", "y.npy"), "expected a .npy or .parquet file"),
        (("x.npy", "latin.txt"), "latin.txt: expected text in UTF-8"),
        (("broken.npy", "y.npy"), "broken.npy: expected an npy file of plain numbers"),
        (("pickled.npy", "y.npy"), "pickled.npy: expected an npy file of plain numbers"),
        (("broken.parquet",), "broken.parquet: expected a parquet file"),
        (("nan.npy", "y.npy"), "expected finite rows, found NaN or infinity in 1 of 70, first in row 3"),
        (("x.npy", "y.npy", "-k", "0"), "-k: expected one or more integers of at least 1"),
        (("x.npy", "y.npy", "--far", "0"), "--far: expected one or more numbers"),
        (("x.npy", "y.npy", "--metrics", "recal"), "metrics: expected names among"),
        (("x.npy", "y.npy", "--confidence", "1.5"), "--confidence: expected a number between"),
        (("x.npy", "y.npy", "--json", "no/r.json"), "expected a file in a folder that can be written to"),
        (("x.npy", "y.npy", "--html", "no/p.html"), "expected a file in a folder that can be written to"),
        (("x.npy", "y.npy", "--images", "i.npy"), "--images: expected only with --html"),
        (("x.npy", "y.npy", "--html", "p.html", "--images", "x.npy"), "x.npy: expected uint8 of shape"),
        (("x.npy", "y.npy", "--html", "p.html", "--images", "j.npy"), "--images: expected 70 images"),
        (("x.npy", "y.npy", "--gallery", "x.npy"), "--gallery-labels: expected exactly when"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(folder, capsys, arguments, message):
    (folder / "broken.npy").write_bytes(b"no file of numpy's")
    (folder / "broken.parquet").write_bytes(b"nor of parquet's")
    np.save(folder / "pickled.npy", np.array([{}]), allow_pickle=True)
    np.save(folder / "short.npy", Y[:3])
    np.save(folder / "j.npy", np.zeros((3, 4, 4), np.uint8))
    nan = X.copy()
    nan[3, 1] = np.nan
    np.save(folder / "nan.npy", nan)
    with pytest.raises(SystemExit) as exit:
        run(folder, *arguments)
    said = capsys.readouterr().err
    assert exit.value.code == 1 and re.search(message, said), said
    assert said.count("\n") == 1


def test_columns_of_parquet_are_checked(folder):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    def read(rows, column=None):
        pq.write_table(pa.table({"embedding": pa.array(rows)}), folder / "d.parquet")
        files.read_embeddings(folder / "d.parquet", folder, column)

    for rows, column, message in (
        ([[1.0, 2.0], [1.0]], None, "expected lists of one length in 'embedding'"),
        ([[1.0, 2.0], None], None, "expected no missing values"),
        ([[1.0, None]], None, "expected no missing values"),
        ([1.0, 2.0], None, "expected lists of numbers"),
        ([["a"]], None, "expected lists of numbers"),
        ([[1.0]], "x", "expected a column 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            read(rows, column)


def test_labels_of_parquet_are_of_one_class_each(folder):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    def read(labels):
        pq.write_table(pa.table({"label": labels}), folder / "l.parquet")
        return files.read_labels(folder / "l.parquet").tolist()

    assert read(pa.array(["b", "a", "b"]).dictionary_encode()) == ["b", "a", "b"]
    assert read(pa.array([3, 1])) == [3, 1]
    for several in ([[1, 2], [1]], [["a"], []], [{"x": 1}, {"x": 2}]):
        with pytest.raises(ValueError, match=r"integers or strings in 'label', got (list|struct)<"):
            read(pa.array(several))


def test_a_reader_that_leaves_is_no_error(folder):
    command = [sys.executable, "-m", "fastdml", "eval", "x.npy", "y.npy", "--json", "-"]
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == BROKEN_PIPE and done.stderr == b""


def test_interrupted(folder, capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "read_embeddings", stopped)
    assert run(folder, "x.npy", "y.npy") == 130 and capsys.readouterr().err.endswith("interrupted\n")


def test_a_missing_package_is_named(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit):
        run(folder, "x.npy", "y.npy", "--html", "p.html")
    said = capsys.readouterr().err
    assert "the page needs matplotlib, which is not installed: pip install fastdml[metrics]" in said


def test_labels_of_text_files_of_others(tmp_path):
    """With the mark of Windows's editors in front, and of numbers beyond 64 bits, which are told apart."""
    large = [str(2**64), str(2**64 + 1), "-1"]
    for text, labels in (("\ufeff3\n4\n", [3, 4]), ("\n".join(large), large)):
        (tmp_path / "y.txt").write_text(text, encoding="utf-8")
        assert files.read_labels(tmp_path / "y.txt").tolist() == labels


@pytest.mark.parametrize("names", [["1_23", "12_3", "4_56", "45_6"], ["01", "1", "2", "02"]])
def test_words_that_python_reads_as_numbers_are_words(names, tmp_path):
    """Labels that Python takes for the same number are of different classes."""
    file = tmp_path / "labels.txt"
    file.write_text("\n".join(names * 2) + "\n")
    assert files.read_labels(file).tolist() == names * 2
    file.write_text("1\n-2\n1\n")
    assert files.read_labels(file).dtype == np.int64
