"""Tables for the terminal and, with the same words, for a Markdown file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .extras import require
from .record import Record
from .requirement import Requirement

_COLUMNS = ("", "step", "p20 - p80", "x products", "p20 - p80", "memory", "error", "")


def records_table(title: str, records: Sequence[Record]) -> Any:
    """A rich table of the contenders of one workload."""
    table = require("rich.table").Table(title=title, title_justify="left", title_style="bold")
    for k, name in enumerate(_COLUMNS):
        table.add_column(name, justify="left" if k in (0, 7) else "right", no_wrap=k != 7)
    for record in records:
        style = {"wrong": "bold red", "ok": ""}.get(record.status, "yellow")
        table.add_row(*_cells(record), style=style)
    return table


def requirements_table(found: Sequence[Requirement]) -> Any:
    table = require("rich.table").Table(title="Requirements", title_justify="left")
    for name in ("", "demanded", "measured", ""):
        table.add_column(name)
    for r in found:
        style = {True: "", False: "bold red", None: "yellow"}[r.met]
        table.add_row(r.text, r.demanded, r.measured, _verdict(r), style=style)
    return table


def heading(records: Sequence[Record]) -> str:
    """The workload of some records, in words."""
    r = records[0]
    spread = "random" if r.spread == float("inf") else f"spread {r.spread:g}"
    return (
        f"{r.loss}  {r.rows} x {r.columns}, D={r.dim}, {r.per_class} per class, {r.dtype}, "
        f"{r.device}, {spread}, {r.threads} threads"
    )


def markdown(groups: Sequence[Sequence[Record]], found: Sequence[Requirement]) -> str:
    """A report of a whole run."""
    e = groups[0][0].environment
    commit = f"{e['commit']}{' with changes' if str(e['dirty']) == 'True' else ''}"
    lines = [
        "# Benchmark",
        "",
        f"{e['gpu'] or e['cpu']}, {e['cores']} cores, {e['isa']}; torch {e['torch']}, "
        f"pytorch-metric-learning {e['pml'] or 'absent'}, Python {e['python']}; commit {commit}, "
        f"{e['date']}; load of the machine at the start {e['load']}.",
        "",
        "Medians of one step, forward and backward, all contenders in turn; ratios are taken round "
        "by round. Memory is the peak beyond inputs and gradients.",
    ]
    if found:
        lines += ["", "| requirement | demanded | measured | |", "|---|---|---|---|"]
        lines += [f"| {r.text} | {r.demanded} | {r.measured} | {_verdict(r)} |" for r in found]
    for records in groups:
        lines += ["", f"## {heading(records)}", "", "| " + " | ".join(_COLUMNS) + " |"]
        lines += ["|" + "---|" * len(_COLUMNS)]
        lines += ["| " + " | ".join(_cells(r)) + " |" for r in records]
    return "\n".join(lines) + "\n"


def _verdict(r: Requirement) -> str:
    return {True: "met", False: "MISSED", None: "?"}[r.met]


def _cells(r: Record) -> tuple[str, ...]:
    name = r.contender if r.runs in ("", r.contender) else f"{r.contender} ({r.runs})"
    error = "" if r.gradient_error is None else f"{max(r.value_error or 0, r.gradient_error):.0e}"
    remark = {"ok": "", "differs": "other result than the paper's"}.get(r.status, r.status.upper())
    return (
        name,
        time(r.ms),
        "" if r.ms_p20 is None else f"{time(r.ms_p20)} - {time(r.ms_p80)}",
        "" if r.ratio is None else f"{r.ratio:.3g}",
        "" if r.ratio_p20 is None else f"{r.ratio_p20:.3g} - {r.ratio_p80:.3g}",
        "" if r.extra_mib is None else f"{r.extra_mib:.1f} MiB",
        error,
        f"{remark}: {r.note}" if remark and r.note else remark or r.note,
    )


def time(ms: float | None) -> str:
    """Milliseconds in the unit that reads best."""
    if ms is None:
        return ""
    if ms < 1:
        return f"{ms * 1e3:.0f} us"
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1e3:.3g} s"
