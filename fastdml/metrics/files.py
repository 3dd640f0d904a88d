"""Embeddings and labels in files: npy, mapped and never read whole; parquet, streamed into such a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .extras import require

_BATCH_BYTES = 16 << 20  # of a parquet file decoded at once
EMBEDDING_COLUMNS = ("embedding", "embeddings", "vector", "features")
LABEL_COLUMNS = ("label", "labels", "class", "target")


def read_embeddings(path: str | Path, scratch: str | Path, column: str | None = None) -> np.ndarray:
    """``[N, D]`` rows of a file, mapped.

    Args:
        path: npy with a matrix of float16, float32 or float64; or parquet with a column of lists of numbers
            of one length.
        scratch: folder for the rows of a parquet file, as large as these; it must outlive the array.
        column: of a parquet file; None: the one that is called embedding, embeddings, vector or features.

    Raises:
        ValueError: the file is missing or does not hold that.
        ImportError: parquet without pyarrow.
    """
    path = _existing(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path, Path(scratch), column)
    found = _npy(path)
    if found.ndim != 2 or found.dtype.kind != "f":
        raise ValueError(f"{path}: expected a matrix of floats, got {found.dtype} of shape {found.shape}")
    return found


def read_labels(path: str | Path, column: str | None = None) -> np.ndarray:
    """``[N]`` labels of a file: npy of integers or strings, a text file with one on each line, or parquet.

    Raises:
        ValueError: the file is missing or does not hold that.
        ImportError: parquet without pyarrow.
    """
    path = _existing(path)
    if path.suffix == ".parquet":
        return _parquet_labels(path, column)
    if path.suffix == ".txt":
        try:
            # (Editors of Windows put a mark in front, which is none of the first label.)
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected text in UTF-8: {error}") from None
        try:
            numbers = [int(line) for line in lines]
            if list(map(str, numbers)) == lines:  # not 01 or 1_2, which are names
                return np.array(numbers, dtype=np.int64)
        except (ValueError, OverflowError):  # words, and numbers of more digits than integers have
            pass
        return np.array(lines)
    return np.asarray(_npy(path))


def read_images(path: str | Path) -> np.ndarray:
    """``[N, H, W]`` grey or ``[N, H, W, 3]`` colour bytes of an npy file, mapped."""
    path = _existing(path)
    found = _npy(path)
    if found.dtype != np.uint8 or found.ndim not in (3, 4) or (found.ndim == 4 and found.shape[3] != 3):
        raise ValueError(
            f"{path}: expected uint8 of shape [N, H, W] or [N, H, W, 3], got {found.dtype} {found.shape}"
        )
    return found


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected a file, there is none")
    return path


def _npy(path: Path) -> np.ndarray:
    if path.suffix != ".npy":
        raise ValueError(f"{path}: expected a .npy or .parquet file")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: expected an npy file of plain numbers or strings ({error})") from None


def _parquet(path: Path) -> Any:
    parquet = require("pyarrow.parquet", f"{path.name} needs", "metrics")
    pyarrow = require("pyarrow", f"{path.name} needs", "metrics")
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: expected a parquet file ({error})") from None


def _column(file: Any, path: Path, column: str | None, usual: tuple[str, ...]) -> str:
    names = file.schema_arrow.names
    if column is not None:
        if column not in names:
            raise ValueError(f"{path}: expected a column {column!r}, there are {names}")
        return column
    found = [name for name in usual if name in names]
    if len(found) != 1:
        raise ValueError(f"{path}: expected one column called {', '.join(usual)}, there are {names}")
    return found[0]


def _parquet_rows(path: Path, scratch: Path, column: str | None) -> np.ndarray:
    # Written, not mapped: where a mapped file finds no room on its disk, the process is killed.
    with _parquet(path) as file, tempfile.NamedTemporaryFile(suffix=".npy", dir=scratch, delete=False) as to:
        name = _column(file, path, column, EMBEDDING_COLUMNS)
        count = file.metadata.num_rows
        if not count:
            raise ValueError(f"{path}: expected at least one row")
        # A batch of few rows tells their width.
        first = _lists(next(file.iter_batches(batch_size=256, columns=[name])).column(0), path, name)
        width, type_ = first.shape[1], np.lib.format.dtype_to_descr(first.dtype)
        shape = {"descr": type_, "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(to, shape)
        step = max(1, _BATCH_BYTES // (width * first.itemsize))
        for batch in file.iter_batches(batch_size=step, columns=[name]):
            part = _lists(batch.column(0), path, name)
            if part.shape[1] != width:
                raise ValueError(
                    f"{path}: expected lists of one length in {name!r}, got {width} and {part.shape[1]}"
                )
            to.write(part.tobytes())
    return np.load(to.name, mmap_mode="r")


def _lists(column: Any, path: Path, name: str) -> np.ndarray:
    """A batch of lists of numbers as a matrix."""
    types = require("pyarrow.types", f"{path.name} needs", "metrics")
    kind = column.type
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not lists or not (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)):
        raise ValueError(f"{path}: expected lists of numbers in {name!r}, got {kind}")
    flat = column.flatten()
    if column.null_count or flat.null_count:
        raise ValueError(f"{path}: expected no missing values in {name!r}")
    lengths = np.unique(column.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) != 1 or lengths[0] < 1:
        raise ValueError(f"{path}: expected lists of one length in {name!r}, got {lengths.tolist()}")
    values = flat.to_numpy(zero_copy_only=False)
    if values.dtype.kind != "f":
        values = values.astype(np.float32)
    return values.reshape(len(column), int(lengths[0]))


def _parquet_labels(path: Path, column: str | None) -> np.ndarray:
    with _parquet(path) as file:
        name = _column(file, path, column, LABEL_COLUMNS)
        found = file.read(columns=[name]).column(0)
    if require("pyarrow.types", f"{path.name} needs", "metrics").is_nested(found.type):
        raise ValueError(f"{path}: expected integers or strings in {name!r}, got {found.type}")
    if found.null_count:
        raise ValueError(f"{path}: expected no missing values in {name!r}")
    values = found.to_numpy()
    return values.astype(str) if values.dtype == object else values
