"""Benchmarks: time and memory of the losses against three bare matrix products, plain torch and
pytorch-metric-learning. `python -m fastdml bench --help`.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (1 where one of our results is wrong)."""
    from .cli import main as run

    return run(argv)
