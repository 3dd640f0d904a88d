"""The house: imports run downwards, nothing below the losses knows one by name, and what a call consists of
is written once."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import fastdml
from fastdml.engine import op
from fastdml.engine.call import Call
from fastdml.engine.registry import LOSSES

PACKAGE = ROOT / "fastdml"
# Lowest first; what stands side by side does not import each other. Executors import kernels on their
# first use.
LAYERS: list[set[str]] = [
    {"command_line", "kernels"},
    {"engine"},
    {"language"},
    {"distances", "reducers"},
    {"mining", "mixing"},
    {"losses"},
    {"functional", "miners", "explain", "samplers", "labels", "regularizers"},
    {"wrappers", "metrics"},
    {"methods"},
    {"distributed", "large_batch"},
    {"integrations"},
    {"demo"},
    {"bench"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, by their full names, those inside functions too."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "fastdml")
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            if module.split(".")[0] == "fastdml":
                yield from (f"{module}.{a.name}" for a in node.names)


def layer_of(module: str) -> str | None:
    """The layer of a module or of a name that the package itself exports; None: the package."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else None
    if name is not None and name not in LEVEL:
        exported = getattr(fastdml, name, None)
        where = getattr(exported, "__module__", None)
        return where.split(".")[1] if where is not None else None
    return name


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if p != PACKAGE / "__init__.py"]


def test_every_file_has_a_layer():
    names = {p.relative_to(PACKAGE).with_suffix("").parts[0] for p in FILES}
    assert names <= set(LEVEL), f"give these a layer: {sorted(names - set(LEVEL))}"


def test_imports_run_downwards():
    wrong = []
    for path in FILES:
        mine = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for module in imported(path):
            other = layer_of(module)
            if other is None:
                # The package as a whole, which holds losses: only for what nobody imports.
                fits = LEVEL[mine] >= LEVEL["integrations"]
            else:
                fits = other == mine or LEVEL[other] < LEVEL[mine]
            if not fits:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_the_engine_imports_kernels_on_their_first_use():
    top = [
        f"{path.name}: {module}"
        for path in (PACKAGE / "engine").rglob("*.py")
        for module in imported(path)
        if layer_of(module) == "kernels"
    ]
    assert not top, top


def names_of_losses() -> re.Pattern[str]:
    """A name of two words anywhere; any name in quotes; a module."""
    names = {*LOSSES, *fastdml.functional.__all__}
    several = "|".join(sorted(n for n in names if "_" in n))
    modules = "|".join(fastdml.losses.MODULES)
    return re.compile(rf"\b(?:{several}|{modules})\b|[\"'](?:{'|'.join(sorted(names))})[\"']")


BELOW = [
    *(PACKAGE / "engine").rglob("*.py"),
    *(p for p in (PACKAGE / "kernels").rglob("*.py") if "tiles" not in p.parts),
    *(
        p
        for p in (ROOT / "csrc").rglob("*")
        if p.suffix in (".py", ".h", ".cpp", ".cu", ".cuh") and "rows" not in p.parts
    ),
]


def test_nothing_below_the_losses_knows_one_by_name():
    pattern, found = names_of_losses(), []
    assert (
        pattern.search('"margin"') and pattern.search("smooth_ap") and not pattern.search("margin")
    )
    for path in BELOW:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert not found, "\n".join(found)


# ---- One list of what a call consists of


def test_the_operator_takes_a_packed_call():
    names = [a.name for a in torch.ops.fastdml.row_loss.default._schema.arguments]
    assert (
        names == ["tensors", "words", "wanted"] == list(inspect.signature(op.row_loss).parameters)
    )


# Fields of a call that its operator never sees: what `evaluate` does before and after.
OUTSIDE = {"weight", "finish", "before"}
# Those that no loss fills in, but who evaluates a share of the rows.
OF_SHARES = {"computed", "swept", "whole"}
SEVERAL = {"pairs": 4, "teacher": 2}
# Where calls are made, transformed and evaluated.
CALLERS = {"engine", "bench", "losses", "wrappers", "large_batch", "distributed"}


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(Call) if f.name not in OUTSIDE]
)
def test_a_packed_call_unpacks_to_itself(field):
    loss = next(iter(LOSSES.values())).examples()[0]
    values = {
        "loss": [next(reversed(LOSSES.values())).examples()[0]],
        "predicate": [lambda anchors, candidates: None],
        "own": [0, 2, torch.arange(3)],
        "reduction": ["none"],
        "backend": ["dense"],
    }
    tensors = tuple(torch.full((2,), float(k)) for k in range(SEVERAL.get(field, 1)))
    for value in values.get(field, [tensors if field in SEVERAL else tensors[0]]):
        call = dataclasses.replace(Call(loss, torch.zeros(3, 2)), **{field: value})
        found = Call.unpacked(*call.packed())
        for f in dataclasses.fields(Call):
            mine, other = getattr(call, f.name), getattr(found, f.name)
            same = (
                mine == other
                if f.name in SEVERAL or not isinstance(mine, torch.Tensor)
                else mine is other
            )
            if f.name in SEVERAL:
                same = len(mine) == len(other) and all(a is b for a, b in zip(mine, other))
            assert same, f.name


def test_nothing_else_lists_the_fields_of_a_call():
    """A function of a call takes a call: none has half of its fields as parameters, none passes them on one
    by one. Where a loss makes its call they are named, once a base; executors take a problem apart."""
    of_loss = {"loss", "reduction", "backend"}
    fields = {f.name for f in dataclasses.fields(Call)} - OUTSIDE - OF_SHARES - of_loss
    found = []
    for path in FILES:
        relative = path.relative_to(PACKAGE).as_posix()
        if relative.split("/")[0] not in CALLERS:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.Lambda)):
                a = node.args
                names = {x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)}
            elif isinstance(node, ast.Call):
                names = {k.arg for k in node.keywords if k.arg}
            else:
                continue
            if len(names & fields) > len(fields) // 2:
                found.append(f"{relative}:{node.lineno}")
    allowed = {"losses/base.py": 1, "engine/problem.py": 1}
    counts = {name: sum(f.startswith(name) for f in found) for name in allowed}
    others = [f for f in found if not f.startswith(tuple(allowed))]
    assert not others and counts == allowed, found


# ---- Tensors are made where the data is

FACTORIES = {
    "arange", "as_tensor", "asarray", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn",
    "randperm", "scalar_tensor", "sparse_coo_tensor", "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
# What follows torch's default device on purpose: parameters and buffers (and numbers given for these), and
# batches made up for tests.
# Functions of whose backward autograd finds the right derivative, or none that matters.
TWICE = {
    "_OrderedHinges": "linear between its steps",
    "_Once": "the refusal itself",
    "_Summed": "hands the derivative on",
    "_Joined": "takes rows of the derivative",
    "_Scaled": "a multiple of the derivative",
    "_Nothing": "measures the time of a function that does nothing",
}


def backwards() -> Iterator[tuple[str, str]]:
    """(class, source of its backward) of every autograd function."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and "torch.autograd.Function" in map(
                ast.unparse, node.bases
            ):
                (made,) = (f for f in node.body if getattr(f, "name", "") == "backward")
                yield node.name, ast.unparse(made)


def test_a_second_derivative_is_refused_or_right():
    others = {
        name for name, source in backwards() if not re.search(r"\b(once|_received)\(", source)
    }
    assert others == TWICE.keys()


def test_saved_tensors_are_read_once():
    """As activation checkpointing that is not reentrant asks."""
    assert [name for name, source in backwards() if source.count("saved_tensors") > 1] == []


BY_DEFAULT = {"__init__", "numbers", "_as_weights", "example_values"}
MADE_UP = ("bench/", "demo/", "explain.py")


def made_anywhere(node: ast.AST, function: str = "") -> Iterator[int]:
    """Lines that make a tensor on whatever torch's default device is."""
    if isinstance(node, ast.FunctionDef):
        function = node.name
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        known = ast.unparse(node.func.value) == "torch" and node.func.attr in FACTORIES
        named = any(k.arg in ("device", None) for k in node.keywords)
        if known and not named and function not in BY_DEFAULT:
            yield node.lineno
    for child in ast.iter_child_nodes(node):
        yield from made_anywhere(child, function)


def test_tensors_are_made_on_the_device_of_the_data():
    wrong = []
    for path in FILES:
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(MADE_UP):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            wrong += [f"{name}:{line}" for line in made_anywhere(tree)]
    assert not wrong, wrong


def test_sums_by_index_are_made_in_one_place():
    """Torch's own are in no order on a GPU."""
    makers = [p.name for p in FILES if ".index_add" in p.read_text(encoding="utf-8")]
    assert makers == ["summed.py"]


def test_methods_normalise_as_the_engine_does():
    """torch's own is wrong in narrow types: there a row of zeros becomes NaN and a long one 0."""
    wrong = []
    for path in sorted((PACKAGE / "methods").glob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        called = (node.func for node in nodes if isinstance(node, ast.Call))
        names = (getattr(f, "attr", getattr(f, "id", "")) for f in called)
        wrong += [path.name for name in names if name == "normalize"]
    assert not wrong, wrong
