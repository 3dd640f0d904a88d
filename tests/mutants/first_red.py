"""A plugin of pytest: notes the first red test in the file that FIRST_RED names."""

import os
from pathlib import Path


def pytest_runtest_logreport(report) -> None:
    note = Path(os.environ["FIRST_RED"])
    if report.failed and not note.exists():
        note.write_text(report.nodeid, encoding="utf-8")
