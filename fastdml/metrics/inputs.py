"""What a caller hands in: tensors, arrays, mapped files and lists become rows and class numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ..engine import check

_HALF = {torch.float16, torch.bfloat16}
_STORED = (np.float16, np.float32, np.float64)
_SLICE = 1 << 22  # bytes of rows looked at together, where something of all rows is computed


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """``[N, D]`` finite rows, as they were given: nothing is copied that need not be.

    Attributes:
        data: the tensor or array.
        name: of the argument, for messages.
    """

    data: torch.Tensor | np.ndarray
    name: str

    def __len__(self) -> int:
        return int(self.data.shape[0])

    @property
    def dim(self) -> int:
        return int(self.data.shape[1])

    @property
    def device(self) -> torch.device:
        return self.data.device if isinstance(self.data, torch.Tensor) else torch.device("cpu")

    @property
    def is_double(self) -> bool:
        return self.data.dtype in (torch.float64, np.float64)

    def stored(self) -> np.ndarray:
        """Rows on the CPU as the compiled library reads them; bfloat16 as the uint16 it is stored as."""
        x = self.data
        if isinstance(x, torch.Tensor):
            x = x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()
        return x

    def tensor(self, start: int, stop: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Rows ``[start, stop)`` as a tensor of a type, on a device."""
        x = self.data[start:stop]
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(np.ascontiguousarray(x) if x.flags.writeable else np.array(x))
        return x.to(device=device, dtype=dtype)

    def take(self, index: np.ndarray, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The rows of an index, as a tensor."""
        if isinstance(self.data, torch.Tensor):
            return self.data[torch.from_numpy(index).to(self.data.device)].to(device, dtype)
        return torch.from_numpy(self.data[index]).to(device=device, dtype=dtype)

    def norms(self) -> np.ndarray:
        """``[N]`` lengths in float64; raises where a value is not finite."""
        from ..engine import library

        compiled = library.load()
        if compiled is not None and self.device.type == "cpu":
            norms = compiled.row_norms(self.stored())
        else:
            norms = np.empty(len(self))
            step = max(1, _SLICE // (8 * self.dim))
            for start in range(0, len(self), step):
                x = self.tensor(start, start + step, torch.float64, self.device)
                largest = x.abs().amax(dim=1).clamp(min=1e-300)
                lengths = torch.linalg.vector_norm(x / largest[:, None], dim=1) * largest
                norms[start : start + step] = lengths.cpu().numpy()
        bad = np.flatnonzero(~np.isfinite(norms))
        if len(bad):
            raise ValueError(
                f"{self.name}: expected finite rows, found NaN or infinity in {len(bad)} of "
                f"{len(norms)}, first in row {bad[0]}"
            )
        return norms


def embeddings(x: Any, name: str) -> Embeddings:
    """A tensor, an array or nested lists of numbers, ``[N, D]``."""
    expected = f"{name}: expected a non-empty floating point [N, D] tensor, array or list"
    if isinstance(x, (list, tuple)) and x and all(isinstance(row, torch.Tensor) for row in x):
        if len({row.shape for row in x}) > 1:
            raise ValueError(f"{expected}, got rows of different lengths")
        x = torch.stack([row.detach() for row in x])  # numpy takes none that wants a gradient
    if isinstance(x, torch.Tensor):
        if x.layout != torch.strided or x.is_nested:
            raise ValueError(f"{expected}, got a tensor that is not dense")
        if x.ndim != 2 or 0 in x.shape or not x.is_floating_point():
            raise ValueError(f"{expected}, got {x.dtype} of shape {tuple(x.shape)}")
        x = x.detach()
        if x.dtype not in _HALF | {torch.float32, torch.float64}:
            x = x.float()
        if x.device.type == "cpu" and x.stride(1) != 1:
            x = x.contiguous()
        return Embeddings(x, name)
    if np.ma.isMaskedArray(x):
        raise ValueError(f"{expected}, got a masked array")
    if not isinstance(x, np.ndarray):
        try:
            x = np.asarray(x)
        except ValueError:
            raise ValueError(f"{expected}, got rows of different lengths") from None
        if x.dtype.kind == "i":  # whole numbers in a list are numbers
            x = x.astype(np.float64)
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind != "f":
        raise ValueError(f"{expected}, got {x.dtype} of shape {x.shape}")
    if x.dtype.type not in _STORED:
        raise ValueError(f"{name}: expected float16, float32 or float64, got {x.dtype}")
    whole = x.strides[0] % x.itemsize == 0 and x.strides[1] == x.itemsize
    if not (x.dtype.isnative and x.flags.aligned and (whole or x.shape[1] == 1)):
        x = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("="))
    return Embeddings(x, name)


def same_space(queries: Embeddings, gallery: Embeddings) -> None:
    if gallery.dim != queries.dim or gallery.device != queries.device:
        raise ValueError(
            f"{gallery.name}: expected dimension {queries.dim} on {queries.device} as in "
            f"{queries.name}, got {gallery.dim} on {gallery.device}"
        )


def is_marks(labels: Any) -> bool:
    """Whether labels are a matrix of marks ``[N, C]``: which of C labels a row has."""
    known = isinstance(labels, (torch.Tensor, np.ndarray))
    return known and labels.ndim == 2 and labels.dtype in (torch.bool, np.bool_)


def is_sets(labels: Any) -> bool:
    """Whether every label is a set of labels: a list of collections, or a matrix of marks."""
    if isinstance(labels, (torch.Tensor, np.ndarray)):
        if isinstance(labels, np.ndarray) and labels.dtype == object and labels.ndim == 1:
            return len(labels) > 0 and isinstance(labels[0], (set, frozenset, list, tuple))
        return is_marks(labels)
    return (
        isinstance(labels, Sequence)
        and not isinstance(labels, (str, bytes))
        and len(labels) > 0
        and isinstance(labels[0], (set, frozenset, list, tuple))
    )


def is_empty(labels: Any) -> bool:
    """Whether there are labels, but none among them."""
    try:
        return len(labels) == 0
    except TypeError:  # None, or a number
        return False


def labels(values: Any, count: int, name: str) -> np.ndarray:
    """``[count]`` integers or strings, one class each."""
    if isinstance(values, torch.Tensor):
        found = values.detach().cpu().numpy() if values.dtype != torch.bfloat16 else None
        kind = str(values.dtype)
        shape = tuple(values.shape)
    else:
        if values is None or isinstance(values, (str, bytes)):
            raise ValueError(f"{name}: expected {count} integers or strings, got {values!r}")
        if np.ma.isMaskedArray(values):
            raise ValueError(f"{name}: expected {count} integers or strings, got a masked array")
        if not isinstance(values, np.ndarray) and not isinstance(values, Sequence):
            values = list(values) if isinstance(values, Iterable) else values
        try:
            found = np.asarray(values)
        except ValueError:
            found = None
        if found is None:
            raise ValueError(f"{name}: expected {count} integers or strings, got a ragged list")
        if check.mixed(values, found):
            raise ValueError(f"{name}: expected {count} integers or strings, got a mixture")
        if found.dtype == object and found.size and all(isinstance(v, str) for v in found.flat):
            found = found.astype(str)
        kind, shape = str(found.dtype), found.shape
    if found is None or found.dtype.kind not in "iuUS" or shape != (count,):
        raise ValueError(f"{name}: expected {count} integers or strings, got {kind} of shape {shape}")
    if found.dtype.kind == "u":
        if found.dtype == np.uint64 and len(found) and found.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name}: expected labels in the range of int64, got {found.max()}")
        found = found.astype(np.int64)
    return found


def numbered(
    queries: np.ndarray, gallery: np.ndarray | None, names: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class numbers of queries and of the gallery, int64, and the labels they stand for, sorted.

    gallery: None where it is the queries themselves.
    """
    if gallery is None:
        classes, numbers = np.unique(queries, return_inverse=True)
        numbers = numbers.astype(np.int64)
        return numbers, numbers, classes
    if (queries.dtype.kind in "US") != (gallery.dtype.kind in "US"):
        raise ValueError(
            f"{names[1]}: expected the type of {names[0]}, {queries.dtype}, got {gallery.dtype}"
        )
    classes, numbers = np.unique(np.concatenate([queries, gallery]), return_inverse=True)
    numbers = numbers.astype(np.int64)
    return numbers[: len(queries)], numbers[len(queries) :], classes


def own_index(index: Any, count: int, candidates: int) -> np.ndarray:
    """``[count]`` indices into the gallery, -1 where a query has no copy of itself there."""
    if isinstance(index, torch.Tensor):
        index = check.array(index)
    try:
        found = np.asarray(index)
    except ValueError:
        found = np.empty(0)
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise ValueError(
            f"own_index: expected {count} integers, got {found.dtype} of shape {found.shape}"
        )
    found = found.astype(np.int64)
    if len(found) and (found.min() < -1 or found.max() >= candidates):
        raise ValueError(
            f"own_index: expected integers from -1 to {candidates - 1}, "
            f"got {found.min()} to {found.max()}"
        )
    return found


def block_bytes(value: Any) -> int:
    return check.whole(value, "block_bytes", 1, check.BYTES)


def seed(value: Any, name: str = "seed") -> int:
    return check.whole(value, name, 0, check.LARGEST_SEED)


def _each(values: Any) -> list[Any]:
    """One or several, as a list."""
    alone = isinstance(values, (torch.Tensor, np.ndarray)) and values.ndim == 0
    several = isinstance(values, Iterable) and not isinstance(values, (str, bytes, dict)) and not alone
    return list(values) if several else [values]


def integers(values: Any, name: str) -> list[int]:
    """One or several integers of at least 1."""
    try:
        found = [check.whole(v, name, 1, check.BYTES) for v in _each(values)]
    except ValueError:
        found = []
    if not found:
        raise ValueError(f"{name}: expected one or more integers of at least 1, got {values!r}")
    return list(dict.fromkeys(found))


def fractions(values: Any, name: str) -> list[float]:
    """One or several numbers in (0, 1]."""
    try:
        found = [float(v) for v in _each(values)]
    except (TypeError, ValueError):
        found = []
    if not found or not all(0 < v <= 1 for v in found):
        raise ValueError(f"{name}: expected one or more numbers in (0, 1], got {values!r}")
    return list(dict.fromkeys(found))
