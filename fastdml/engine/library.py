"""The compiled library, where there is one."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType

import torch


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
        f"`pip install --no-build-isolation .` to have them. ({_why})",
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


def runs_on(device_type: str) -> bool:
    """Whether there are compiled operators for tensors of a device."""
    library = load()
    if library is None or device_type == "cpu":
        return library is not None
    return device_type == "cuda" and library.cuda and torch.version.cuda is not None


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
