"""A measurement as one row of a CSV, with everything needed to judge it."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..engine.library import build_info
from .device import Device, machine


@dataclasses.dataclass
class Record:
    """Milliseconds are of one step, forward and backward. ratio_*: to the bare products of the
    same round. peak_mib: beyond the inputs; extra_mib: beyond inputs and gradients. *_error:
    relative."""

    loss: str
    contender: str
    runs: str  # the executor, of ours
    batch: int
    rows: int
    columns: int
    dim: int
    per_class: int
    dtype: str
    device: str
    spread: float
    status: str = "ok"
    note: str = ""
    ms: float | None = None
    ms_p20: float | None = None
    ms_p80: float | None = None
    ratio: float | None = None
    ratio_p20: float | None = None
    ratio_p80: float | None = None
    measured: int = 0
    products: int = 3
    peak_mib: float | None = None
    extra_mib: float | None = None
    memory_kind: str = ""
    value_error: float | None = None
    gradient_error: float | None = None
    checked: str = ""
    threads: int = 0
    preset: str = ""
    environment: dict[str, Any] = dataclasses.field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        row = {k: v for k, v in dataclasses.asdict(self).items() if k != "environment"}
        row.update(self.environment)
        return {k: _short(v) for k, v in row.items()}


def environment(device: Device) -> dict[str, Any]:
    """Machine, versions and commit."""
    info = build_info()
    return {
        **machine(device),
        "isa": info.get("instruction_set", ""),
        "torch": torch.__version__,
        "fastdml": _version("fastdml"),
        "pml": _version("pytorch-metric-learning"),
        "python": platform.python_version(),
        **commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def commit() -> dict[str, Any]:
    """The git commit of the source, and whether files differ from it; empty outside git."""
    folder = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder:
            return {"commit": "", "dirty": ""}
        # Results may be written into the tree: they do not change what was measured.
        changed = git("status", "--porcelain", "--", ".", ":!benchmarks/results")
        return {"commit": git("rev-parse", "--short=12", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "", "dirty": ""}


def write(path: Path, records: Sequence[Record]) -> None:
    """One row per record, in a new file."""
    rows = [r.flat() for r in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["loss"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[Record]:
    """Records of a file that `write` made. Raises ValueError for another one."""
    kinds = {f.name: str(f.type) for f in dataclasses.fields(Record)}
    found = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            known: dict[str, Any] = {k: _typed(v, kinds[k]) for k, v in row.items() if k in kinds}
            rest = {k: v for k, v in row.items() if k not in kinds}
            try:
                found.append(Record(**known, environment=rest))
            except TypeError as error:
                raise ValueError(f"{path}: expected a file of fastdml bench ({error})") from error
    if not found:
        raise ValueError(f"{path}: expected a file of fastdml bench, got one without results")
    return found


def _typed(text: str, kind: str) -> Any:
    if text == "" and "None" in kind:
        return None
    if kind.startswith("int"):
        return int(text)
    return float(text) if kind.startswith("float") else text


def _short(value: Any) -> Any:
    return f"{value:.5g}" if isinstance(value, float) else "" if value is None else value


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if package == "fastdml":
            import fastdml

            return fastdml.__version__
        return ""
