"""The progress bar of a training run: loss and images per second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .extras import require


class Progress:
    """One bar per loss; :meth:`step` moves it on."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars

    def start(self, title: str, steps: int) -> None:
        self._task = self._bars.add_task(title, total=steps, loss=float("nan"), speed=0.0)
        self._images, self._busy = 0, 0.0
        self._since = time.perf_counter()

    def step(self, loss: float, images: int) -> None:
        self._images += images
        speed = self._images / (self._busy + time.perf_counter() - self._since)
        self._bars.update(self._task, advance=1, loss=loss, speed=speed)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside (evaluation) does not count as training."""
        self._busy += time.perf_counter() - self._since
        try:
            yield
        finally:
            self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Spent training since :meth:`start`."""
        return self._busy + time.perf_counter() - self._since


@contextmanager
def progress_bars(console: Any) -> Iterator[Progress]:
    """Bars that stay on the screen when done; where there is no terminal, only that is printed."""
    bar = require("rich.progress")
    columns = (
        bar.TextColumn("{task.description:<18}"),
        bar.BarColumn(bar_width=24),
        bar.TaskProgressColumn(),
        bar.TextColumn("loss {task.fields[loss]:7.4f}"),
        bar.TextColumn("{task.fields[speed]:6.0f} images/s"),
        bar.TimeElapsedColumn(),
    )
    with bar.Progress(*columns, console=console) as bars:
        yield Progress(bars)
