"""The compiled library, where there is one."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType

import torch

# The least compute capability that csrc/build.py compiles for. It is Triton's too: for older ones tiles
# compile, but spill, and ask for more shared memory than a block may have there.
OLDEST_GPU = (8, 0)


@functools.cache
def load() -> ModuleType | None:
    """The compiled module, or None where the package was installed without a compiler.

    Raises:
        ValueError: FASTDML_ISA names no instruction set of this library and this processor.
    """
    try:
        library = importlib.import_module("fastdml._C")
    except ImportError as error:
        global _why
        _why = str(error)
        return None
    if (wanted := os.environ.get("FASTDML_ISA")) is not None:
        try:
            library.force_isa(wanted)
        except ValueError:
            known = ", ".join(library.isas())
            raise ValueError(
                f"FASTDML_ISA: expected one of {known} that this processor has, or unset, got {wanted!r}"
            ) from None
    return library


_why = ""


@functools.cache
def notice() -> None:
    """Says once that there are no compiled kernels."""
    warnings.warn(
        "fastdml runs without its compiled kernels, through the chunked executor: results are the "
        "same, several times slower. Install a C++ compiler and reinstall from the source folder with "
        f"`pip install --no-build-isolation --editable .` to have them. ({_why})",
        stacklevel=3,
    )


@functools.cache
def functors() -> dict[str, tuple[int, int, int, int]]:
    """Compiled losses: name -> (id, number of parameters, outputs of a row, values per column of the state
    in which statistics of columns are gathered or 0)."""
    library = load()
    return library.functors() if library is not None else {}


def streams() -> dict[str, int]:
    """Streamed forms that were compiled with the library for the instruction set in use: key -> id."""
    library = load()
    return _streams(library.active_isa()) if library is not None else {}


@functools.cache
def _streams(isa: str) -> dict[str, int]:
    library = load()
    assert library is not None
    return library.streams()  # type: ignore[no-any-return]


def runs_on(device: torch.device) -> bool:
    """Whether there are compiled operators for tensors of a device."""
    library = load()
    if library is None or device.type == "cpu":
        return library is not None
    compiled = device.type == "cuda" and library.cuda and torch.version.cuda is not None
    return compiled and too_old(device) is None


def too_old(device: torch.device) -> str | None:
    """In words, where a GPU is older than kernels are made for. Nobody knows that of one that is not there,
    on which a problem is only explained."""
    there = device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
    if not there or (found := torch.cuda.get_device_capability(device)) >= OLDEST_GPU:
        return None
    oldest, got = (".".join(map(str, x)) for x in (OLDEST_GPU, found))
    return f"kernels are made for GPUs of compute capability {oldest} and newer, {device} has {got}"


def cuda_sort_bytes(name: str, parameters: tuple[float, ...], size: int) -> int:
    """Bytes per pair that a loss takes on CUDA to have its rows sorted; `size`: of a value."""
    library = load()
    if library is None or name not in functors():
        return 0
    return int(library.cuda_sort_bytes(functors()[name][0], parameters, size))


def build_info() -> dict[str, object]:
    """What this installation was built with and what this machine will use."""
    library = load()
    info: dict[str, object] = {
        "torch": torch.__version__,
        "compiled": library is not None,
        "cuda_kernels": bool(library is not None and library.cuda),
        "threads": torch.get_num_threads(),
    }
    if library is not None:
        info["compiler"] = library.compiler()
        info["instruction_sets"] = library.isas()
        info["instruction_set"] = library.active_isa()
        info["functors"] = sorted(library.functors())
    return info
