# ruff: noqa: RUF005  (Triton knows the concatenation of tuples, not unpacking)
"""Kernel 1: rows stay, columns stream past and are folded into row statistics.

The similarity of a pair exists in a register for the length of one fold.
"""

import triton
import triton.language as tl

from .lists import fold_list
from .reductions import empty, fold, values
from .similarity import (
    SIZES,
    as_column,
    as_row,
    centres,
    grouped,
    load_norms,
    load_rows,
    load_scalars,
    load_vectors,
    near_tile,
    numbers,
    plain_tile,
    products,
    sweep,
)


@triton.jit
def _fold_tile(
    acc, tile, rows, x_tile, u_tile, x_norm, u_norm, x_label, row, p,
    x, y, y_norms, y_label, y_values, u, v, v_norms, N,
    FOLD: tl.constexpr, KINDS: tl.constexpr, METRIC: tl.constexpr, EPSILON: tl.constexpr,
    TEACHER: tl.constexpr, T_EPSILON: tl.constexpr,
    GROUPS: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr,
    D: tl.constexpr, DT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
    COLUMN_VALUES: tl.constexpr, SLOTS: tl.constexpr, OWN: tl.constexpr,
    SELF: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    index = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    cls, columns, exists = centres(index, N, K, PADDED)
    y_tile = load_rows(y, columns, 0, D, BLOCK_D)
    s = products(x, rows, x_tile, y, columns, y_tile, D, BLOCK_D, PRECISION)
    y_norm = load_norms(y_norms, columns, N * K, METRIC)
    s = numbers(s, x_norm, y_norm, METRIC, EPSILON)[0]
    if COLUMN_VALUES > 0:
        t = as_row(load_vectors(y_values, cls, N, COLUMN_VALUES))
    elif TEACHER == "none":
        t = 0.0
    else:
        v_tile = load_rows(v, columns, 0, DT, BLOCK_T)
        t = products(u, rows, u_tile, v, columns, v_tile, DT, BLOCK_T, PRECISION)
        t = numbers(t, u_norm, load_norms(v_norms, columns, N * K, TEACHER), TEACHER, T_EPSILON)[0]
    if GROUPS != "none":
        s, _ = grouped(s, p[len(p) - 1], GROUPS, K, PADDED, 1)
        exists = exists & (index % PADDED == 0)  # a class counts once
    valid = exists[None, :]
    if NEAR:
        positive = x_label[:, None] == tl.load(y_label + cls)[None, :]
        if SELF:
            valid = valid & (index[None, :] != rows[:, None])
    else:
        positive = tl.zeros([rows.shape[0], BLOCK_N], tl.int1)
    if SLOTS > 0:
        counts = exists[None, :] & (positive == 0)
        if OWN and SELF:
            counts = counts | (exists[None, :] & (index[None, :] == rows[:, None]))
        return fold_list(acc, s, counts, row, p, FOLD, len(KINDS) // SLOTS, SLOTS, NEAR)
    else:
        tiles = FOLD(s, t, positive, row, p)
        return fold(acc, tiles, positive, valid, KINDS, NEAR or GROUPS != "none")


@triton.jit(do_not_specialize=SIZES)
def statistics_kernel(
    x, y, x_norms, y_norms, x_label, y_label, y_values, u, v, u_norms, v_norms, known, parameters, near,
    partial, M, N, tiles_per_split,
    FOLD: tl.constexpr, KINDS: tl.constexpr, KNOWN: tl.constexpr, PARAMETERS: tl.constexpr,
    METRIC: tl.constexpr, EPSILON: tl.constexpr,
    TEACHER: tl.constexpr, T_EPSILON: tl.constexpr, GROUPS: tl.constexpr, K: tl.constexpr,
    PADDED: tl.constexpr, D: tl.constexpr, DT: tl.constexpr, SELF: tl.constexpr,
    POSITIVES_ONLY: tl.constexpr, COLUMN_VALUES: tl.constexpr, SLOTS: tl.constexpr, OWN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, NARROW: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """partial [splits, values, M] = the statistics of the columns of each split.

    x [M, D], y [N * K, D], labels int64 [M] and [N]; u, v the second matrix's factors; known
    [KNOWN, M] the statistics of earlier passes (the thresholds of a ListLoss, SLOTS of them); y_values
    [COLUMN_VALUES, N]; near: see `sweep`. SELF: row i is column i, and its pair is
    left out. Grid: (blocks of rows, splits, groups of SLOTS thresholds).
    """
    row0 = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    place = row0 + tl.arange(0, BLOCK_M)
    rows = tl.minimum(place, M - 1)  # rows beyond the end repeat the last one and are not stored
    x_tile = load_rows(x, rows, 0, D, BLOCK_D)
    u_tile = x_tile
    u_norm = ()
    if TEACHER != "none":
        u_tile = load_rows(u, rows, 0, DT, BLOCK_T)
        u_norm = load_norms(u_norms, rows, M, TEACHER)
    norm = load_norms(x_norms, rows, M, METRIC)
    label = tl.load(x_label + rows)
    group = tl.program_id(2).to(tl.int64)
    row = as_column(load_vectors(known + group * SLOTS * M, rows, M, KNOWN))
    p = load_scalars(parameters, PARAMETERS)

    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tl.cdiv(N * PADDED, BLOCK_N))
    plain, start, around, hanging, end = sweep(
        near, tl.program_id(0), first, last, N * PADDED, BLOCK_N
    )
    acc = empty(KINDS, BLOCK_M)
    if POSITIVES_ONLY:
        plain = 0
        hanging = tl.where(tl.load(near + 2 * tl.program_id(0) + 1) > end * BLOCK_N, hanging, 0)
    for i in range(0, plain):
        acc = _fold_tile(
            acc, plain_tile(i, first, start, around), rows, x_tile, u_tile, norm, u_norm,
            label, row, p, x, y, y_norms, y_label, y_values, u, v, v_norms, N, FOLD, KINDS, METRIC,
            EPSILON, TEACHER, T_EPSILON, GROUPS, K, PADDED, D, DT, BLOCK_N, BLOCK_D, BLOCK_T, PRECISION,
            COLUMN_VALUES, SLOTS, OWN, SELF, False,
        )  # fmt: skip
    for i in range(0, (around + hanging) * (BLOCK_N // NARROW)):
        acc = _fold_tile(
            acc, near_tile(i, start, around, end, BLOCK_N // NARROW), rows, x_tile, u_tile,
            norm, u_norm, label, row, p, x, y, y_norms, y_label, y_values, u, v, v_norms, N, FOLD, KINDS,
            METRIC, EPSILON, TEACHER, T_EPSILON, GROUPS, K, PADDED, D, DT, NARROW, BLOCK_D, BLOCK_T,
            PRECISION, COLUMN_VALUES, SLOTS, OWN, SELF, True,
        )  # fmt: skip
    found = values(acc, KINDS)
    out = partial + (split.to(tl.int64) * tl.num_programs(2) + group) * len(found) * M
    for i in tl.static_range(len(found)):
        tl.store(out + i * M.to(tl.int64) + place, found[i], mask=place < M)


@triton.jit(do_not_specialize=SIZES)
def merge_kernel(
    partial, known, parameters, results, M, splits,
    FINISH: tl.constexpr, KINDS: tl.constexpr, KNOWN: tl.constexpr, PARAMETERS: tl.constexpr,
    VALUES: tl.constexpr, LAST: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """known[KNOWN:] = the splits merged; after the last pass the rows are finished.

    partial [splits, values, M], known [>= KNOWN + values, M], results [n, M]: what
    `finish` returns.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rows = tl.minimum(place, M - 1)
    split = tl.arange(0, SPLITS)
    real = (split < splits)[None, :]
    tiles = ()
    for i in tl.static_range(VALUES):
        at = (tl.minimum(split, splits - 1).to(tl.int64)[None, :] * VALUES + i) * M + rows[:, None]
        tiles = tiles + (tl.load(partial + at),)
    acc = fold(empty(KINDS, BLOCK), tiles, real, real, KINDS, True)
    found = values(acc, KINDS)
    for i in tl.static_range(len(found)):
        tl.store(known + (KNOWN + i) * M.to(tl.int64) + place, found[i], mask=place < M)
    if LAST:
        stats = load_vectors(known, rows, M, KNOWN) + found
        p = load_scalars(parameters, PARAMETERS)
        out = FINISH(stats, p)
        for i in tl.static_range(len(out)):
            tl.store(results + i * M.to(tl.int64) + place, out[i], mask=place < M)
