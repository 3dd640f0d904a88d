"""Printed functors compiled at their first use, into a folder that processes share."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from ..engine import library


class CannotCompile(RuntimeError):
    """Why a printed functor cannot be compiled or loaded here."""


@functools.cache
def sources() -> Path:
    """The folder of the row language's headers: in the package, or beside it in a source tree."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "rows" / "row.h").exists():
            return folder
    raise CannotCompile("the headers of the row language are not installed")


def cache_folder() -> Path:
    """FASTDML_CACHE, or a folder `fastdml` in the user's cache."""
    if chosen := os.environ.get("FASTDML_CACHE"):
        return Path(chosen).absolute()  # a library of a name without a folder is looked for elsewhere
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "fastdml"


def module_at(path: Path, name: str) -> ModuleType:
    """A Python file as a module of this name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def _build() -> ModuleType:
    """csrc/build.py, which knows how functors are compiled."""
    return module_at(sources() / "build.py", "fastdml_build")


@functools.cache
def _versions() -> str:
    """Of everything but a functor's own text that a compiled functor depends on."""
    found = hashlib.sha256()
    others = [sources() / name for name in ("rows/row.h", "cpu/differences.cpp")]
    for header in sorted([*sources().glob("cpu/*.h"), *others]):
        found.update(header.read_bytes())
    for part in (_build().ROWS, " ".join(compiler()), _compiler_version()):
        found.update(part.encode())
    return found.hexdigest()


@functools.cache
def compiler() -> tuple[str, ...]:
    """The C++ compiler as a command: CXX, c++, g++ or clang++."""
    if given := os.environ.get("CXX", "").split():
        return tuple(given)
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return (path,)
    raise CannotCompile("no C++ compiler was found (CXX, c++, g++, clang++)")


@functools.cache
def _compiler_version() -> str:
    command = [*compiler(), "--version"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError as error:
        raise CannotCompile(f"the C++ compiler cannot be run ({error}); CXX names another") from error


@functools.cache
def load(texts: tuple[str, ...], names: tuple[str, ...], stream: bool = False) -> tuple[int, ...]:
    """The ids, in the compiled library, of functors of these texts: one shared library, compiled where
    this machine has not seen it. stream: they are streamed forms.

    Raises:
        CannotCompile: saying why.
    """
    module, path = _place(texts, names, stream)
    if not _intact(path):
        _compile(texts, names, module.active_isa(), path, "stream" if stream else "kernel")
    try:
        loaded = ctypes.CDLL(str(path))  # for good: nothing unloads it
    except OSError as error:
        raise CannotCompile(f"{path} cannot be loaded: {error}") from error
    ids = []
    for name in names:
        kernel = getattr(loaded, f"fastdml_{name}")
        kernel.restype = ctypes.c_void_p
        if stream:
            ids.append(int(module.add_stream(kernel())))
        else:
            ids.append(int(module.add_functor(f"{name}@{path.stem}", kernel())))
    return tuple(ids)


def _place(
    texts: tuple[str, ...], names: tuple[str, ...], stream: bool
) -> tuple[ModuleType, Path]:
    """The compiled library, and where the shared library of these functors is, or will be."""
    module = library.load()
    if module is None:
        raise CannotCompile("the compiled library is not installed")
    parts = [*texts, str(stream), module.active_isa(), _versions()]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    return module, cache_folder() / f"{names[0]}-{key}.so"


def _digest(library: Path) -> str:
    """As `sha256sum` prints it."""
    return f"{hashlib.sha256(library.read_bytes()).hexdigest()}  {library.name}\n"


def _intact(path: Path) -> bool:
    """Whether a library is there, whole: loading one of which a full disk or a lost machine kept a part would
    end the process."""
    try:
        return path.with_suffix(".sha256").read_text() == _digest(path)
    except (OSError, UnicodeDecodeError):
        return False


def kept(texts: tuple[str, ...], names: tuple[str, ...], stream: bool) -> bool:
    """Whether this machine has compiled these functors."""
    try:
        return _intact(_place(texts, names, stream)[1])
    except CannotCompile:
        return False


def _source(texts: Sequence[str], names: Sequence[str], isa: str, width: int, kind: str) -> str:
    head = f"#define FASTDML_ISA {isa}\n#define FASTDML_VECTOR_BYTES {width}\n"
    exports = [
        f'extern "C" __attribute__((visibility("default"))) const void* fastdml_{name}() {{\n'
        f"  return &fastdml::{kind}_{name}_{isa};\n}}\n"
        for name in names
    ]
    form = {"kernel": "instantiate.h", "stream": "stream_instantiate.h"}[kind]
    return "\n".join(
        [f'{head}#include "cpu/{form}"\n#include "cpu/differences.cpp"', *texts, *exports]
    )


_WORKPLACE, _LONG = ".compiling-", 3600.0  # seconds that no compile takes


def _sweep(folder: Path) -> None:
    """Removes what processes left behind that were ended while they compiled."""
    for left in folder.glob(f"{_WORKPLACE}*"):
        with contextlib.suppress(OSError):  # another process sweeps too
            if time.time() - left.stat().st_mtime > _LONG:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _workplace(path: Path, failed: str) -> Iterator[Path]:
    """A new folder of the cache beside a file, in which it is made before it is moved to its place: another
    process sees all of it or nothing. failed: what to say where it cannot be made."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        work = Path(tempfile.mkdtemp(prefix=_WORKPLACE, dir=folder))
    except OSError as error:
        raise CannotCompile(
            f"the folder for compiled losses, {folder}, cannot be written to ({error.strerror}); "
            "FASTDML_CACHE names another"
        ) from error
    try:
        yield work
    except OSError as error:
        raise CannotCompile(f"{failed}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def stored(text: str, name: str, suffix: str) -> Path:
    """A file of the cache that holds the text.

    Raises:
        CannotCompile: where the cache cannot be written to.
    """
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    path = cache_folder() / f"{name}_{key}{suffix}"
    with contextlib.suppress(OSError):
        if path.read_bytes() == text.encode():
            return path
    with _workplace(path, f"{path} cannot be written") as work:
        (work / path.name).write_text(text)
        os.replace(work / path.name, path)
    return path


def _compile(texts: Sequence[str], names: Sequence[str], isa: str, path: Path, kind: str) -> None:
    """The digest comes first: a library without its own is compiled again."""
    width, flags = next((w, f) for i, w, f in _build().instruction_sets() if i == isa)
    with _workplace(path, f"{names[0]} could not be compiled") as work:
        written, made, digest = work / "functor.cpp", work / path.name, work / "functor.sha256"
        written.write_text(_source(texts, names, isa, width, kind))
        command = [*compiler(), *_build().ROWS.split(), *flags.split(), f"-I{sources()}", "-w"]
        # In two steps, as compiler caches know them.
        _run([*command, "-c", written.name, "-o", "functor.o"], work, names[0])
        _run([*compiler(), "-shared", "functor.o", "-o", made.name], work, names[0])
        digest.write_text(_digest(made))
        os.replace(written, path.with_suffix(".cpp"))  # for those who want to read it
        os.replace(digest, path.with_suffix(".sha256"))
        os.replace(made, path)


def _run(command: Sequence[str], folder: Path, name: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotCompile(f"the compiler failed on {name}: {done.stderr.strip()[:2000]}")


def plain(name: str) -> str:
    """A name as an identifier."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_")


@functools.cache
def notice(reason: str) -> None:
    """Says once why a loss runs without its compiled form."""
    warnings.warn(
        f"fastdml runs a loss through the chunked executor, which is slower: {reason}", stacklevel=3
    )
