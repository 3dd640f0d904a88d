"""Which executor `backend="auto"` takes on CUDA, and whether it has been seen to work there.

A table measured by `python benchmarks/crossover.py` on a GPU (`make gpu-check` runs it too), and until
there is one for an architecture and a loss a rule from counting work:

- a tile kernel reads the embeddings again for every sweep and recomputes similarities, 2 D operations
  a pair and sweep, but moves nothing of the size of the matrix. It pays while D is small;
- the row executor multiplies once per product and moves every similarity and weight through memory,
  at least 12 bytes a pair. It pays from a D on where the products hide that traffic, for threshold
  lists, in float64, and for whatever has no tile functor. The size of the batch does not enter: both
  do the same three products' work per pair, in as many launches as there are blocks or sweeps.

The rule chooses kernels ahead of the chunked executor, which is plain torch, also while nobody has run
them on a GPU. It does not do so in silence: the reason that `fastdml.explain` gives says so, and the
first such choice of a process is warned about.
"""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import torch

from .problem import Problem

# Up to this dimension one program of the tile kernels holds a whole embedding.
TILE_DIMENSION = 256
# What `benchmarks/crossover.py` measured on a GPU, a line each: "sm_90 loss largest-D-for-tiles".
MEASURED = Path(__file__).with_name("crossover-measured.txt")

NOT_RUN = "not yet run on a GPU"
# A line for each loss and executor whose tests all passed on a GPU; written by `make gpu-check`.
VERIFIED = Path(__file__).with_name("gpu-verified.txt")


def prefers_tiles(problem: Problem) -> bool:
    """Whether tile kernels are expected to be quicker than row functors; both can run the problem."""
    if problem.loss.threshold_list:  # whether a list is short enough, only the device knows
        return False
    return problem.anchors.shape[1] <= largest_dimension(problem)


def largest_dimension(problem: Problem) -> int:
    """Up to which dimension tiles are quicker: as measured on this architecture, else by the rule."""
    device = problem.anchors.device
    if device.type != "cuda" or not measured():
        return TILE_DIMENSION
    major, minor = torch.cuda.get_device_capability(device)
    return measured().get((f"sm_{major}{minor}", problem.loss.name), TILE_DIMENSION)


@functools.cache
def measured() -> dict[tuple[str, str], int]:
    """(architecture, loss) -> largest dimension at which tiles were quicker, 0 for none."""
    if not MEASURED.exists():
        return {}
    lines = (line.split() for line in MEASURED.read_text().splitlines())
    return {(line[0], line[1]): int(line[2]) for line in lines if len(line) == 3}


@functools.cache
def verified() -> frozenset[tuple[str, str]]:
    """(loss, executor) pairs that were tested on a GPU."""
    if not VERIFIED.exists():
        return frozenset()
    lines = (line.split() for line in VERIFIED.read_text().splitlines())
    return frozenset((line[0], line[1]) for line in lines if len(line) == 2)


def caveat(problem: Problem, executor: str) -> str:
    """What is to be added to the reason for a choice: nothing, or that it is unproven."""
    if problem.device_type != "cuda" or (problem.loss.name, executor) in verified():
        return ""
    return f"; {NOT_RUN}: backend='chunked' is plain torch"


@functools.cache
def _warn(loss: str, executor: str) -> None:
    warnings.warn(
        f"fastdml: the {executor} executor of {loss!r} is {NOT_RUN} by its authors. `make gpu-check` "
        "tests it on this machine; backend='chunked' is plain torch, slower.",
        stacklevel=3,
    )


def notice(problem: Problem, executor: str, backend: str) -> None:
    """Warns once of an unproven choice that the caller did not make."""
    if backend == "auto" and executor in ("native", "triton") and caveat(problem, executor):
        _warn(problem.loss.name, executor)
