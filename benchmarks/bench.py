"""`python -m fastdml bench` with presets that judge: --preset issue, ranks or losses."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[k]) for k in (0, 1)]

from requirements import issue, losses, ranks  # noqa: E402

from fastdml.bench.cli import main  # noqa: E402

JUDGED = {"issue": issue, "ranks": ranks, "losses": losses}

if __name__ == "__main__":
    sys.exit(main(judged={name: (module.cases, module.judged) for name, module in JUDGED.items()}))
