"""The sweep: blocks of queries against the whole gallery, which passes by in tiles.

What is kept of a query is short: places of its right candidates, its nearest ones, sums. A score is computed
where it is needed and forgotten. The compiled library (csrc/metrics) does that on the CPU; elsewhere, and
without it, torch holds the scores of a few queries at a time and sorts them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ..engine import library
from ..engine.similarity import exact_distances, products
from .pairs import PairTally
from .problem import Problem
from .relevance import Relation, Right

BLOCK_BYTES = 32 << 20  # of scores that torch holds at once
_ROWS = 8192  # queries of a block
_RIGHT = 1 << 20  # right candidates of a block, but for one query's
_KEPT_BYTES = 24 << 20  # of nearest candidates of a block
_TILE_BYTES = 4 << 20  # of the gallery packed at once

Progress = Callable[[int, int], None]  # (queries done, of how many), in equal parts of the work


@dataclasses.dataclass
class Found:
    """What a sweep found of a block of q queries.

    Attributes:
        queries: ``[q]`` their numbers.
        right: their right candidates; None where no ranks were asked for.
        ranks: places of these among all candidates, from 1, ascending within a query. Candidates of equal
            score that are not right come first.
        scores: of these, in the order of `ranks`.
        gains: of these, in the order of `ranks`; None where all are worth the same.
        index: ``[q, k]`` nearest candidates, the nearest first, of equal ones the lower index; -1 beyond.
        index_scores: ``[q, k]``.
        spread: ``[q]`` sums of exp(by * score + shift).
    """

    queries: np.ndarray
    right: Right | None = None
    ranks: np.ndarray | None = None
    scores: np.ndarray | None = None
    gains: np.ndarray | None = None
    index: np.ndarray | None = None
    index_scores: np.ndarray | None = None
    spread: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What to find.

    Attributes:
        relation: which candidates are right; None: no ranks.
        k: nearest candidates of every query, 0: none.
        tally: counts of all pairs by score.
        spread: (by, shift) of the sums of exponentials.
        every_query: whether queries without a right candidate are swept too.
    """

    relation: Relation | None = None
    k: int = 0
    tally: PairTally | None = None
    spread: tuple[float, float] | None = None

    @property
    def every_query(self) -> bool:
        return self.relation is None or self.k > 0 or self.tally is not None or self.spread is not None


def blocks(
    relation: Relation | None, queries: int, k: int, every_query: bool, every: int = 1
) -> Iterator[np.ndarray]:
    """Numbers of the queries, a block at a time; every: of each so many queries one."""
    order = np.arange(queries) if relation is None else relation.order
    if relation is not None and not every_query:
        order = order[relation.count[order] > 0]
    order = order[::every]
    size = min(_ROWS, max(16, _KEPT_BYTES // (16 * k + 256))) if k else _ROWS
    if relation is None:
        bounds = np.arange(0, len(order), size)
    else:
        # A block ends where its right candidates are too many, or its queries.
        total = np.cumsum(relation.count[order])
        starts, at = [], 0
        while at < len(order):
            starts.append(at)
            before = total[at - 1] if at else 0
            full = int(np.searchsorted(total, before + _RIGHT, side="right"))
            at = min(at + size, max(full, at + 1))
        bounds = np.array(starts, dtype=np.int64)
    for start, stop in zip(bounds, np.append(bounds[1:], len(order))):
        yield order[start:stop]


def sweep(
    problem: Problem,
    wanted: Wanted,
    block_bytes: int = BLOCK_BYTES,
    progress: Progress | None = None,
) -> Iterator[Found]:
    """Every block of queries against the gallery."""
    run = _native if problem.native else _chunked
    done = 0
    for queries in blocks(wanted.relation, len(problem.queries), wanted.k, wanted.every_query):
        right = None if wanted.relation is None else wanted.relation.block(queries)

        def report(share: float, before: int = done, size: int = len(queries)) -> None:
            if progress is not None:
                progress(before + int(share * size), len(problem.queries))

        found = run(problem, wanted, queries, right, block_bytes, report)
        done += len(queries)
        yield found
    if progress is not None:
        progress(len(problem.queries), len(problem.queries))


def right_scores(
    problem: Problem, relation: Relation, block_bytes: int = BLOCK_BYTES, every: int = 1
) -> Iterator[np.ndarray]:
    """Scores of the right candidates of every block of queries; every: of each so many queries one."""
    for queries in blocks(relation, len(problem.queries), 0, False, every):
        right = relation.block(queries)
        if problem.native:
            state = _state(problem, queries, right)
            yield state.right
        else:
            yield np.concatenate([s for *_, s in _score_right(problem, queries, right, block_bytes)])


def _state(problem: Problem, queries: np.ndarray, right: Right | None) -> Any:
    compiled = library.load()
    assert compiled is not None
    make = compiled.Sweep64 if problem.double else compiled.Sweep32
    scale = problem.query_scale
    state = make(
        np.ascontiguousarray(problem.queries.stored()[queries]),
        None if scale is None else scale[queries],
        problem.difference,
        problem.own[queries],
        problem.one_set,
    )
    if right is not None:
        state.find_right(
            problem.gallery.stored(), problem.gallery_scale, right.ids, right.jobs, right.start
        )
    return state


def _native(
    problem: Problem,
    wanted: Wanted,
    queries: np.ndarray,
    right: Right | None,
    block_bytes: int,
    report: Callable[[float], None],
) -> Found:
    state = _state(problem, queries, right)
    graded = right is not None and right.gains is not None
    if right is not None:
        state.want_ranks(right.gains if graded else None)
    if wanted.k:
        state.want_neighbours(wanted.k)
    if wanted.tally is not None:
        state.want_pairs(wanted.tally.native())
    if wanted.spread is not None:
        state.want_spread(*wanted.spread)
    gallery, count = problem.gallery.stored(), len(problem.gallery)
    # (Of fewer dimensions than 8 no more rows: a thread counts the pairs of a tile in 32 bits.)
    step = max(256, _TILE_BYTES // (max(8, problem.gallery.dim) * np.dtype(problem.dtype).itemsize))
    for start in range(0, count, step):
        stop = min(start + step, count)
        state.fold(gallery, problem.gallery_scale, start, stop)
        report(stop / count)
    found = Found(queries, right)
    if right is not None:
        found.ranks, found.scores = state.ranks(), state.right
        at, count_of = right.start[:-1], np.diff(right.start)
        # Scores ascend within a query, ranks do too: the other way about.
        turned = np.repeat(2 * at + count_of - 1, count_of) - np.arange(len(found.ranks))
        found.scores = found.scores[turned]
        if graded:
            found.gains = state.gains[turned]
        if wanted.tally is not None:  # s(i, j) is s(j, i): of one set, every pair was found twice
            wanted.tally.add_right(found.scores, 2 if problem.one_set else 1)
    if wanted.k:
        found.index, found.index_scores = state.neighbours()
    if wanted.spread is not None:
        found.spread = state.spread
    return found


def _torch_type(problem: Problem) -> torch.dtype:
    return torch.float64 if problem.double else torch.float32


def _scores(
    problem: Problem, queries: np.ndarray, block_bytes: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """(which of the queries, their scores ``[r, M]``); own pairs at -inf."""
    dtype, device = _torch_type(problem), problem.gallery.device
    count = len(problem.gallery)
    size = torch.finfo(dtype).bits // 8
    step = max(1, block_bytes // (6 * count * size))  # sorted with its indices beside it
    step = min(step, _whole(len(problem.queries)))
    shape = _whole(step)
    dim = max(16, problem.gallery.dim)  # of padded rows no more scores than are asked for
    columns = min(max(64, block_bytes // (4 * dim * size) // 64 * 64), _whole(count))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        chosen = queries[rows]
        q = problem.queries.take(chosen, dtype, device)
        if problem.query_scale is not None:
            q = q * torch.from_numpy(problem.query_scale[chosen]).to(device)[:, None]
        q = _padded(q, shape)
        scores = torch.empty(len(chosen), count, dtype=dtype, device=device)
        for first in range(0, count, columns):
            last = min(first + columns, count)
            g = problem.gallery.tensor(first, last, dtype, device)
            if problem.gallery_scale is not None:
                g = g * torch.from_numpy(problem.gallery_scale[first:last]).to(device)[:, None]
            part = (
                exact_distances(q, g).square_().neg_()  # nothing cancels
                if problem.difference
                else products(q, _padded(g, columns))
            )
            scores[:, first:last] = part[: len(chosen), : last - first]
        own = torch.from_numpy(problem.own[chosen]).to(device)
        with_own = (own >= 0).nonzero()[:, 0]
        scores[with_own, own[with_own]] = -torch.inf
        yield rows, scores


def _whole(count: int) -> int:
    """A size without ragged edges."""
    return max(64, -(-count // 64) * 64)


def _padded(x: torch.Tensor, rows: int) -> torch.Tensor:
    """Products of one shape are one routine's: a score does not depend on where in a block it stands."""
    if len(x) == rows:
        return x
    return torch.cat([x, x.new_zeros(rows - len(x), x.shape[1])])


def _score_right(
    problem: Problem, queries: np.ndarray, right: Right, block_bytes: int
) -> Iterator[tuple[slice, torch.Tensor, np.ndarray]]:
    """(which queries, their scores, those of their right candidates)."""
    query, row = right.pairs()
    for rows, scores in _scores(problem, queries, block_bytes):
        of = slice(right.start[rows.start], right.start[rows.stop])
        at = torch.from_numpy(query[of] - rows.start).to(scores.device)
        yield rows, scores, scores[at, torch.from_numpy(row[of]).to(scores.device)].cpu().numpy()


@torch.no_grad()
def _chunked(
    problem: Problem,
    wanted: Wanted,
    queries: np.ndarray,
    right: Right | None,
    block_bytes: int,
    report: Callable[[float], None],
) -> Found:
    found = Found(queries, right)
    parts: dict[str, list[np.ndarray]] = {}
    blocks_of_scores: Any
    if right is None:
        blocks_of_scores = ((rows, s, None) for rows, s in _scores(problem, queries, block_bytes))
    else:
        blocks_of_scores = _score_right(problem, queries, right, block_bytes)
    if right is not None and wanted.tally is not None:
        once = _once(problem, queries, right)
    for rows, scores, theta in blocks_of_scores:
        if right is not None or wanted.k:
            order = scores.sort(dim=1, descending=True, stable=True)
        if right is not None:
            of = slice(right.start[rows.start], right.start[rows.stop])
            gains = None if right.gains is None else right.gains[of]
            counts = np.diff(right.start[rows.start : rows.stop + 1])
            for name, part in _places(theta, gains, counts, order.values).items():
                parts.setdefault(name, []).append(part)
            if wanted.tally is not None:
                wanted.tally.add_right(theta[once[of]])
        if wanted.k:
            k = min(wanted.k, scores.shape[1])
            shape = len(scores), wanted.k
            index = torch.full(shape, -1, dtype=torch.int64, device="cpu")
            values = torch.full(shape, torch.nan, dtype=scores.dtype, device="cpu")
            index[:, :k], values[:, :k] = order.indices[:, :k].cpu(), order.values[:, :k].cpu()
            index[values == -torch.inf] = -1  # the query itself, where all are asked for
            values[values == -torch.inf] = torch.nan
            parts.setdefault("index", []).append(index.numpy())
            parts.setdefault("index_scores", []).append(values.numpy())
        if wanted.tally is not None or wanted.spread is not None:
            own = torch.from_numpy(problem.own[queries[rows]]).to(scores.device)
            counted = scores > -torch.inf
            if problem.one_set:
                counted &= torch.arange(scores.shape[1], device=scores.device) > own[:, None]
            if wanted.tally is not None:
                wanted.tally.add(scores[counted])
            if wanted.spread is not None:
                by, shift = wanted.spread
                terms = (scores * by + shift).exp_().masked_fill_(~counted, 0)
                parts.setdefault("spread", []).append(terms.sum(1, dtype=torch.float64).cpu().numpy())
        report(rows.stop / len(queries))
    for name, pieces in parts.items():
        setattr(found, name, np.concatenate(pieces))
    return found


def _once(problem: Problem, queries: np.ndarray, right: Right) -> np.ndarray:
    """Which of the right pairs count: of one set, each once."""
    query, row = right.pairs()
    return row > problem.own[queries[query]] if problem.one_set else np.ones(len(row), dtype=bool)


def _places(
    theta: np.ndarray, gains: np.ndarray | None, counts: np.ndarray, ordered: torch.Tensor
) -> dict[str, np.ndarray]:
    """Ranks of right candidates from the scores of all, descending; see `Found`."""
    query = np.repeat(np.arange(len(counts)), counts)
    keys = (-theta, query) if gains is None else (gains, -theta, query)
    order = np.lexsort(keys)
    theta = theta[order]
    start = np.cumsum(counts) - counts
    place = np.arange(len(theta)) - start[query]
    width = int(counts.max(initial=0))
    padded = np.full((len(counts), width), np.inf, dtype=theta.dtype)
    padded[query, place] = theta
    # How many of all are at least as large: the descending scores negated ascend.
    thresholds = torch.from_numpy(-padded).to(ordered.device)
    at_least = torch.searchsorted(-ordered, thresholds, right=True).cpu().numpy()[query, place]
    # Of the right ones as many as stand before the end of its run of equal scores.
    last = np.ones(len(theta), dtype=bool)
    last[:-1] = (theta[1:] != theta[:-1]) | (query[1:] != query[:-1])
    ends = np.flatnonzero(last)
    run_end = ends[np.searchsorted(ends, np.arange(len(theta)))] - start[query] + 1
    found = {"ranks": (at_least - run_end + place + 1).astype(np.int32), "scores": theta}
    if gains is not None:
        found["gains"] = gains[order]
    return found
