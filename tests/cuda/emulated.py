"""The row of CUDA on emulated threads: emulate.cpp as a torch library, and its executor."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import torch
from conftest import ROOT

from csrc.build import headers
from fastdml.engine import library, schedule
from fastdml.engine.executors.native import Native

HERE = Path(__file__).resolve().parent
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def named(header: Path) -> set[str]:
    """The losses that a header defines."""
    return set(re.findall(r"^FASTDML_ROW_LOSS\((\w+)", header.read_text(), re.M))


HEADERS = headers(ROOT, ROOT / "build" / "emulator" / "printed")
# Those of the library, which may have been built of some (FASTDML_LOSSES).
ALL = [h for h in HEADERS if named(h) & set(library.functors())]


def build_emulator(
    folder: Path, losses: Iterable[Path], floats: Iterable[str], flags: Iterable[str]
) -> Path:
    """The emulator as a torch library; compiled again only when a source is newer.

    losses: the headers that are in it; floats: those of them that are in float32 too.
    """
    from torch.utils import cpp_extension

    csrc = ROOT / "csrc"
    # The list is part of the file's name: a loss that is removed changes it too.
    listed = "".join(f'#include "{h}"\n' for h in losses)
    (folder / "losses.inc").write_text(listed)
    digest = hashlib.sha256(listed.encode()).hexdigest()[:12]
    target = folder / f"emulator-{torch.__version__}-{digest}.so"
    sources = [*HEADERS, *csrc.rglob("*.h"), *csrc.rglob("*.cuh"), *HERE.glob("*.h"), HERE / "emulate.cpp"]
    newest = max(path.stat().st_mtime for path in sources)
    if not target.exists() or target.stat().st_mtime < newest:
        # As little optimised as is bearable to run: compiling takes most of the time.
        include = [f"-isystem{p}" for p in cpp_extension.include_paths()]
        assert COMPILER is not None
        command = [
            *COMPILER.split(), "-std=c++20", "-Og", "-fPIC", "-shared", "-fvisibility=hidden",
            "-U_FORTIFY_SOURCE",  # which takes a jump to another stack for an attack
            "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized",
            # A functor that negates a bool with ~ would be right on vectors and wrong here.
            "-Werror=bool-operation",
            f'-DFASTDML_EMULATED_FLOATS=" {" ".join(floats)} "',
            "-DTORCH_TARGET_VERSION=0x020a000000000000", *include,
            f"-I{csrc}", f"-I{HERE}", f"-I{folder}", *flags,
            str(HERE / "emulate.cpp"), "-o", str(target),
            f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
    return target


def build_once(
    folder: Path,
    losses: Iterable[Path] = ALL,
    floats: Iterable[str] = (),
    flags: Iterable[str] = (),
) -> Path:
    """The same where several processes test at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_emulator(folder, losses, floats, flags)


class Emulated(Native):
    name = "emulated"

    @property
    def kernel(self):
        return torch.ops.fastdml_emulated.rows_

    def run(self, problem, wanted):
        """In blocks at every size: one call for the whole problem would be the CPU's own row."""
        return schedule.run(problem, self, wanted)
