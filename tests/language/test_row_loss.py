"""fastdml.row_loss of functions of the row language: the examples of docs/language.md, and what happens
without a compiler, without a folder and with words that are none."""

import copy
import dataclasses
import io
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from described import multi_similarity

import fastdml
from fastdml.engine import library
from fastdml.engine.autograd import evaluate
from fastdml.engine.call import Call
from fastdml.engine.registry import LOSSES as LIBRARY
from fastdml.engine.registry import handle
from fastdml.language import compile, log_sum_exp, mean, relu, sum
from fastdml.language.described import Described

pytestmark = pytest.mark.usefixtures("compiled_quickly")
needs_library = pytest.mark.skipif(library.load() is None, reason="no compiled library")
DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "language.md"


def documented():
    """The losses of the document, by the names of their functions."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S)
    world, found = {}, {}
    for block in blocks:
        exec(block, world)
        found[world["loss"].description().name] = world["loss"]
    return found


LOSSES = documented()


def batch(dtype=torch.float64):
    g = torch.Generator().manual_seed(3)
    y = torch.randint(0, 6, (41,), generator=g) ** 2 // 4
    y[0] = 99
    return (
        torch.randn(41, 12, generator=g, dtype=dtype),
        y,
        torch.randn(41, 5, generator=g, dtype=dtype),
    )


def gradients(loss, backend, other=None):
    x, y, t = batch()
    loss.backend = backend
    x.requires_grad_()
    leaves = [x, *loss.parameters()]
    further = {"teacher": t} if loss.description().taught else {}
    if other is None:
        value = loss(x, y, **further)
    else:
        r = other.clone().requires_grad_()
        leaves.append(r)
        if further:
            further["ref_teacher"] = torch.linspace(-1, 1, 150).view(30, 5).sin().double()
        value = loss(x, y, None, r, torch.arange(30) % 7, **further)
    return value.detach(), torch.autograd.grad(value, leaves)


def test_five_examples():
    assert len(LOSSES) == 5


@needs_library
@pytest.mark.parametrize("name", LOSSES)
def test_native_equals_the_dense_specification(name):
    loss = LOSSES[name].double()
    for other in (None, torch.linspace(-1, 1, 360, dtype=torch.float64).view(30, 12).cos()):
        value, found = gradients(loss, "native", other)
        truth, expected = gradients(loss, "dense", other)
        torch.testing.assert_close(value, truth, rtol=1e-11, atol=1e-12)
        assert len(found) == len(expected)
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@needs_library
def test_auto_runs_the_printed_functor():
    x, y, _ = batch()
    found = fastdml.explain(LOSSES["multi_similarity"], x, y, backend="auto")
    assert "native (compiled for this device)" in str(found)


def hinge(p, margin):
    return sum(relu(p.s - margin), where=p.negative)


def keyword_only(p, *, margin):
    return hinge(p, margin)


def test_symmetric_is_read_off_the_weight():
    symmetric = fastdml.row_loss(hinge, parameters={"margin": 0.1}).description()
    assert symmetric.symmetric
    assert not LOSSES["multi_similarity"].description().symmetric


def test_another_word_runs_in_torch_and_explain_names_it():
    x, y, _ = batch()
    loss = fastdml.row_loss(lambda p: torch.special.entr(sum(p.s, where=p.positive) + 9))
    assert torch.isfinite(loss(x, y))
    assert "'special_entr' is no word of the row language" in str(fastdml.explain(loss, x, y))
    with pytest.raises(ValueError, match="special_entr"):
        loss.backend = "native"
        loss(x, y)


def test_a_copy_of_the_module():
    x, y, _ = batch()
    loss = fastdml.row_loss(hinge, parameters={"margin": torch.nn.Parameter(torch.tensor(0.2))})
    again = copy.deepcopy(loss)
    with torch.no_grad():
        loss.margin += 0.5
    assert again(x, y) > loss(x, y)


@pytest.mark.parametrize("called_before", [False, True])
def test_a_module_is_pickled_and_saved_whole(called_before):
    x, y, _ = batch()
    margin = torch.nn.Parameter(torch.tensor(0.2))
    loss = fastdml.row_loss(hinge, parameters={"margin": margin}, backend="chunked")
    if called_before:
        loss(x, y)
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    for again in (pickle.loads(pickle.dumps(loss)), torch.load(file, weights_only=False)):
        assert again(x, y) == loss(x, y)
        # In another process its string might stand for another function.
        assert handle(again.description()) != handle(loss.description())


def test_a_branch_on_a_number_is_no_word():
    x, y, _ = batch()
    loss = fastdml.row_loss(lambda p: sum(p.s, where=p.positive) if sum(p.s, where=p.pair) else 0.0)
    assert "use where(condition, a, b)" in str(fastdml.explain(loss, x, y))


@needs_library
@pytest.mark.parametrize("way", ["folder", "compiler", "missing compiler", "broken compiler"])
def test_falls_back_with_one_notice(way, monkeypatch, tmp_path):
    x, y, _ = batch()
    if way == "folder":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("FASTDML_CACHE", str(tmp_path / "file" / "cache"))
        expected = "cannot be written to"
    elif way == "compiler":

        def none():
            raise compile.CannotCompile("no C++ compiler was found (CXX, c++, g++, clang++)")

        monkeypatch.setattr(compile, "compiler", none)
        monkeypatch.setattr(compile, "_versions", lambda: none())
        expected = "no C\\+\\+ compiler was found"
    elif way == "missing compiler":
        monkeypatch.setenv("FASTDML_CACHE", str(tmp_path))
        monkeypatch.setattr(compile, "compiler", lambda: ("no-such-compiler",))
        monkeypatch.setattr(compile, "_versions", compile._versions.__wrapped__)
        monkeypatch.setattr(compile, "_compiler_version", compile._compiler_version.__wrapped__)
        expected = "the C\\+\\+ compiler cannot be run"
    else:
        monkeypatch.setenv("FASTDML_CACHE", str(tmp_path))
        monkeypatch.setattr(compile, "compiler", lambda: ("false",))
        expected = "the compiler failed on"
    compile.notice.cache_clear()
    shifts = {"folder": 0.11, "compiler": 0.12, "broken compiler": 0.13, "missing compiler": 0.14}
    shift = shifts[way]
    made = [fastdml.row_loss(lambda p: sum(p.s + shift, where=p.positive)) for _ in range(2)]
    with pytest.warns(UserWarning, match=expected) as caught:
        first, second = (loss(x, y) for loss in made)
    assert first == second and len(caught) == 1
    assert expected.replace("\\", "") in str(fastdml.explain(made[0], x, y))


_PROGRAM = """
import torch, fastdml
from fastdml.language import log_sum_exp
loss = fastdml.row_loss(lambda p: log_sum_exp(3.5 * p.s, where=p.negative), backend="native")
x = torch.eye(6)[:, :4].contiguous() + 0.1
print(float(loss(x, torch.arange(6) // 2)))
"""


def program(folder, **environment):
    """A process of its own that compiles into a folder, as a leader of its group."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", _PROGRAM],
        env={**os.environ, "FASTDML_CACHE": str(folder), **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
@needs_library
def test_two_processes_at_once_after_a_killed_one(tmp_path):
    """Both compile, one result is kept, and what a killed compile left behind disturbs nobody."""
    compiler = tmp_path / "endless"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || exec sleep 600\n')
    compiler.chmod(0o755)
    folder = tmp_path / "cache"
    killed = program(folder, CXX=str(compiler))
    deadline = time.monotonic() + 120
    while not list(folder.glob(".compiling-*/functor.cpp")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert list(folder.glob(".compiling-*")) and not list(folder.glob("*.so"))
    found = [(p, *p.communicate()) for p in [program(folder), program(folder)]]
    assert all(p.returncode == 0 for p, _, _ in found), found
    assert found[0][1] == found[1][1] != ""
    assert len(list(folder.glob("*.so"))) == 1


@needs_library
def test_another_version_is_compiled_anew(tmp_path, monkeypatch):
    """Of the headers, of the flags or of the compiler: all of them make the key."""
    x, y, _ = batch()
    monkeypatch.setenv("FASTDML_CACHE", str(tmp_path))
    found = []
    for version in ("one", "one", "another"):
        monkeypatch.setattr(compile, "_versions", lambda version=version: version)
        compile.load.cache_clear()  # as in another process
        loss = fastdml.row_loss(lambda p: sum(p.s * 0.75, where=p.positive), backend="native")
        found.append((loss(x, y), len(list(tmp_path.glob("*.so")))))
    assert [count for _, count in found] == [1, 1, 2]
    assert found[0][0] == found[1][0] == found[2][0]


@needs_library
@pytest.mark.parametrize("size", [0, 100])
def test_a_library_that_is_not_whole_is_compiled_again(size, tmp_path, monkeypatch):
    """A full disk or a lost machine may leave a part of it."""
    x, y, _ = batch()
    monkeypatch.setenv("FASTDML_CACHE", str(tmp_path))
    found, whole = [], []
    for _ in range(2):
        compile.load.cache_clear()  # as in another process
        loss = fastdml.row_loss(lambda p: sum(p.s * 0.76, where=p.positive), backend="native")
        found.append(loss(x, y))
        (made,) = tmp_path.glob("*.so")
        whole.append(made.read_bytes())
        (tmp_path / "part").write_bytes(whole[0][:size])
        os.replace(tmp_path / "part", made)  # what is loaded stays as it is
    assert found[0] == found[1] and len(whole[0]) == len(whole[1]) > size


@needs_library
def test_a_whole_library_is_not_compiled_again(tmp_path, monkeypatch):
    x, y, _ = batch()
    monkeypatch.setenv("FASTDML_CACHE", str(tmp_path))
    written = []
    for _ in range(2):
        compile.load.cache_clear()
        loss = fastdml.row_loss(lambda p: sum(p.s * 0.78, where=p.positive), backend="native")
        loss(x, y)
        written.append([path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())])
    assert written[0] == written[1]


def test_a_text_that_is_not_whole_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDML_CACHE", str(tmp_path))
    place = compile.stored("text", "name", ".py")
    place.write_text("te")
    assert compile.stored("text", "name", ".py").read_text() == "text"


@needs_library
def test_a_cache_beside(tmp_path, monkeypatch):
    x, y, _ = batch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTDML_CACHE", ".")
    loss = fastdml.row_loss(lambda p: sum(p.s * 0.77, where=p.positive), backend="native")
    assert torch.isfinite(loss(x, y))


@needs_library
@pytest.mark.parametrize("name", ["none of the processor's", "another"])
def test_what_the_build_was_told_is_not_asked_at_run_time(name, tmp_path, monkeypatch):
    """A variable that is still exported: it may name other instruction sets than the one in use, or none."""
    x, y, _ = batch()
    others = [isa for isa, _, _ in compile._build().X86 if isa != library.load().active_isa()]
    monkeypatch.setenv("FASTDML_ISAS", others[0] if name == "another" else name)
    monkeypatch.setenv("FASTDML_CACHE", str(tmp_path))
    compile.load.cache_clear()
    loss = fastdml.row_loss(lambda p: sum(p.s * 0.79, where=p.positive), backend="native")
    assert torch.isfinite(loss(x, y))


def test_what_ended_processes_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTDML_CACHE", str(tmp_path))
    old, new = tmp_path / ".compiling-old", tmp_path / ".compiling-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "functor.cpp").write_text("")
    os.utime(old, (time.time() - 7200,) * 2)
    compile.stored("text", "name", ".py")
    assert new.exists() and not old.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"fn": lambda p: sum(p.teacher, where=p.pair)}, "teacher: expected the similarity"),
        ({"fn": lambda p: p.row_value(0)}, r"fn: expected no p.row_value"),
        ({"fn": lambda p: p.scalar(0)}, "fn: expected no p.scalar, which"),
        ({"fn": hinge, "parameters": {"margin": torch.ones(2)}}, r"\['margin'\]: expected one number"),
        ({"fn": hinge, "parameters": {"margin": float("nan")}}, "margin"),
        ({"fn": hinge, "parameters": {"margin": 0.1}, "teacher": "cosines"}, "teacher: expected one of"),
        ({"fn": lambda s, p, n: s.sum(1), "parameters": {"a": 1.0}}, "parameters: expected None"),
        ({"fn": hinge, "parameters": {"margins": 0.1}}, r"expected those of fn\(p, margin\).*'margin'"),
        ({"fn": hinge, "parameters": {"margin": 0.1, "a": 1}}, "parameters: expected those of fn.*'a'"),
        ({"fn": keyword_only}, "parameters: expected those of fn.*'margin'"),
        ({"fn": hinge, "parameters": {"p": 0.1}}, "parameters: expected those of fn.*'p'"),
        ({"fn": hinge, "parameters": {"margin": torch.tensor(1j)}}, "expected one number, got torch.compl"),
        ({"fn": hinge, "parameters": {"margin": np.float32("inf")}}, "expected a finite number, got inf"),
    ],
)  # fmt: skip
def test_errors(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        fastdml.row_loss(**arguments)


@needs_library
@pytest.mark.parametrize("backend", ["native", "chunked"])
def test_arguments_are_read_at_every_call(backend):
    def push(p, scale, margin=None, reduction=1.0):
        z = p.s if margin is None else relu(p.s - margin)
        return sum(scale * z * reduction, where=p.negative)

    def made(**arguments):
        return fastdml.row_loss(push, parameters=arguments, backend=backend)

    x, y, _ = batch()
    loss = made(scale=2.0, margin=None, reduction=1.0)
    loss(x, y)
    for name, value in (
        ("scale", 3.0),
        ("scale", -1.0),
        ("margin", 0.1),
        ("scale", np.float32(2.0)),
    ):
        setattr(loss, name, value)
        assert loss(x, y) == made(scale=loss.scale, margin=loss.margin)(x, y)
        assert copy.deepcopy(loss)(x, y) == loss(x, y)
    before = loss.description().forms
    loss.scale = 5.0
    assert loss.description().forms is before  # nothing is traced anew
    loss.reduction = "sum"  # as of every loss
    assert loss(x, y) == len(x) * made(scale=5.0, margin=0.1)(x, y)


def test_an_argument_stays_a_number_or_a_tensor():
    loss = fastdml.row_loss(hinge, parameters={"margin": 0.1})
    for value, expected in ((torch.tensor(0.2), "no tensor"), (float("nan"), "a finite number")):
        with pytest.raises(ValueError, match=f"margin.*expected {expected}"):
            loss.margin = value
    loss = fastdml.row_loss(hinge, parameters={"margin": torch.tensor(0.1)})
    with pytest.raises(ValueError, match="margin: expected a tensor of one number"):
        loss.margin = 0.2
    with pytest.raises(ValueError, match="margin: expected one number"):
        loss.margin = torch.ones(2)
    loss.margin = torch.tensor(0.2)


def of_p_and_self(q, p, self):
    return sum(p * q.s * self, where=q.negative)


@needs_library
@pytest.mark.parametrize("backend", ["native", "chunked"])
def test_arguments_of_any_name(backend):
    x, y, _ = batch()
    loss = fastdml.row_loss(of_p_and_self, parameters={"p": 2.0, "self": 3.0}, backend=backend)
    plain = fastdml.row_loss(lambda p: sum(6 * p.s, where=p.negative), backend=backend)
    torch.testing.assert_close(loss(x, y), plain(x, y))


@pytest.mark.parametrize("value", [np.float32(0.25), np.float64(0.25), np.array(0.25)])
def test_numbers_of_numpy_stay_open(value):
    made = fastdml.row_loss(hinge, parameters={"margin": value}).description()
    assert made.open_arguments == {"margin": 0.25} and made.functor_name == "user_hinge"
    assert not isinstance(made.forms.program, str)


def test_a_flag_of_numpy_is_a_flag():
    def either(p, push):
        return sum(p.s, where=p.negative if push else p.positive)

    loss = fastdml.row_loss(either, parameters={"push": np.bool_(False)})
    assert loss.description().arguments["push"] is False


def test_an_integer_is_one_where_a_function_runs_in_torch():
    def hardest(p, k):
        return mean(
            p.s, where=p.s >= torch.where(p.negative, p.s, -2.0).topk(k, dim=1).values[:, -1:]
        )

    x, y, _ = batch()
    for given in (3, np.int64(3)):
        assert torch.isfinite(fastdml.row_loss(hardest, parameters={"k": given})(x, y))


def scaled(p, scale):
    return sum(p.s * scale, where=p.negative)


@pytest.mark.parametrize("backend", ["dense", "chunked", "auto"])
def test_a_parameter_that_would_get_no_gradient_is_refused(backend):
    x, y, _ = batch()
    w = torch.nn.Parameter(torch.tensor(2.0))
    for made in (
        fastdml.row_loss(lambda p: scaled(p, w), backend=backend),
        fastdml.row_loss(
            lambda p, some: scaled(p, some[0]), parameters={"some": [w]}, backend=backend
        ),
    ):
        with pytest.raises(
            ValueError, match=r"fn: .* requires a gradient, .* expected it among parameters"
        ):
            made(x, y)
    found = fastdml.row_loss(lambda p: scaled(p, w.detach()), backend=backend)(x, y)
    torch.testing.assert_close(found, fastdml.row_loss(lambda p: scaled(p, 2.0))(x, y))


class OfRow(torch.nn.Module):
    def forward(self, p, scale=2.0):
        return scaled(p, scale)


class OfTensors(torch.nn.Module):
    def forward(self, s, positive, negative):
        return 2 * (s * negative).sum(1)


def test_functions_that_are_modules():
    x, y, _ = batch()
    expected = fastdml.row_loss(scaled, parameters={"scale": 2.0})(x, y)
    for made in (
        fastdml.row_loss(OfRow()),
        fastdml.row_loss(OfRow(), parameters={"scale": 2.0}),
        fastdml.row_loss(OfTensors()),
    ):
        torch.testing.assert_close(made(x, y), expected)


def test_a_function_that_looks_at_its_arguments_runs_in_torch():
    def looks(p, scale):
        if not isinstance(scale, float):
            raise ValueError("scale: expected a number")
        return scaled(p, scale)

    x, y, _ = batch()
    found = fastdml.row_loss(looks, parameters={"scale": 2.0})(x, y)
    torch.testing.assert_close(found, fastdml.row_loss(scaled, parameters={"scale": 2.0})(x, y))


def test_a_flag_that_is_set_asks_for_no_more_than_is_handed_in():
    def maybe_taught(p, taught):
        return sum(p.s * (p.teacher if taught else 1.0), where=p.pair)

    loss = fastdml.row_loss(maybe_taught, parameters={"taught": False})
    with pytest.raises(
        ValueError, match="teacher: expected the similarity of the teacher that fn reads"
    ):
        loss.taught = True
    x, y, _ = batch()
    assert loss.taught is False and torch.isfinite(loss(x, y))


def test_a_teacher_of_candidates_that_are_not_given():
    x, y, t = batch()
    loss = LOSSES["distilled"].double()
    with pytest.raises(ValueError, match="ref_teacher: expected None"):
        loss(x, y, teacher=t, ref_teacher=t)


def test_where_is_no_number():
    """However long it is."""

    def mistaken(p):
        z = p.s
        for _ in range(60):
            z = z * z / 2 + z / 10
        return sum(p.s, where=z)

    with pytest.raises(ValueError, match="where: expected a mask of pairs"):
        fastdml.row_loss(mistaken)(*batch()[:2])


def test_a_result_that_is_not_of_the_row():
    x, y, _ = batch()
    with pytest.raises(ValueError, match=r"fn: expected a number of every row, \[\d+, 1\], got"):
        fastdml.row_loss(lambda p: log_sum_exp(p.s, where=p.pair) + p.s)(x, y)


@pytest.mark.parametrize("backend", ["auto", "chunked"])
def test_a_result_of_several_numbers(backend):
    x, y, _ = batch()
    loss = fastdml.row_loss(lambda p: (sum(p.s, where=p.pair),) * 2, backend=backend)
    with pytest.raises(ValueError, match="fn: expected one number of every row"):
        loss(x, y)


@dataclasses.dataclass(frozen=True)
class MultiSimilarity(Described):
    """As the library's own will read."""

    name = "described_multi_similarity"

    alpha: float = 2.0
    beta: float = 50.0
    base: float = 0.5
    epsilon: float | None = None
    max_positive: float = float("inf")

    def row(self, p):
        arguments = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del arguments["similarity"]
        return multi_similarity(p, **arguments)


@needs_library
def test_a_class_with_a_row():
    """The same value and gradient as the library's, one functor for all values of its floats."""
    x, y, _ = batch()
    for fields in ({"epsilon": 0.1}, {"epsilon": 0.1, "alpha": 3.0, "max_positive": 0.9}):
        found = []
        for description in (MultiSimilarity(**fields), LIBRARY["multi_similarity"](**fields)):
            z = x.clone().requires_grad_()
            value = evaluate(Call(description, z, anchor_labels=y, backend="native"))
            found.append((value.detach(), *torch.autograd.grad(value, z)))
        for a, b in zip(*found):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    one, other = MultiSimilarity(epsilon=0.1), MultiSimilarity(epsilon=0.2, alpha=3.0)
    assert one.forms is other.forms and one.forms is not MultiSimilarity().forms


def test_a_regularizer_is_added():
    x, y, _ = batch()
    plain = fastdml.row_loss(hinge, parameters={"margin": 0.1}, backend="chunked")
    more = fastdml.row_loss(
        hinge,
        parameters={"margin": 0.1},
        backend="chunked",
        embedding_regularizer=lambda e: e.sum() * 0 + 3,
    )
    assert torch.allclose(more(x, y), plain(x, y) + 3)
