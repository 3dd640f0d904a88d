"""Exact retrieval metrics in memory linear in the number of items."""

from .retrieval import map_at_r, nearest_neighbours, recall_at_k, retrieval_metrics

__all__ = ["map_at_r", "nearest_neighbours", "recall_at_k", "retrieval_metrics"]
