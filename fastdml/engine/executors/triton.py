"""Streaming tiles: similarities that never leave the registers of a GPU.

Triton and the kernels are imported on the first use, and where `TRITON_INTERPRET=1` is set the
kernels run on the CPU, slowly, for tests.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor

from ..problem import Problem
from ..relation import LabelRelation
from . import Result, Wanted

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
# What fastdml.kernels.similarity turns products into.
_METRICS = ("cosine", "dot", "distance", "squared_distance", "raw_distance", "raw_squared_distance")


class Triton:
    name = "triton"

    def refuses(self, problem: Problem) -> str | None:
        loss = problem.loss
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if problem.device_type != "cuda" and not interpreted:
            return f"tile kernels run on CUDA, not on {problem.device_type}"
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if not _has_tile(loss.name):
            return f"no tile functor is called {loss.name!r}"
        if not isinstance(problem.relation, LabelRelation):
            return "tile functors take pairs from labels only"
        if problem.anchors.dtype not in _TYPES:
            return f"tile kernels take {', '.join(map(str, _TYPES))}, not {problem.anchors.dtype}"
        if loss.presweep() is not None or problem.row_values is not None:
            return "tile functors know no values of rows or columns"
        if problem.col_values is not None:
            return "tile functors know no values of columns"
        if problem.anchors.dtype == torch.float16 and loss.similarity.startswith("raw"):
            return "weights of unbounded distances do not fit float16"
        teacher = problem.teacher_problem
        for one in (problem, teacher):
            if one is not None and one.loss.similarity not in _METRICS:
                return f"tile kernels do not know the similarity {one.loss.similarity!r}"
        if teacher is not None and problem.one_set and not teacher.one_set:
            return "one set of embeddings needs one set of teacher embeddings"
        try:
            tile = _module(loss.name).tile(loss)
            _module(loss.name).parameters(loss)
        except (AttributeError, NotImplementedError) as error:
            return f"its tile functor does not know this form ({error})"
        if tile.teacher != (teacher is not None):
            return "its tile functor differs in having a teacher"
        return None

    def plan(self, problem: Problem) -> str:
        tile = _module(problem.loss.name).tile(problem.loss)
        sweeps = len(tile.passes)
        return f"Triton tiles: {sweeps} sweep{'s' * (sweeps > 1)} for statistics, then the weights"

    def run(self, problem: Problem, wanted: Wanted) -> Result:
        rows = importlib.import_module("fastdml.kernels.rows")
        launch = importlib.import_module("fastdml.kernels.launch")
        loss, relation = problem.loss, problem.relation
        assert isinstance(relation, LabelRelation)
        module = _module(loss.name)
        tile = module.tile(loss)
        values = module.parameters(loss)
        if getattr(module, "COUNTS_OWN", False):
            values = (*values, float(problem.excludes_self))
        parameters = launch.parameter_tensor(values, problem.anchors.device)
        if problem.scalars is not None:
            parameters = torch.cat([parameters, problem.scalars.float()])
        teacher = problem.teacher_problem
        found = rows.tile_rows(
            tile,
            problem.anchors,
            problem.candidates,
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
            exclude_self=problem.excludes_self,
            ascending=(loss.rows == "proxies", False),
            row_weight=problem.row_weight,
            weight=problem.weight,
            centres=loss.columns_per_class,
            teacher=None if teacher is None else (teacher.anchors, teacher.candidates),
            teacher_norms=None if teacher is None else _norms(teacher),
            gradients=(wanted.anchors, wanted.candidates),
        )
        out = Result(found.outputs)
        metric = loss.metric
        # (gradient, embeddings, scale, sums) of the sides that want one
        if found.d_anchors is not None:
            out.d_anchors = found.d_anchors
            total = found.anchor_sums if metric.needs_totals else None
            metric.finish_(
                out.d_anchors,
                problem.anchors,
                problem.row_scale,
                None if total is None else total[0],
            )
        if found.d_candidates is not None:
            out.d_candidates = found.d_candidates
            total = found.candidate_sums if metric.needs_totals else None
            metric.finish_(
                out.d_candidates,
                problem.candidates,
                problem.col_scale,
                None if total is None else total[0],
            )
        if wanted.scalars and problem.scalars is not None:
            out.d_scalars = torch.zeros_like(problem.scalars)
            if found.scalar_rows is not None:
                by_row = found.scalar_rows.double() * problem.weight
                if problem.row_weight is not None:
                    by_row = by_row * problem.row_weight[:, None]
                out.d_scalars[: tile.scalars] = by_row.sum(0).to(out.d_scalars.dtype)
        return out


@functools.cache
def _has_tile(name: str) -> bool:
    return (
        name.isidentifier()
        and importlib.util.find_spec(f"fastdml.kernels.tiles.{name}") is not None
    )


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"fastdml.kernels.tiles.{name}")


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
