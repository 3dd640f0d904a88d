"""The list of faults: lines of text in *.faults beside this file.

    # a comment
    tests: tests/test_engine_executors.py -k {stem}
    losses: smooth_ap,auc

    @ csrc/rows/smooth_ap.h
    - T(0.5) + own[k][0]
    + T(1) + own[k][0]
    = why no test can see it, if none can

`@` names a file, by a path or a pattern from the root that fits one file only (so that a file may move).
`-` is text that it holds exactly once, `+` what is there instead; several lines of either are one text.
`tests:` are arguments of pytest, {stem} in them the file's name; after "then", those that run if the first
are green. `losses:` the losses that are compiled for faults in C++ that all of them
share, none for all. Both hold until the next line of their kind.
"""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from pathlib import Path

HERE = Path(__file__).resolve().parent


class ListError(Exception):
    """The list of faults is not one of this tree."""


@dataclasses.dataclass
class Fault:
    area: str  # the list it is in
    pattern: str
    old: str = ""
    new: str = ""
    tests: str = ""
    losses: str = ""
    excuse: str = ""  # why it cannot be seen

    @property
    def key(self) -> str:
        text = "\0".join((self.pattern, self.old, self.new, self.tests, self.losses))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def file(self, root: Path) -> Path:
        found = sorted(root.glob(self.pattern))
        if len(found) != 1:
            raise ListError(f"{self.area}: {len(found)} files fit {self.pattern}")
        return found[0]

    def mutated(self, root: Path) -> tuple[Path, str]:
        """The file, and its text with the fault."""
        path = self.file(root)
        text = path.read_text(encoding="utf-8")
        if self.old == self.new:
            raise ListError(f"{self.area}: {self.pattern}: nothing is changed in {self.old!r}")
        if (count := text.count(self.old)) != 1:
            raise ListError(f"{self.area}: {path.relative_to(root)} holds {count} times {self.old!r}")
        return path, text.replace(self.old, self.new)

    def arguments(self, root: Path) -> list[list[str]]:
        """Of one run of pytest after the other."""
        text = self.tests.replace("{stem}", self.file(root).stem)
        return [shlex.split(part) for part in text.split(" then ")]

    def __str__(self) -> str:
        return f"{self.pattern}: {self.old.strip()} -> {self.new.strip()}"


def parse(text: str, area: str) -> list[Fault]:
    """The faults of one list."""
    found: list[Fault] = []
    pattern, settings = "", {"tests": "", "losses": ""}
    last = ""
    for number, line in enumerate(text.splitlines(), 1):
        mark, rest = line[:1], line[2:]
        if not line.strip() or mark == "#":
            mark = ""
        elif mark == "@":
            pattern = rest.strip()
        elif mark in ("-", "+", "=") and line[1:2] in (" ", ""):
            if mark == "-" and last != "-":
                found.append(Fault(area, pattern, **settings))
            elif mark != "-" and last not in ("-", "+", "="):
                raise ListError(f"{area}, line {number}: {mark} without text that it replaces")
            name = {"-": "old", "+": "new", "=": "excuse"}[mark]
            before = getattr(found[-1], name)
            setattr(found[-1], name, f"{before}\n{rest}" if last == mark else rest)
        elif (name := line.partition(":")[0]) in settings:
            settings[name] = line.partition(":")[2].strip()
        else:
            raise ListError(f"{area}, line {number}: {line!r}")
        last = mark
    return found


def read() -> list[Fault]:
    """All lists."""
    lists = sorted(HERE.glob("*.faults"))
    found = [fault for path in lists for fault in parse(path.read_text("utf-8"), path.stem)]
    if len({fault.key for fault in found}) != len(found):
        raise ListError("a fault is listed twice")
    return found


def errors(faults: list[Fault], root: Path) -> list[str]:
    """What is wrong with the list in this tree."""
    wrong = []
    for fault in faults:
        try:
            fault.mutated(root)
            if not fault.tests:
                raise ListError(f"{fault.area}: no tests for {fault}")
        except ListError as error:
            wrong.append(str(error))
    return wrong
