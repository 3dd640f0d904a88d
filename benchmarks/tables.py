"""A table of Markdown that is printed line by line, as it is measured, and kept as a file in the end."""

from __future__ import annotations

from pathlib import Path

from fastdml.bench.device import device
from fastdml.bench.record import environment


class Table:
    """setting: what was measured, beside which the machine and versions stand. head: its two first lines."""

    def __init__(self, title: str, setting: str, *head: str) -> None:
        about = ", ".join(f"{k} {v}" for k, v in environment(device("cpu")).items() if v not in ("", None))
        self.title = title
        self.lines: list[str] = []
        for line in (f"{setting}; {about}\n", *head):
            self.add(line)

    def add(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)

    def write(self, path: Path | None) -> None:
        if path is not None:
            path.write_text(f"# {self.title}\n\n" + "\n".join(self.lines) + "\n")
