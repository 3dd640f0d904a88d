"""Rows whose similarities are late interactions: for every token of the anchor its candidate's best token.

    s_ij = sum_l max_m a_il . c_jm

A block of anchors' tokens meets one block of candidates' tokens after another; what is kept of all their
products are the maxima's places, one number for each token of the block's anchors and each candidate. The row
of the call's loss turns the block of s into weights g, and

    da_il = sum_j g_ij c_j,m(i,l,j)            dc_j,m(i,l,j) += g_ij a_il

are sums of gathered and of scattered tokens: no further product of matrices. Memory is that of the tokens and
of a block, never of all pairs of tokens, nor of all pairs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from . import dispatch
from .autograd import once, refuse_transforms, scaled
from .call import Call
from .executors.chunked import Chunked
from .executors.native import Native
from .op import own_world
from .problem import Problem, joined
from .schedule import Result, Visit
from .workspace import workspace_limit

# Bytes of a pair of tokens while a block of them is looked through, and of the place of a maximum.
_PRODUCT, _PLACE = 8, 8


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """x: [N, L, D] tokens. kept: bool [N, L], which of them there are; None: all."""

    x: Tensor
    kept: Tensor | None = None

    @property
    def count(self) -> int:
        return self.x.shape[0]

    @property
    def length(self) -> int:
        return self.x.shape[1]


def best(anchors: Tokens, candidates: Tokens, places: Tensor | None, out: Tensor) -> Tensor:
    """out [R, N]: sums of the best products; places: int64 [R, L, N] where they stand among a candidate's."""
    rows, length, dim = anchors.x.shape
    flat = anchors.x.reshape(-1, dim)
    step = max(1, workspace_limit("cpu") // max(1, _PRODUCT * flat.shape[0] * candidates.length))
    for start in range(0, candidates.count, step):
        some = slice(start, start + step)
        theirs = candidates.x[some]
        s = (flat @ theirs.reshape(-1, dim).t()).view(rows, length, theirs.shape[0], candidates.length)
        if candidates.kept is not None:
            s = s.masked_fill(~candidates.kept[some], -torch.inf)
        value, place = s.max(3)
        if candidates.kept is not None:  # no token: nothing is near
            value = value.masked_fill(~candidates.kept[some].any(1), 0.0)
        if anchors.kept is not None:
            value = value.masked_fill(~anchors.kept[:, :, None], 0.0)
        out[:, some] = value.sum(1)
        if places is not None:
            places[:, :, some] = place
    return out


def block_rows(anchors: Tokens, candidates: Tokens) -> int:
    """Anchors of a block: their places within the workspace, and at least one."""
    each = anchors.length * candidates.count * _PLACE
    return max(1, min(anchors.count, workspace_limit("cpu") // max(1, each)))


def value(call: Call, anchors: Tokens, candidates: Tokens) -> Tensor:
    """The value of a call whose similarities are those of tokens; its anchors and candidates are not read.

    Differentiable in the tokens and in `call.scalars`; of reduction "mean" or "sum".
    """
    refuse_transforms()
    found: Tensor = _Late.apply(
        anchors.x, candidates.x, call.scalars, anchors.kept, candidates.kept, call, torch.is_grad_enabled()
    )
    return found * call.weight


def _blocks(x: Tokens, size: int) -> list[tuple[int, Tokens]]:
    return [
        (k, Tokens(x.x[k : k + size], None if x.kept is None else x.kept[k : k + size]))
        for k in range(0, x.count, size)
    ]


def _presweep(problem: Problem, anchors: Tokens, candidates: Tokens, step: Chunked | Native) -> None:
    """What the loss asks of columns as rows, from their own blocks (`schedule.presweep`)."""
    before = problem.loss.presweep()
    if before is None:
        return
    turned = problem.swapped(before)
    out = Result(problem.anchors.new_empty(candidates.count, before.outputs, dtype=problem.statistic))
    for start, some in _blocks(candidates, block_rows(candidates, anchors)):
        s = problem.anchors.new_empty(anchors.count, some.count, dtype=problem.statistic)
        for k, mine in _blocks(anchors, block_rows(anchors, some)):
            best(mine, some, None, s[k : k + mine.count])
        step(Visit(turned, s.t().contiguous(), start, out, compared=True))
    problem.col_values = joined(problem.col_values, out.outputs.t().contiguous())


def _run(
    call: Call, anchors: Tokens, candidates: Tokens, wanted: list[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    problem = Problem.of(call)
    native = dispatch.EXECUTORS["native"]
    executor = native if call.backend in ("auto", "native") and native.refuses(problem) is None else None
    step: Any = executor or dispatch.EXECUTORS["chunked"]
    _presweep(problem, anchors, candidates, step)
    problem.presweep_done = True
    m, n, kind = anchors.count, candidates.count, problem.statistic
    if call.reduction == "mean":
        problem.weight = 1.0 / max(1, m)
    out = Result(problem.anchors.new_zeros(m, 1, dtype=kind))
    if wanted[2] and problem.all_scalars is not None:
        out.d_scalars = problem.anchors.new_zeros(m, problem.all_scalars.numel(), dtype=kind)
    d_a = torch.zeros_like(anchors.x) if wanted[0] else None
    d_c = torch.zeros_like(candidates.x) if wanted[1] else None
    theirs = candidates.x.reshape(-1, candidates.x.shape[2])
    first = torch.arange(n, device=theirs.device) * candidates.length
    for start, mine in _blocks(anchors, block_rows(anchors, candidates)):
        rows = mine.count
        places = None
        if d_a is not None or d_c is not None:
            places = torch.empty(rows, mine.length, n, dtype=torch.int64, device=theirs.device)
        s = best(mine, candidates, places, torch.empty(rows, n, dtype=kind, device=theirs.device))
        g = step(Visit(problem, s, start, out, any(wanted), compared=True))
        if places is None:
            continue
        share = g[:, None, :].expand(rows, mine.length, n)
        if candidates.kept is not None:
            share = share * candidates.kept.any(1)
        if mine.kept is not None:
            share = share * mine.kept[:, :, None]
        index = places.add_(first).view(-1, n)
        share = share.reshape(-1, n)
        with torch.enable_grad():
            leaf = theirs.detach().requires_grad_(d_c is not None)
            gathered = embedding_bag(index, leaf, per_sample_weights=share, mode="sum")
        if d_a is not None:
            d_a[start : start + rows] = gathered.detach().view(mine.x.shape)
        if d_c is not None:
            (found,) = torch.autograd.grad(gathered, leaf, mine.x.reshape(gathered.shape))
            d_c += found.view(d_c.shape)
    total = out.outputs[:, 0].sum(dtype=torch.float64) * problem.weight
    d_scalars = None
    if out.d_scalars is not None and call.scalars is not None:
        d_scalars = out.d_scalars.sum(0, dtype=torch.float64).to(kind)[: call.scalars.numel()]
    return total.to(kind), [d_a, d_c, d_scalars]


class _Late(torch.autograd.Function):
    """The gradients come with the forward, as for other calls."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        c: Tensor,
        scalars: Tensor | None,
        kept: Tensor | None,
        their_kept: Tensor | None,
        call: Call,
        recorded: bool,
    ) -> Tensor:
        wanted = [recorded and n for n in ctx.needs_input_grad[:3]]
        anchors, candidates = Tokens(a.detach(), kept), Tokens(c.detach(), their_kept)
        with own_world(a.device.type):
            found, gradients = _run(call, anchors, candidates, wanted)
        ctx.wanted = wanted
        leaves = [x for x, w in zip((a, c, scalars), wanted) if w]
        ctx.save_for_backward(*leaves, *(d for d, w in zip(gradients, wanted) if w))
        return found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        count, saved = sum(ctx.wanted), ctx.saved_tensors  # read once, as activation checkpointing asks
        leaves, gradients = saved[:count], saved[count:]
        each = iter(once(scaled(gradients, leaves, upstream), leaves))
        return (*(next(each) if w else None for w in ctx.wanted), None, None, None, None)
