"""Batches larger than the memory that a network's activations would take."""

from .cached import GradientCache, cached_step

__all__ = ["GradientCache", "cached_step"]
