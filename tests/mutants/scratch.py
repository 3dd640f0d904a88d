"""A copy of the tree in which faults are planted, built and tested; the checkout is never changed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from faults import Fault

COMPILED = {".h", ".cpp"}
LIMIT = 900  # seconds of a fault's tests; a fault that hangs shows
# pytest's exit statuses: 1 is a red test, the others that no test was run as it should be.
GREEN, RED = 0, 1


@dataclasses.dataclass
class Outcome:
    status: str  # "red", "green", or what is wrong with the list
    test: str = ""  # the first red one
    detail: str = ""


def files(root: Path) -> list[str]:
    """What git has or would have, by path."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return [name for name in found.stdout.splitlines() if (root / name).is_file()]


class Scratch:
    """folder/tree, where one fault at a time is, and folder/clean, what it is brought back from."""

    def __init__(self, root: Path, folder: Path, isa: str) -> None:
        self.root, self.isa = root, isa
        self.tree, self.clean = folder / "tree", folder / "clean"
        self.library = f"fastdml/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{self.tree}{os.pathsep}{self.tree / 'tests' / 'mutants'}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "CCACHE_BASEDIR": str(self.tree),
            "OMP_NUM_THREADS": "1",
            "FASTDML_ISAS": isa,
            "FASTDML_BUILD": "cpu",
        }

    def prepare(self) -> None:
        """Copies the tree and builds it."""
        names = files(self.root)
        for old in self.tree.rglob("*.py") if self.tree.exists() else []:
            if str(old.relative_to(self.tree)) not in names:
                old.unlink()
        for name in names:
            source, target = self.root / name, self.tree / name
            # Equal files keep their times: the build begins where it was.
            if not target.exists() or target.read_bytes() != source.read_bytes():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        if problem := self.build(""):
            raise SystemExit(f"the tree itself does not compile:\n{problem}")
        self.clean.mkdir(exist_ok=True)
        for name in ("csrc", "build/temp", self.library):
            _replace(self.tree / name, self.clean / name)

    def build(self, losses: str) -> str:
        """Compiles what changed; returns what the compiler said if it failed."""
        code = (
            "import sys; from pathlib import Path; from csrc.build import build; "
            "root = Path.cwd(); build(root, root / 'build' / 'temp', root / sys.argv[1], mode='cpu')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, self.library], cwd=self.tree, capture_output=True, text=True,
            env={**self.environment, "FASTDML_LOSSES": losses},
        )  # fmt: skip
        return "" if done.returncode == 0 else done.stdout[-3000:] + done.stderr[-3000:]

    def try_fault(self, fault: Fault) -> Outcome:
        """Plants a fault, runs its tests, and takes it away again."""
        path, text = fault.mutated(self.tree)
        before, compiled = path.read_bytes(), path.suffix in COMPILED
        try:
            path.write_text(text, encoding="utf-8")
            # The emulator of CUDA's row takes the losses that the library has.
            if (compiled or fault.losses) and (problem := self.build(fault.losses)):
                return Outcome("does not compile", detail=problem)
            found = Outcome("green")
            # What nobody can see is not looked for everywhere.
            for arguments in fault.arguments(self.tree)[: 1 if fault.excuse else None]:
                if found.status == "green":
                    found = self.test(arguments, first="-x")
            return found
        finally:
            path.write_bytes(before)
            if compiled or fault.losses:
                for name in ("csrc", "build/temp", self.library):
                    _replace(self.clean / name, self.tree / name)
            # Built by its tests from csrc, by the times of files.
            shutil.rmtree(self.tree / "build" / "emulator", ignore_errors=True)

    def test(self, arguments: list[str], first: str = "") -> Outcome:
        """Runs tests, up to the first that is red."""
        note = self.tree / "build" / "first-red.txt"
        note.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "first_red", "-p", "no:cacheprovider"]
        try:
            done = subprocess.run(
                [*command, *filter(None, [first]), *arguments], cwd=self.tree, capture_output=True,
                text=True, timeout=LIMIT, env={**self.environment, "FIRST_RED": str(note)},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Outcome("red", "(no end)")
        test = note.read_text("utf-8") if note.exists() else ""
        if done.returncode == GREEN:
            return Outcome("green")
        if done.returncode == RED:
            return Outcome("red", test)
        if done.returncode < 0:
            return Outcome("red", f"(signal {-done.returncode})")
        return Outcome(f"pytest exits with {done.returncode}", detail=done.stdout[-3000:])


def _replace(source: Path, target: Path) -> None:
    """A copy with the times of its files, by which the build tells what changed."""
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
