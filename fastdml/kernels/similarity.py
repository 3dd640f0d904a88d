# ruff: noqa: RUF005  (Triton knows the concatenation of tuples, not unpacking)
"""Tiles of similarities: their place, their pairs, their values."""

import triton
import triton.language as tl

# Arguments of the kernels that are not compiled in: one compilation for all sizes, 1 among them.
SIZES = ["M", "N", "splits", "tiles_per_split", "first_block", "first_tile", "count", "eighths"]


@triton.jit
def load_rows(x, rows, first, D: tl.constexpr, BLOCK: tl.constexpr):
    """x[rows, first : first + BLOCK], zeros beyond D. rows must exist."""
    d = first + tl.arange(0, BLOCK)
    at = x + rows[:, None].to(tl.int64) * D + d[None, :]
    if D % BLOCK == 0:
        return tl.load(at)
    else:
        return tl.load(at, mask=d[None, :] < D, other=0.0)


@triton.jit
def products(
    a, a_rows, a_tile, b, b_rows, b_tile,
    D: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """[rows of a, rows of b] dot products; a_tile and b_tile are the rows where D fits one block."""
    if D <= BLOCK_D:
        return tl.dot(a_tile, tl.trans(b_tile), input_precision=PRECISION)
    else:
        s = tl.zeros([a_rows.shape[0], b_rows.shape[0]], tl.float32)
        d = tl.arange(0, BLOCK_D)[None, :]
        # Addresses move on by an addition: made anew they would cost more than the loads.
        x = a + a_rows[:, None].to(tl.int64) * D + d
        y = b + b_rows[:, None].to(tl.int64) * D + d
        for first in range(0, D, BLOCK_D):
            if D % BLOCK_D == 0:
                s = tl.dot(tl.load(x), tl.trans(tl.load(y)), s, input_precision=PRECISION)
            else:
                more = d < D - first
                x_tile, y_tile = tl.load(x, mask=more, other=0.0), tl.load(y, mask=more, other=0.0)
                s = tl.dot(x_tile, tl.trans(y_tile), s, input_precision=PRECISION)
            x += BLOCK_D
            y += BLOCK_D
        return s


@triton.jit
def load_norms(norms, rows, SIZE, METRIC: tl.constexpr):
    """(inverse norm, squared norm) of each row from norms [2, SIZE], as far as the metric has them."""
    one = tl.full([rows.shape[0]], 1.0, tl.float32)
    scale = one
    square = one
    if METRIC == "cosine" or METRIC == "distance" or METRIC == "squared_distance":
        scale = tl.load(norms + rows)
    if METRIC != "cosine" and METRIC != "dot":
        square = tl.load(norms + SIZE + rows)
    return scale, square


@triton.jit
def numbers(s, a_norms, b_norms, METRIC: tl.constexpr, EPSILON: tl.constexpr):
    """(Products as the numbers the loss reads, one over them); METRIC as in the engine's similarities. Only
    distances have the latter, 0 where embeddings are equal: others return the numbers twice."""
    if METRIC == "cosine":
        s = s * a_norms[0][:, None] * b_norms[0][None, :]
    over = s
    if METRIC != "cosine" and METRIC != "dot":
        # What is of one row alone is made before the loop over its columns.
        square = a_norms[1]
        twice = tl.zeros_like(square) - 2.0
        if METRIC == "distance" or METRIC == "squared_distance":
            twice = -2.0 * a_norms[0]
            s = s * b_norms[0][None, :]
        d2 = s * twice[:, None] + (square[:, None] + b_norms[1][None, :])
        # What is below the rounding of the sum counts as no distance at all. Squares of normalised rows are
        # 1, or 0, to which nothing is near. The smallest normal number is the least that has a root here.
        least = 4.76837158203125e-07 * square
        if METRIC == "distance" or METRIC == "squared_distance":
            near = d2 < (least + 4.76837158203125e-07)[:, None]
        else:
            least = tl.maximum(least, 1.1754944e-38)
            near = d2 < least[:, None] + 4.76837158203125e-07 * b_norms[1][None, :]
        if METRIC == "squared_distance" or METRIC == "raw_squared_distance":
            s = tl.where(near, 0.0, d2) + EPSILON
            over = s
        elif EPSILON == 0.0:
            # Both by one reciprocal root, which of infinity is 0.
            over = tl.rsqrt(tl.where(near, float("inf"), d2))
            s = d2 * over
        else:
            s = tl.where(near, 0.0, d2) + EPSILON
            root = tl.rsqrt(s)
            s = s * root
            over = tl.where(near, 0.0, root)
    return s, over


@triton.jit
def product_weights(w, s, over, METRIC: tl.constexpr, NEAREST: tl.constexpr):
    """Derivatives by the numbers as derivatives by the (scaled) products. s, over: what `numbers` returns.

    NEAREST: the number of equal embeddings. Their pair pulls neither; left in, its two large shares
    would have to cancel.
    """
    if METRIC == "squared_distance" or METRIC == "raw_squared_distance":
        w = tl.where(s > NEAREST, w * -2.0, 0.0)
    elif METRIC == "distance" or METRIC == "raw_distance":
        w = -w * over
    return w


@triton.jit
def load_vectors(x, rows, SIZE, COUNT: tl.constexpr):
    """The tuple of x[0, rows] ... x[COUNT - 1, rows] of a float32 x [COUNT, SIZE]."""
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (tl.load(x + i * SIZE.to(tl.int64) + rows),)
    return out


@triton.jit
def load_scalars(x, COUNT: tl.constexpr):
    out = ()
    for i in tl.static_range(COUNT):
        out = out + (tl.load(x + i),)
    return out


@triton.jit
def as_column(x):
    """A tuple of vectors [R] as [R, 1]."""
    out = ()
    for i in tl.static_range(len(x)):
        out = out + (x[i][:, None],)
    return out


@triton.jit
def as_row(x):
    """A tuple of vectors [C] as [1, C]."""
    out = ()
    for i in tl.static_range(len(x)):
        out = out + (x[i][None, :],)
    return out


@triton.jit
def sweep(near, block, first, last, N, BLOCK: tl.constexpr):
    """Splits tiles [first, last) of N columns into plain ones and the few that need care.

    near [blocks, 2]: the columns that may hold positives or the pair of a sample with itself. Tiles
    that touch them, and the one that hangs over the end, need labels and masks; a plain tile is all
    negatives. Returns (plain, start of the near tiles, their count, hanging, the hanging tile).
    """
    full = N // BLOCK
    stop = tl.maximum(tl.minimum(last, full), first)
    start = tl.load(near + 2 * block) // BLOCK
    end = tl.cdiv(tl.load(near + 2 * block + 1), BLOCK)
    start = tl.minimum(tl.maximum(start, first), stop)
    end = tl.minimum(tl.maximum(end, start), stop)
    around = end - start
    return stop - first - around, start, around, tl.where(last > full, 1, 0), full


@triton.jit
def plain_tile(i, first, start, around):
    """The i-th tile of [first, ...) without the near ones."""
    at = first + i
    return tl.where(at >= start, at + around, at)


@triton.jit
def near_tile(i, start, around, end, TIMES: tl.constexpr):
    """The i-th of the near tiles and the hanging one, each cut into TIMES narrow ones: labels and masks would
    not fit the registers beside a wide one. In narrow tiles."""
    return tl.where(i < around * TIMES, start * TIMES + i, (end - around) * TIMES + i)


@triton.jit
def centres(index, COUNT, K: tl.constexpr, PADDED: tl.constexpr):
    """Positions along a padded axis of K centres per class -> (class, row of the centre, exists).

    COUNT: classes. With one centre per class, PADDED = K = 1 and the class is the row.
    """
    cls = index // PADDED
    k = index % PADDED
    exists = (cls < COUNT) & (k < K)
    cls = tl.minimum(cls, COUNT - 1)
    return cls, cls * K + tl.minimum(k, K - 1), exists


@triton.jit
def _group_softmax(s, real, sharpness):
    z = tl.where(real, s * sharpness, float("-inf"))
    e = tl.exp2(z - tl.max(z, 2, keep_dims=True))
    q = e / tl.sum(e, 2, keep_dims=True)
    mean = tl.sum(q * s, 2, keep_dims=True)
    # sharpness carries log2(e); the derivative wants the natural one.
    slope = q * (1.0 + (s - mean) * (sharpness * 0.6931471805599453))
    return mean + tl.zeros_like(s), slope


@triton.jit
def _group_max(s, real, index):
    z = tl.where(real, s, float("-inf"))
    top = tl.max(z, 2, keep_dims=True)
    # A tie goes to the first centre, so that exactly one of them moves.
    first = tl.min(tl.where(z == top, index, 2147483647), 2, keep_dims=True)
    return top + tl.zeros_like(s), tl.where(index == first, 1.0, 0.0)


@triton.jit
def grouped(
    s, sharpness, HOW: tl.constexpr, K: tl.constexpr, PADDED: tl.constexpr, AXIS: tl.constexpr
):
    """Similarities of a class's centres -> (the class's similarity at each of them, its derivative)."""
    R: tl.constexpr = s.shape[0]
    C: tl.constexpr = s.shape[1]
    if AXIS == 0:
        s = tl.trans(s)
        rows: tl.constexpr = C
        columns: tl.constexpr = R
    else:
        rows: tl.constexpr = R
        columns: tl.constexpr = C
    x = tl.reshape(s, [rows, columns // PADDED, PADDED])
    k = tl.arange(0, PADDED)[None, None, :] + tl.zeros([rows, columns // PADDED, PADDED], tl.int32)
    if HOW == "softmax":
        value, slope = _group_softmax(x, k < K, sharpness)
    else:
        value, slope = _group_max(x, k < K, k)
    value = tl.reshape(value, [rows, columns])
    slope = tl.reshape(slope, [rows, columns])
    if AXIS == 0:
        value = tl.trans(value)
        slope = tl.trans(slope)
    return value, slope
