# ruff: noqa: RUF005  (Triton knows the concatenation of tuples, not unpacking)
"""Lists of thresholds: where kernels 1 and 2 differ for a ListLoss, and the two small kernels around.

Columns are in the order of their labels, so a row's positives are consecutive: threshold k of a row is
its similarity to column low + k.
"""

import triton
import triton.language as tl

from .similarity import SIZES, load_norms, load_rows, numbers, products


@triton.jit(do_not_specialize=SIZES)
def thresholds_kernel(
    x, y, x_norms, y_norms, near, low, out, M, N,
    SLOTS: tl.constexpr, METRIC: tl.constexpr, EPSILON: tl.constexpr, D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [SLOTS, M] = similarities of the rows to the columns low, low + 1, ...

    From the same tiles as in kernel 1, so that they are the same to the last bit. Places behind the end
    of a list hold numbers without a meaning. Grid: (blocks of rows,).
    """
    block = tl.program_id(0)
    place = block * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = tl.minimum(place, M - 1)
    x_tile = load_rows(x, rows, 0, D, BLOCK_D)
    norm = load_norms(x_norms, rows, M, METRIC)
    first = tl.load(low + rows)
    acc = ()
    for _ in tl.static_range(SLOTS):
        acc = acc + (tl.zeros([BLOCK_M], tl.float32),)
    start = tl.load(near + 2 * block) // BLOCK_N
    stop = tl.cdiv(tl.load(near + 2 * block + 1), BLOCK_N)
    for tile in range(start, stop):
        index = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        columns = tl.minimum(index, N - 1)
        y_tile = load_rows(y, columns, 0, D, BLOCK_D)
        s = products(x, rows, x_tile, y, columns, y_tile, D, BLOCK_D, PRECISION)
        s = numbers(s, norm, load_norms(y_norms, columns, N, METRIC), METRIC, EPSILON)[0]
        slot = index[None, :] - first[:, None]
        found = ()
        for k in tl.static_range(SLOTS):
            found = found + (acc[k] + tl.sum(tl.where(slot == k, s, 0.0), 1),)
        acc = found
    for k in tl.static_range(SLOTS):
        tl.store(out + k * M.to(tl.int64) + place, acc[k], mask=place < M)


@triton.jit
def fold_list(
    acc, s, counts, row, p, COMPARE: tl.constexpr, VALUES: tl.constexpr, SLOTS: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """acc with the comparisons of a tile added, one threshold after the other. row: the thresholds."""
    out = ()
    for k in tl.static_range(SLOTS):
        found = COMPARE(s - row[k], p)
        for c in tl.static_range(VALUES):
            x = found[c]
            if MASKED:
                x = tl.where(counts, x, 0.0)
            out = out + (acc[len(out)] + tl.sum(x, 1),)
    return out


@triton.jit(do_not_specialize=SIZES)
def list_finish_kernel(
    partial, thresholds, parameters, low, size, results, M, N, splits,
    FINISH: tl.constexpr, VALUES: tl.constexpr, SLOTS: tl.constexpr, OUTPUTS: tl.constexpr,
    PARAMETERS: tl.constexpr, SELF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """results [OUTPUTS + 3 SLOTS, M]: outputs, thresholds, push, direct.

    partial [splits, SLOTS * VALUES, M] from kernel 1, thresholds [SLOTS, M], size int32 [M]: the lists'
    lengths, the row itself among them if it is a column.
    """
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rows = tl.minimum(place, M - 1)
    slot = tl.arange(0, SLOTS)
    length = tl.load(size + rows)
    valid = slot[None, :] < length[:, None]
    if SELF:
        valid = valid & (tl.load(low + rows)[:, None] + slot[None, :] != rows[:, None])
    t = tl.load(thresholds + slot[None, :].to(tl.int64) * M + rows[:, None])
    t = tl.where(valid, t, 0.0)
    sums = ()
    for c in tl.static_range(VALUES):
        total = tl.zeros([BLOCK, SLOTS], tl.float32)
        at = partial + (slot[None, :] * VALUES + c).to(tl.int64) * M + rows[:, None]
        for split in range(splits):
            total += tl.load(at + M.to(tl.int64) * (SLOTS * VALUES) * split)
        sums = sums + (tl.where(valid, total, 0.0),)
    p = ()
    for i in tl.static_range(PARAMETERS):
        p = p + (tl.load(parameters + i),)
    count = tl.sum(valid.to(tl.float32), 1)
    outputs, push, direct = FINISH(
        sums, t, valid, count, (N - length).to(tl.float32), N.to(tl.float32), p
    )
    keep = place < M
    for i in tl.static_range(OUTPUTS):
        tl.store(results + i * M.to(tl.int64) + place, outputs[i], mask=keep)
    kept = (t, push, direct)
    for i in tl.static_range(3):
        at = results + (OUTPUTS + i * SLOTS + slot[None, :]).to(tl.int64) * M + place[:, None]
        tl.store(at, kept[i], mask=keep[:, None])


@triton.jit
def _along(x, AXIS: tl.constexpr):
    return x[:, None] if AXIS == 0 else x[None, :]


@triton.jit
def list_weight(
    s, slot, listed, states, rows, SIZE, p, SLOPE: tl.constexpr, SLOTS: tl.constexpr, AXIS: tl.constexpr,
    NEAR: tl.constexpr,
):  # fmt: skip
    """The weights of a tile, whose rows (of the loss) lie along AXIS.

    states [3 SLOTS, SIZE]: thresholds, push, direct. They are read in a loop, from the nearest cache: all
    of them together would fill the registers. NEAR: whether there may be thresholds, `listed`, of which
    each is in its `slot`.
    """
    w = tl.zeros(s.shape, tl.float32)
    direct = tl.zeros(s.shape, tl.float32)
    step = SIZE.to(tl.int64)
    for k in range(0, SLOTS):
        at = states + step * k + rows
        t = _along(tl.load(at), AXIS)
        push = _along(tl.load(at + step * SLOTS), AXIS)
        w += push * SLOPE(s - t, p)
        if NEAR:
            by = _along(tl.load(at + step * (2 * SLOTS)), AXIS)
            direct += tl.where(slot == k, by, 0.0)
    if NEAR:
        w = tl.where(listed, direct, w)
    return w


@triton.jit
def among(t, valid):
    """(differences t_l - t_k, whether both are there and differ): [rows, k, l], for `finish`."""
    S: tl.constexpr = t.shape[1]
    k = tl.arange(0, S)
    d = t[:, None, :] - t[:, :, None]
    return d, valid[:, None, :] & valid[:, :, None] & (k[None, None, :] != k[None, :, None])
