"""The table of a run, as Markdown."""

from __future__ import annotations

from faults import Fault

HEAD = """# Planted faults

`make mutants` plants one fault at a time in a copy of the tree (`tests/mutants/*.faults`), builds what
changed for one instruction set, and runs the tests that concern it until one is red. What no test notices is
a hole in the tests, or is no fault; the table of survivors says which.

"""


def table(faults: list[Fault], results: dict[str, dict], total: int, about: str) -> str:
    """faults: those that ran, of `total` in the list; results by a fault's key."""
    red = sum(results[f.key]["status"] == "red" for f in faults)
    lines = [HEAD + f"{about}\n"]
    if len(faults) < total:
        lines.append(f"A sample: {len(faults)} of {total} faults.\n")
    visible = [f for f in faults if not f.excuse or results[f.key]["status"] == "red"]
    lines.append(
        f"**{red} of {len(faults)} faults turned a test red: {_share(red, len(faults))}; of the "
        f"{len(visible)} that are not explained below, {_share(red, len(visible))}.**\n"
    )
    lines += ["| where | faults | red | share |", "|---|---|---|---|"]
    for area in dict.fromkeys(f.area for f in faults):
        some = [f for f in faults if f.area == area]
        of_area = sum(results[f.key]["status"] == "red" for f in some)
        lines.append(f"| {area} | {len(some)} | {of_area} | {_share(of_area, len(some))} |")
    survivors = [f for f in faults if results[f.key]["status"] != "red"]
    lines.append("\n## Survivors\n")
    if survivors:
        lines += ["| file | before | after | why |", "|---|---|---|---|"]
        lines += [
            f"| `{f.pattern}` | {_code(f.old)} | {_code(f.new)} | {f.excuse or 'not explained'} |"
            for f in survivors
        ]
    else:
        lines.append("None.")
    lines += ["\n## All faults\n", "| file | before | after | first red test | s |", "|---|---|---|---|---|"]
    for f in faults:
        found = results[f.key]
        test = found["test"] if found["status"] == "red" else "-"
        lines.append(
            f"| `{f.pattern}` | {_code(f.old)} | {_code(f.new)} | {_test(test)} | {found['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _share(some: int, all_: int) -> str:
    return f"{100 * some / max(1, all_):.1f} %"


def _code(text: str) -> str:
    one = " ".join(text.split()).replace("|", "\\|")
    short = one if len(one) <= 70 else one[:67] + "..."
    return f"`{short}`" if short else "(nothing)"


def _test(name: str) -> str:
    # A list of parameters may hold what a table cannot.
    return name.partition("[")[0].removeprefix("tests/").replace("|", "\\|")
