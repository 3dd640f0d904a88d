"""Which executor `backend="auto"` takes on CUDA, where several can run a problem.

A rule from counting work, until `make gpu-check` has measured a table on a GPU:

- a tile kernel reads the embeddings again for every sweep and recomputes similarities, 2 D operations
  a pair and sweep, but moves nothing of the size of the matrix. It pays while D is small;
- the row executor multiplies once per product and moves every similarity and weight through memory,
  at least 12 bytes a pair. It pays from a D on where the products hide that traffic, for threshold
  lists, in float64, and for whatever has no tile functor.
"""

from __future__ import annotations

from .problem import Problem

# Up to this dimension one program of the tile kernels holds a whole embedding.
TILE_DIMENSION = 256


def prefers_tiles(problem: Problem) -> bool:
    """Whether tile kernels are expected to be quicker than row functors; both can run the problem."""
    return not problem.loss.threshold_list and problem.anchors.shape[1] <= TILE_DIMENSION
