"""Interleaved timing: A B C A B C ..., so that whatever disturbs the machine disturbs everybody."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping

from .device import Device

# A step is run once unmeasured in its turn, so that nobody pays for the caches its predecessor
# left; beyond this many seconds the caches no longer matter.
_WARM = 0.25
_LONGEST = 400  # rounds
_FEWEST = 5


@dataclasses.dataclass(frozen=True)
class Quantiles:
    median: float
    p20: float
    p80: float

    @property
    def spread(self) -> float:
        """(p80 - p20) / median."""
        return (self.p80 - self.p20) / self.median


@dataclasses.dataclass
class Series:
    """Seconds of one contender by round."""

    seconds: dict[int, float] = dataclasses.field(default_factory=dict)

    def quantiles(self) -> Quantiles:
        return quantiles(list(self.seconds.values()))

    def over(self, other: Series) -> Quantiles:
        """Ratios round by round to another contender, where both ran."""
        both = self.seconds.keys() & other.seconds.keys()
        return quantiles([self.seconds[k] / other.seconds[k] for k in both])


def quantiles(values: list[float]) -> Quantiles:
    """Median, 20th and 80th percentile, interpolated."""
    values = sorted(values)

    def at(q: float) -> float:
        place = q * (len(values) - 1)
        low = math.floor(place)
        high = min(low + 1, len(values) - 1)
        return values[low] + (values[high] - values[low]) * (place - low)

    return Quantiles(at(0.5), at(0.2), at(0.8))


def interleave(
    steps: Mapping[str, Callable[[], object]],
    device: Device,
    *,
    floor: str,
    budget: float,
    sane: float = 0.25,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Series]:
    """Times all steps in turn for about `budget` seconds.

    The floor runs in every round. A slow contender, whose share of the budget would be used up
    early, sits rounds out, evenly. While the ratios of those that run in every round spread by more
    than `sane`, the rounds go on, but never beyond three budgets.
    """
    found = {name: Series() for name in steps}
    cost = {name: device.time(step) for name, step in steps.items()}  # unmeasured: the warm-up
    turn = {name: c * (2 if c < _WARM else 1) for name, c in cost.items()}
    share = budget / max(1, len(steps))
    wanted = {n: max(3, min(_LONGEST, int(share / max(t, 1e-9)))) for n, t in turn.items()}
    rounds = max([_FEWEST, *wanted.values()])
    stride = {n: 1 if n == floor else math.ceil(rounds / k) for n, k in wanted.items()}
    begun = time.perf_counter()
    for r in range(3 * _LONGEST):
        for name, step in steps.items():
            if r % stride[name] == 0:
                if cost[name] < _WARM:
                    step()
                found[name].seconds[r] = device.time(step)
        spent = time.perf_counter() - begun
        progress(min(1.0, spent / budget))
        if spent >= 3 * budget:
            break
        if r + 1 >= rounds:
            spreads = [s.over(found[floor]).spread for n, s in found.items() if stride[n] == 1]
            if max(spreads) <= sane:
                break
    return found
