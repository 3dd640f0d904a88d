"""Import of the packages that only the benchmarks need."""

from __future__ import annotations

import functools

from ..metrics import extras

require = functools.partial(extras.require, purpose="the benchmarks need", extra="bench")
