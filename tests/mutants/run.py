"""Plants the listed faults one at a time and reports the share that the tests notice.

    python tests/mutants/run.py                  all faults; an interrupted run goes on where it was
    python tests/mutants/run.py --sample 40      40 of them, evenly from the list
    python tests/mutants/run.py --only smooth_ap those whose file, list or text holds this
    python tests/mutants/run.py --check          whether every fault still fits the tree; plants none
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import faults as lists
from faults import Fault
from report import table
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from scratch import Outcome, Scratch, files

ROOT = Path(__file__).resolve().parents[2]
WANTED = 0.95


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only check the list against the tree")
    parser.add_argument("--sample", type=int, metavar="N", help="plant N faults, evenly from the list")
    parser.add_argument("--only", metavar="TEXT", help="plant the faults whose description holds TEXT")
    parser.add_argument("--again", action="store_true", help="plant survivors of an earlier run again")
    parser.add_argument(
        "--keep", action="store_true", help="trust results of an earlier state of the tree"
    )
    parser.add_argument("--scratch", type=Path, default=ROOT / "build" / "mutants", metavar="FOLDER")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutants.md", metavar="FILE"
    )
    return parser.parse_args()


def best_isa() -> str:
    """The instruction set that this machine runs, by the library of the checkout."""
    sys.path.insert(0, str(ROOT))
    try:
        from fastdml import _C
    except ImportError:
        return "baseline"
    return str(_C.active_isa())


def chosen(every: list[Fault], options: argparse.Namespace) -> list[Fault]:
    found = every
    if options.only:
        found = [f for f in found if options.only in f"{f.area} {f}"]
    if options.sample and options.sample < len(found):
        found = [found[k * len(found) // options.sample] for k in range(options.sample)]
    return found


def digest() -> str:
    """Of the tree, but for the lists: what results are of."""
    text = hashlib.sha256()
    for name in files(ROOT):
        if name.startswith(("fastdml/", "csrc/", "tests/")) and not name.startswith("tests/mutants/"):
            text.update(name.encode() + (ROOT / name).read_bytes())
    return text.hexdigest()


def plant(faults: list[Fault], scratch: Scratch, results: dict[str, dict], save, console: Console) -> bool:
    """Plants what has no result yet; returns whether every fault was one."""
    waiting = [f for f in faults if f.key not in results]
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    sound = True
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("building", total=len(faults), completed=len(faults) - len(waiting))
        if waiting:
            scratch.prepare()
        for fault in waiting:
            progress.update(task, description=f"{fault.area}: {Path(fault.pattern).name}")
            started = time.monotonic()
            outcome = scratch.try_fault(fault)
            if outcome.status not in ("red", "green"):
                sound = False
                console.print(f"[red]{outcome.status}[/red]: {fault}", markup=True)
                console.print(outcome.detail, markup=False, highlight=False)
            else:
                if outcome.status == "green" and not fault.excuse:
                    console.print(f"survived: {fault}", markup=False, highlight=False)
                seconds = time.monotonic() - started
                results[fault.key] = {
                    "status": outcome.status, "test": outcome.test, "seconds": seconds,
                }  # fmt: skip
                save()
            progress.advance(task)
    return sound


def confirm(faults: list[Fault], scratch: Scratch, results: dict[str, dict]) -> Outcome:
    """The first red tests, without a fault: all must be green."""
    names = sorted({r["test"] for f in faults if "::" in (r := results[f.key])["test"]})
    # Triton's tests choose its interpreter when they are imported: a run of their own.
    for apart in (True, False):
        some = [n for n in names if n.startswith("tests/tiles/") == apart]
        if some and (outcome := scratch.test(some)).status != "green":
            return outcome
    return Outcome("green")


def main() -> int:
    options, console = arguments(), Console()
    every = lists.read()
    if wrong := lists.errors(every, ROOT):
        console.print("\n".join(wrong), markup=False, highlight=False)
        return 2
    if options.check:
        console.print(f"{len(every)} faults fit the tree")
        return 0
    some = chosen(every, options)
    options.scratch.mkdir(parents=True, exist_ok=True)
    held, tree = options.scratch / "results.json", digest()
    kept = json.loads(held.read_text()) if held.exists() else {}
    valid = options.keep or kept.get("tree") == tree
    results: dict[str, dict] = kept.get("results", {}) if valid else {}
    if options.again:
        results = {key: r for key, r in results.items() if r["status"] == "red"}

    def save() -> None:
        held.write_text(json.dumps({"tree": tree, "results": results}))

    scratch = Scratch(ROOT, options.scratch.resolve(), best_isa())
    sound = plant(some, scratch, results, save, console)
    ran = [f for f in some if f.key in results]
    without = confirm(ran, scratch, results)
    if without.status != "green":
        console.print(f"red without a fault: {without.test}\n{without.detail}", markup=False)
        return 2
    revision = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(revision, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    about = f"At {commit}, {scratch.isa}, Python {platform.python_version()}."
    options.out.write_text(table(ran, results, len(every), about), encoding="utf-8")
    red = sum(results[f.key]["status"] == "red" for f in ran)
    console.print(f"{red} of {len(ran)} red; {options.out}", markup=False, highlight=False)
    visible = sum(not f.excuse or results[f.key]["status"] == "red" for f in ran)
    return 0 if sound and red >= WANTED * visible else 1


if __name__ == "__main__":
    sys.exit(main())
