"""Streaming tiles: similarities that never leave the registers of a GPU.

Triton and the kernels are imported on the first use, and where `TRITON_INTERPRET=1` is set the
kernels run on the CPU, slowly, for tests.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import library, products, schedule
from ..loss import RowLoss
from ..problem import Problem
from ..relation import LabelRelation
from . import Result, Wanted

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
# What fastdml.kernels.similarity turns products into.
_METRICS = ("cosine", "dot", "distance", "squared_distance", "raw_distance", "raw_squared_distance")


class Triton:
    name = "triton"
    by_blocks = False

    def refuses(self, problem: Problem) -> str | None:
        if problem.loss.only_in_torch is not None:
            return problem.loss.only_in_torch
        loss = problem.loss
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if problem.device_type != "cuda" and not interpreted:
            return f"tile kernels run on CUDA, not on {problem.device_type}"
        if (reason := library.too_old(problem.where)) is not None:
            return reason
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if (reason := _unfit_for_tiles(problem)) is not None:
            return reason
        if not isinstance(problem.relation, LabelRelation):
            return "tile functors take pairs from labels only"
        if problem.excludes_own and not problem.one_set:
            return "tile kernels know own copies in one set only"
        if problem.anchors.dtype not in _TYPES:
            return f"tile kernels take {', '.join(map(str, _TYPES))}, not {problem.anchors.dtype}"
        if problem.anchors.dtype == torch.float16 and loss.similarity.startswith("raw"):
            return "weights of unbounded distances do not fit float16"
        teacher = problem.teacher_problem
        for one in (problem, teacher):
            if one is not None and one.loss.similarity not in _METRICS:
                return f"tile kernels do not know the similarity {one.loss.similarity!r}"
        if teacher is not None and problem.one_set and not teacher.one_set:
            return "one set of embeddings needs one set of teacher embeddings"
        on_device = problem.anchors.device.type == "cuda"
        if loss.threshold_list and on_device and torch.cuda.is_current_stream_capturing():
            return "how long lists are is asked of the device, which a CUDA graph cannot capture"
        tile = _tile(problem)
        if isinstance(tile, str):
            return tile
        if tile.teacher != (teacher is not None):
            return "its tile functor differs in having a teacher"
        if problem.row_values is not None and problem.row_values.shape[1] != tile.inputs:
            return f"its tile functor reads {tile.inputs} values of every row"
        swept = 0
        before = loss.presweep()
        if before is not None and not problem.presweep_done:
            sweep = _tile(problem.swapped(before))
            if isinstance(sweep, str):
                return sweep
            swept = sweep.outputs
        given = 0 if problem.col_values is None else problem.col_values.shape[0]
        if given and given + swept != tile.column_values:
            return f"its tile functor reads {tile.column_values - swept} values of every column"
        return _too_long(problem) if loss.threshold_list else None

    def plan(self, problem: Problem) -> str:
        tile = _tile(problem)
        if problem.loss.threshold_list:
            return f"Triton tiles: lists of up to {_most()} thresholds, then the weights"
        sweeps = len(tile.passes)
        return f"Triton tiles: {sweeps} sweep{'s' * (sweeps > 1)} for statistics, then the weights"

    def run(self, problem: Problem, wanted: Wanted) -> Result:
        problem.condition()
        schedule.presweep(problem, lambda swept: _rows(swept, Wanted()).outputs)
        tile = _tile(problem)
        given = problem.col_values if wanted.col_values else None
        bias = given is not None and problem.loss.column_bias
        found = _rows(problem, wanted, bias)
        out = Result(found.outputs.add_(problem.poison))
        metric = problem.loss.metric
        if found.d_anchors is not None and wanted.anchors:
            out.d_anchors = found.d_anchors
            total = found.anchor_sums[0] if metric.needs_totals else None
            metric.finish_(out.d_anchors, problem.anchors, problem.row_scale, total)
        if found.d_candidates is not None and wanted.candidates:
            out.d_candidates = found.d_candidates
            total = found.candidate_sums[0] if metric.needs_totals else None
            metric.finish_(out.d_candidates, problem.candidates, problem.col_scale, total)
        if wanted.scalars and problem.all_scalars is not None:
            out.d_scalars = torch.zeros_like(problem.all_scalars)
            if tile.scalars:
                by_row = _weighted(found.scalar_rows, problem)
                out.d_scalars[: tile.scalars] = by_row.sum(0).to(out.d_scalars.dtype)
        if wanted.row_values and problem.row_values is not None:
            out.d_row_values = torch.zeros_like(problem.row_values)
            if tile.slopes:
                out.d_row_values[:, : tile.slopes] = _weighted(found.slope_rows, problem)
        if found.d_column_values is not None and given is not None:
            out.d_col_values = found.d_column_values.to(given.dtype)
        elif bias and given is not None:
            out.d_col_values = torch.zeros_like(given)
            out.d_col_values[0] = found.candidate_sums[0]
        return out


def _unfit_for_tiles(problem: Problem) -> str | None:
    """What a device or its compiler makes of the kernels that cannot be used."""
    on_device = problem.device_type == "cuda"
    if on_device and torch.version.hip:
        return "sizes of tiles are for NVIDIA's GPUs, not for AMD's (ROCm)"
    centres = problem.loss.columns_per_class
    if centres == 1:
        return None
    configs = importlib.import_module("fastdml.kernels.configs")
    if centres > configs.MOST_CENTRES:
        return f"a tile holds up to {configs.MOST_CENTRES} centres of a class, not {centres}"
    if on_device and configs.triton_version() < (3, 7, 1) and torch.cuda.is_available():
        arch = configs.architecture(problem.device or problem.anchors.device)
        if arch // 10 == 9:
            return "Triton before 3.7.1 multiplies the weights of several centres wrongly on Hopper"
    return None


def _rows(problem: Problem, wanted: Wanted, sums: bool = False) -> Any:
    """What the kernels leave of a problem, before the derivative of the normalisation."""
    rows = importlib.import_module("fastdml.kernels.rows")
    launch = importlib.import_module("fastdml.kernels.launch")
    loss, relation = problem.loss, problem.relation
    assert isinstance(relation, LabelRelation)
    tile, module = _tile(problem), functor_of(loss)
    values = module.parameters(loss)
    if getattr(module, "COUNTS_OWN", False):
        values = (*values, float(problem.excludes_own))
    parameters = launch.parameter_tensor(values, problem.anchors.device)
    if problem.all_scalars is not None:
        parameters = torch.cat([parameters, problem.all_scalars.float()])
    teacher = problem.teacher_problem
    # Large sets may lie by columns; kernels read rows.
    anchors = problem.anchors.contiguous()
    candidates = anchors
    if problem.candidates is not problem.anchors:
        candidates = problem.candidates.contiguous()
    return rows.tile_rows(
        tile,
        anchors,
        candidates,
        relation.anchor_labels,
        relation.candidate_labels[:: loss.columns_per_class].contiguous(),
        parameters=parameters,
        pair=launch.Numbers(
            loss.similarity,
            problem.epsilon,
            "dot" if teacher is None else teacher.loss.similarity,
            0.0 if teacher is None else teacher.epsilon,
        ),
        norms=_norms(problem),
        exclude_self=problem.excludes_own,
        ascending=(loss.rows == "proxies", False),
        row_weight=problem.row_weight,
        weight=problem.weight,
        inputs=None if problem.row_values is None else problem.row_values.t(),
        column_values=problem.col_values,
        centres=loss.columns_per_class,
        teacher=None if teacher is None else (teacher.anchors, teacher.candidates),
        teacher_norms=None if teacher is None else _norms(teacher),
        gradients=(wanted.anchors, wanted.candidates or wanted.col_values),
        sums=sums,
        known=wanted.known,
        products=(products.multiply, products.accumulate_),
    )


def _weighted(by_row: Tensor, problem: Problem) -> Tensor:
    """Derivatives [M, n] of the rows' losses, as those of their weighted sum."""
    by_row = by_row.double() * problem.weight
    return by_row if problem.row_weight is None else by_row * problem.row_weight[:, None]


def _tile(problem: Problem) -> Any:
    """The tile loss of a problem, or in words why there is none."""
    loss = problem.loss
    module = functor_of(loss)
    if module is None:
        return f"no tile functor is called {loss.name!r}"
    try:
        module.parameters(loss)
        tile = module.tile(loss)
    except NotImplementedError as error:
        return f"its tile functor does not know this form ({error})"
    if not loss.threshold_list:
        return tile
    slots = importlib.import_module("fastdml.kernels.list_loss").slots_for
    return dataclasses.replace(tile, slots=min(_most(), slots(_longest(problem))))


def _most() -> int:
    return int(importlib.import_module("fastdml.kernels.list_loss").MOST)


def _longest(problem: Problem) -> int:
    """The most candidates that have one anchor's label.

    Asks the device, and waits: nothing on the host knows. So `backend="auto"` leaves lists on a GPU to
    the row functors, which need not know.
    """
    found = problem.__dict__.get("longest_list")
    if found is None:
        found = int(problem.relation.counts(without_own=False)[0].amax())
        problem.__dict__["longest_list"] = found
    return int(found)


def _too_long(problem: Problem) -> str | None:
    longest = _longest(problem)
    if longest <= _most():
        return None
    return f"tile kernels hold up to {_most()} candidates of one anchor's label, not {longest}"


def functor_of(loss: RowLoss) -> Any:
    """What has the tile functor of a loss: its own, else the library's module of its name, or None.

    A user's loss may bear the name of one of the library's, whose names belong to their classes. These
    need not be in the table of losses: what a loss reads of its columns (`presweep`) is none.
    """
    ours = type(loss).__module__.partition(".")[0] == __name__.partition(".")[0]
    if loss.tiles is not None or not ours or vars(type(loss)).get("name") != loss.name:
        return loss.tiles
    return _module(loss.name)


@functools.cache
def _module(name: str) -> ModuleType | None:
    path = f"fastdml.kernels.tiles.{name}"
    return None if importlib.util.find_spec(path) is None else importlib.import_module(path)


def _norms(problem: Problem) -> tuple[Tensor, Tensor] | None:
    """Inverse and squared norms of both sides, [2, M] and [2, N], as far as the metric has them."""
    if problem.row_scale is None and problem.row_square is None:
        return None
    sides = (
        (problem.row_scale, problem.row_square),
        (problem.col_scale, problem.col_square),
    )
    return tuple(_stacked(*side) for side in sides)  # type: ignore[return-value]


def _stacked(scale: Tensor | None, square: Tensor | None) -> Tensor:
    some = scale if scale is not None else square
    assert some is not None
    return torch.stack([x if x is not None else torch.ones_like(some) for x in (scale, square)])
