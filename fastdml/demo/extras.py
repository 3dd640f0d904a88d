"""Import of the packages that only the demo needs."""

from __future__ import annotations

import functools

from ..metrics import extras

require = functools.partial(extras.require, purpose="the demo needs", extra="demo")
