"""The host side: buffers, grids and the order of kernels. No synchronisation with the device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from . import configs, tune
from .backward import weights_kernel
from .forward import merge_kernel, statistics_kernel
from .list_loss import ListLoss
from .lists import list_finish_kernel, thresholds_kernel
from .tile import TileLoss

AnyLoss = TileLoss | ListLoss
P = ParamSpec("P")
R = TypeVar("R")

_MERGE_ROWS = 64
LIST_ROWS = 16
# Thresholds that a program of kernel 1 holds, with their sums. More would not fit the registers.
GROUP = 8
# A multiple of the rows and columns of all tiles, and the least rows of a block of written weights; the most
# bytes of one with more, and rows.
WRITTEN_ROWS = 128
_WRITTEN_BYTES = 128 << 20
_WRITTEN_MOST = 2048


@dataclasses.dataclass
class Side:
    """One operand: x [rows, D], its label per row or class, and what else belongs to its rows.

    norms: float32 [2, rows] inverse and squared norms, as far as the metric has them; else None.
    teacher: the second matrix's factor [rows, DT] with its norms.
    centres: consecutive rows of x that make one class (labels then has one entry per class).
    sorted: labels ascend. Between two sorted sides most tiles are known to hold negatives only.
    values: float32 [values, count] of the columns, if this side has them.
    codes: int32, equal for rows of both sides whose labels are; None: kernels compare the labels.
    """

    x: Tensor
    labels: Tensor
    norms: Tensor | None = None
    teacher: Tensor | None = None
    teacher_norms: Tensor | None = None
    centres: int = 1
    sorted: bool = False
    values: Tensor | None = None
    codes: Tensor | None = None

    @property
    def count(self) -> int:
        """Classes where there are several centres, rows otherwise."""
        return self.x.shape[0] // self.centres

    @property
    def padded(self) -> int:
        return configs.padded(self.centres)

    @property
    def taught(self) -> int | None:
        """The second matrix's dimension."""
        return None if self.teacher is None else self.teacher.shape[1]


@dataclasses.dataclass(frozen=True)
class Numbers:
    """What a pair is: names of the engine's similarities, and what is added to squared distances."""

    metric: str = "cosine"
    epsilon: float = 0.0
    teacher_metric: str = "dot"
    teacher_epsilon: float = 0.0

    @property
    def nearest(self) -> float:
        """The number of two equal embeddings, rounded up."""
        root = 1.0 if self.metric.endswith("squared_distance") else 0.5
        return self.epsilon**root * (1 + 1e-6)


@dataclasses.dataclass
class Weighted:
    """What kernel 2 leaves: products [rows, D] of weights; sums [2, rows] if asked for; the
    derivatives [column values, rows] by the values of the side that stays, where the loss has them; and
    what `statistics` returns, where it was asked to find that too."""

    products: Tensor
    sums: Tensor | None
    column_slopes: Tensor | None
    results: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Written:
    """Where kernel 2 writes the weights of a block of rows: those of the products, for who multiplies them.

    weights: [rows, columns] of the embeddings' type, with room for whole tiles (`written_blocks`). first: the
    first row, a multiple of `WRITTEN_ROWS`. column: the first that is written, as well.
    """

    weights: Tensor
    first: int
    column: int = 0


@dataclasses.dataclass(frozen=True)
class Lists:
    """Where the positives of every row of the loss lie among the sorted columns.

    low, size: int32 [M], the first one and how many there are, the row itself counted.
    """

    low: Tensor
    size: Tensor

    @staticmethod
    def of(rows: Side, columns: Side) -> Lists:
        """For columns in the order of their labels."""
        first = torch.searchsorted(columns.labels, rows.labels, out_int32=True)
        stop = torch.searchsorted(columns.labels, rows.labels, right=True, out_int32=True)
        return Lists(first, stop - first)


def constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Parameters on the device; kept between calls, for every stream its own, as another does not wait for
    the one that fills them. While a graph is captured the graph fills a tensor of its own: what is kept may
    be dropped before a replay, and what a capture fills is not there before one."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return _filled(values, device)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _kept(values, device, stream)


@functools.lru_cache(maxsize=256)
def _kept(values: tuple[float, ...], device: torch.device, stream: int) -> Tensor:
    return _filled(values, device)


def _filled(values: tuple[float, ...], device: torch.device) -> Tensor:
    """By the device: a copy from the host would wait for it, and no graph can hold one."""
    made = torch.zeros(max(1, len(values)), dtype=torch.float32, device=device)
    for k, value in enumerate(values):
        made[k].fill_(value)
    return made


def parameter_tensor(parameters: Sequence[float] | Tensor, device: torch.device) -> Tensor:
    if isinstance(parameters, Tensor):
        return parameters.to(device=device, dtype=torch.float32).contiguous()
    return constants(tuple(float(v) for v in parameters), device)


def encode(rows: Side, columns: Side) -> None:
    """Gives sides in the order of their labels codes, which take half the registers: the place of the first
    row of a label. A label that no row has is none of theirs."""
    if not (rows.sorted and columns.sorted) or rows.codes is not None:
        return
    rows.codes = torch.searchsorted(rows.labels, rows.labels, out_int32=True)
    if columns is not rows:
        place = torch.searchsorted(rows.labels, columns.labels, out_int32=True)
        theirs = rows.labels[place.clamp(max=len(rows.labels) - 1).long()]
        columns.codes = torch.where(theirs == columns.labels, place, -1)


def _compared(stay: Side, stream: Side) -> tuple[Tensor, Tensor]:
    """What equal labels are told by."""
    if stay.codes is None or stream.codes is None:
        return stay.labels, stream.labels
    return stay.codes, stream.codes


def near_columns(stay: Side, stream: Side, block: int) -> Tensor:
    """int32 [blocks, 2]: for each block of rows, the range of columns that may equal one's label."""
    device = stay.labels.device
    per_block = max(1, block // stay.padded)
    blocks = -(-stay.count * stay.padded // block)
    if not (stay.sorted and stream.sorted):
        near = torch.zeros(blocks, 2, dtype=torch.int32, device=device)
        near[:, 1] = stream.count * stream.padded
        return near
    first = torch.arange(blocks, device=device) * block // stay.padded
    last = (first + per_block - 1 + (block % stay.padded != 0)).clamp(max=stay.count - 1)
    low = torch.searchsorted(stream.labels, stay.labels[first.clamp(max=stay.count - 1)])
    high = torch.searchsorted(stream.labels, stay.labels[last], right=True)
    return (torch.stack([low, high], 1) * stream.padded).to(torch.int32)


def on_its_device(launches: Callable[P, R]) -> Callable[P, R]:
    """Triton launches on the current device, wherever its arguments lie. Those of the decorated function
    lie where its second one's `x` does."""

    @functools.wraps(launches)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        device = args[1].x.device  # type: ignore[attr-defined]
        if device.type != "cuda":
            return launches(*args, **kwargs)
        with torch.cuda.device(device):
            return launches(*args, **kwargs)

    return guarded


@on_its_device
def statistics(
    loss: TileLoss,
    rows: Side,
    columns: Side,
    parameters: Tensor,
    pair: Numbers,
    *,
    own: bool = False,
    inputs: Tensor | None = None,
    precision: str | None = None,
    config: configs.Config | None = None,
) -> tuple[Tensor, Tensor]:
    """What `finish` returns [outputs + scalars + states, M], and statistics [values, M]; float32.

    own: rows are columns, and the pair of one with itself is left out.
    """
    x = rows.x
    m, device = x.shape[0], x.device
    known = torch.empty(max(1, loss.values), m, dtype=torch.float32, device=device)
    if loss.inputs:
        if inputs is None or tuple(inputs.shape) != (loss.inputs, m):
            got = None if inputs is None else tuple(inputs.shape)
            raise ValueError(f"inputs: expected shape {(loss.inputs, m)}, got {got}")
        known[: loss.inputs].copy_(inputs)
    count = loss.outputs + loss.derivatives + loss.states
    results = torch.empty(count, m, dtype=torch.float32, device=device)
    rounding = configs.precision(x.dtype, precision)
    chosen = config or _config(
        "statistics", loss, configs.statistics_config, x, rounding, _sizes(loss, rows, columns, pair),
        lambda c: statistics(loss, rows, columns, parameters, pair, own=own, inputs=inputs,
                             precision=precision, config=c),
    )  # fmt: skip
    chosen = chosen.holding(columns.centres)
    near = near_columns(rows, columns, chosen.stay)
    done = loss.inputs
    for i, one in enumerate(loss.passes):
        partial = _sweep(
            loss, rows, columns, pair, near, known, parameters, chosen, rounding, one.values,
            FOLD=one.fold, KINDS=one.kinds, KNOWN=done, POSITIVES_ONLY=one.positives_only, SLOTS=0, SELF=own,
        )  # fmt: skip
        _merge(loss, i, partial, known, parameters, results)
        done += one.values
    return results, known


def _merge(
    loss: TileLoss, number: int, partial: Tensor, known: Tensor, parameters: Tensor, results: Tensor
) -> None:
    """The splits of a pass become the row's statistics; after the last one rows are finished."""
    one, parts, m = loss.passes[number], partial.shape[0], partial.shape[2]
    merge_kernel[(-(-m // _MERGE_ROWS),)](
        partial, known, parameters, results, m, parts,
        FINISH=loss.finish, KINDS=one.merge_kinds,
        KNOWN=loss.inputs + sum(p.values for p in loss.passes[:number]), PARAMETERS=parameters.numel(),
        VALUES=one.values, LAST=number == len(loss.passes) - 1, SPLITS=1 << (parts - 1).bit_length(),
        BLOCK=_MERGE_ROWS, num_warps=2,
    )  # fmt: skip


def finds_statistics(loss: AnyLoss, centres: int, chunks: int, write: bool) -> bool:
    """Whether kernel 2 can find what rows return beside the gradient of its rows: their weights need no
    statistics, and it visits all similarities once. Then S is made once less."""
    rides = isinstance(loss, TileLoss) and loss.rides
    return rides and centres == 1 and (write or chunks == 1)


def writes_weights(loss: AnyLoss, centres: int, chunks: int, dtype: torch.dtype, sums: bool) -> bool:
    """Whether weights are written for the library's products: D is several chunks, and nothing else is
    asked for that only kernel 2 knows. Weights of float16 need a factor, as do its products."""
    if sums or centres > 1 or loss.column_slopes is not None or dtype == torch.float16:
        return False
    return chunks > 1


def statistics_needs(loss: AnyLoss) -> dict[str, Any]:
    """What the size of kernel 1's tiles depends on, of a loss."""
    return {"heavy": loss.heavy, "slots": loss.slots, "light": loss.light, "teacher": loss.teacher}


def weights_needs(loss: AnyLoss) -> dict[str, Any]:
    """The same of kernel 2."""
    return {"teacher": loss.teacher, "states": loss.states, "slots": loss.slots, "wide": loss.wide}


def chunks_of(loss: AnyLoss, x: Tensor) -> int:
    """In how many chunks of D kernel 2 makes the gradient of rows x."""
    d = x.shape[1]
    if x.device.type != "cuda":
        chosen = configs.interpreter_config(d)
    else:
        arch, rounding = configs.architecture(x.device), configs.precision(x.dtype)
        chosen = configs.weights_config(arch, x.dtype, d, rounding, **weights_needs(loss))
    return -(-d // chosen.output)


def written_blocks(rows: Side, columns: Side) -> tuple[Tensor, list[int]]:
    """Memory for the weights of a block of rows, and where blocks start."""
    n, size = columns.count, rows.x.element_size()
    padded = -(-n // WRITTEN_ROWS) * WRITTEN_ROWS
    count = max(1, _WRITTEN_BYTES // (padded * size) // WRITTEN_ROWS) * WRITTEN_ROWS
    if rows.x.device.type != "cuda":
        count = configs.interpreter_config(rows.x.shape[1]).stay  # so that there are several
    count = min(rows.count, count, _WRITTEN_MOST)
    held = torch.empty(count, padded, dtype=rows.x.dtype, device=rows.x.device)[:, :n]
    return held, list(range(0, rows.count, count))


@on_its_device
def list_statistics(
    loss: ListLoss,
    rows: Side,
    columns: Side,
    parameters: Tensor,
    pair: Numbers,
    lists: Lists,
    *,
    own: bool = False,
    precision: str | None = None,
    config: configs.Config | None = None,
) -> Tensor:
    """[outputs + states, M] of a loss over lists of thresholds; float32."""
    x = rows.x
    m, slots, device = x.shape[0], loss.slots, x.device
    rounding = configs.precision(x.dtype, precision)
    chosen = config or _config(
        "statistics", loss, configs.statistics_config, x, rounding, _sizes(loss, rows, columns, pair),
        lambda c: list_statistics(loss, rows, columns, parameters, pair, lists, own=own,
                                  precision=precision, config=c),
    )  # fmt: skip
    near = near_columns(rows, columns, chosen.stay)
    thresholds = torch.empty(slots, m, dtype=torch.float32, device=device)
    thresholds_kernel[(-(-m // chosen.stay),)](
        x, columns.x, rows.norms, columns.norms, near, lists.low, thresholds, m, columns.count,
        SLOTS=slots, METRIC=pair.metric, EPSILON=pair.epsilon, D=x.shape[1], BLOCK_M=chosen.stay,
        BLOCK_N=chosen.stream, BLOCK_D=chosen.depth, PRECISION=rounding,
        num_warps=chosen.warps, num_stages=chosen.stages,
    )  # fmt: skip
    values, group = loss.values * slots, min(slots, GROUP)
    partial = _sweep(
        loss, rows, columns, pair, near, thresholds, parameters, chosen, rounding, values,
        slots // group, FOLD=loss.compare, KINDS=("sum",) * (loss.values * group), KNOWN=group,
        POSITIVES_ONLY=False, SLOTS=group, SELF=own,
    )  # fmt: skip
    results = torch.empty(loss.outputs + loss.states, m, dtype=torch.float32, device=device)
    list_finish_kernel[(-(-m // LIST_ROWS),)](
        partial, thresholds, parameters, lists.low, lists.size, results, m, columns.count,
        partial.shape[0],
        FINISH=loss.finish, VALUES=loss.values, SLOTS=slots, OUTPUTS=loss.outputs,
        PARAMETERS=parameters.numel(), SELF=own, BLOCK=LIST_ROWS, num_warps=4,
    )  # fmt: skip
    return results


def shared(
    loss: AnyLoss, pair: Numbers, parameters: int, chosen: configs.Config, rounding: str, d: int,
    taught: int | None, centres: int,
) -> dict[str, Any]:  # fmt: skip
    """The constants of both kernels. taught: the second matrix's dimension, if there is one."""
    if loss.teacher != (taught is not None):
        raise ValueError(f"teacher: {loss.name!r} {'needs' if loss.teacher else 'has'} "
                         f"{'a' if loss.teacher else 'no'} teacher")  # fmt: skip
    if centres > 1 and loss.groups is None:
        raise ValueError(f"centres: expected 1 for {loss.name!r}, got {centres}")
    return {
        "PARAMETERS": parameters, "METRIC": pair.metric, "EPSILON": pair.epsilon,
        "TEACHER": pair.teacher_metric if loss.teacher else "none", "T_EPSILON": pair.teacher_epsilon,
        "GROUPS": (loss.groups if centres > 1 else None) or "none", "K": centres,
        "PADDED": configs.padded(centres), "D": d, "DT": taught or 16, "COLUMN_VALUES": loss.column_values,
        "OWN": isinstance(loss, ListLoss) and loss.own, "NARROW": chosen.narrow(centres),
        "BLOCK_D": chosen.depth, "PRECISION": rounding,
        "BLOCK_T": 16 if taught is None else min(configs.power_of_two(taught), chosen.depth),
    }  # fmt: skip


def _sweep(
    loss: AnyLoss, rows: Side, columns: Side, pair: Numbers, near: Tensor, known: Tensor,
    parameters: Tensor, chosen: configs.Config, rounding: str, values: int,
    groups: int = 1, **options: object,
) -> Tensor:  # fmt: skip
    """Kernel 1: [splits, values, M] statistics of each split of the columns."""
    x = rows.x
    m, device = x.shape[0], x.device
    blocks = -(-m // chosen.stay)
    tiles = -(-columns.count * columns.padded // chosen.stream)
    parts = _splits(blocks * groups, tiles, device, 4 * m * values)
    per_split = -(-tiles // parts)
    parts = -(-tiles // per_split)
    partial = torch.empty(parts, values, m, dtype=torch.float32, device=device)
    statistics_kernel[(blocks, parts, groups)](
        x, columns.x, rows.norms, columns.norms, *_compared(rows, columns), columns.values,
        rows.teacher, columns.teacher, rows.teacher_norms, columns.teacher_norms,
        known, parameters, near, partial, m, columns.count, per_split,
        BLOCK_M=chosen.stay, BLOCK_N=chosen.stream,
        num_warps=chosen.warps, num_stages=chosen.stages, **options,
        **shared(loss, pair, parameters.numel(), chosen, rounding, x.shape[1], rows.taught, columns.centres),
    )  # fmt: skip
    return partial


@on_its_device
def weights(
    loss: AnyLoss,
    stay: Side,
    stream: Side,
    parameters: Tensor,
    pair: Numbers,
    *,
    factor: Tensor,
    stay_states: Tensor | None = None,
    stream_states: Tensor | None = None,
    stay_weights: Tensor | None = None,
    stream_weights: Tensor | None = None,
    own: bool = False,
    lists: Lists | None = None,
    sums: bool = False,
    find: bool = False,
    written: Written | None = None,
    precision: str | None = None,
    config: configs.Config | None = None,
) -> Weighted:
    """The pair weights times `stream.x`, for each row of `stay`; float32.

    Rows of the loss lie along the sides whose states are given. Row weights are given for all of
    those sides or for none, and are multiplied by factor (one float on the device). own: as for
    `statistics`. find: also what `statistics` returns of
    the rows of stay (`finds_statistics`). written: the weights of a block of rows are written there instead,
    and there are no products.
    """
    x = stay.x
    m, d, device = x.shape[0], x.shape[1], x.device
    rounding = configs.precision(x.dtype, precision)
    rule = configs.weights_config if written is None else configs.written_config
    chosen = config or _config(
        ("weights" if written is None else "written") + ".rows" * (stay_states is not None)
        + ".columns" * (stream_states is not None), loss,
        rule, x, rounding, _sizes(loss, stay, stream, pair, find),
        lambda c: weights(
            loss, stay, stream, parameters, pair, factor=factor, stay_states=stay_states,
            stream_states=stream_states, stay_weights=stay_weights, stream_weights=stream_weights,
            own=own, lists=lists, sums=sums, find=find, written=written, precision=precision, config=c,
        ),
    )  # fmt: skip
    chosen = chosen.holding(max(stay.centres, stream.centres))
    near = near_columns(stay, stream, chosen.stay)
    centres = max(stay.centres, stream.centres)
    tiles = -(-stream.count * stream.padded // chosen.stream)
    if written is None:
        count, first, before, chunks = m, 0, 0, -(-d // chosen.output)
        blocks = -(-stay.count * stay.padded // chosen.stay)
    else:
        count, first, chunks = min(written.weights.shape[0], m - written.first), written.first, 1
        blocks, before = -(-count // chosen.stay), written.column // chosen.stream
        tiles -= before
        if first % chosen.stay or written.column % chosen.stream:
            raise ValueError(f"written: expected multiples of a tile's sides, got {first}, {written.column}")
    parts = _splits(blocks * chunks, tiles, device, 4 * m * d * (written is None))
    per_split = -(-tiles // parts)
    parts = -(-tiles // per_split)
    if written is None:
        out, width = torch.empty(parts, m, d, dtype=torch.float32, device=device), 0
    else:
        out, width = written.weights, written.weights.stride(0)
    slopes = stream_states is not None and loss.column_slopes is not None
    totals = None
    if sums or slopes:
        kinds = 2 + slopes * loss.column_values
        totals = torch.empty(parts, kinds, m, dtype=torch.float32, device=device)
    one = loss.passes[0] if find and isinstance(loss, TileLoss) else None
    partial = None
    if one is not None:
        partial = torch.empty(parts, one.values, count, dtype=torch.float32, device=device)
    low = None if lists is None else lists.low
    skips = device.type != "cuda" or configs.skips_zeros(configs.architecture(device))
    weighted = stay_weights is not None or stream_weights is not None
    weights_kernel[(blocks, parts, chunks)](
        x, stream.x, stay.norms, stream.norms, *_compared(stay, stream), stay_states,
        stream_states, stay_weights, stream_weights, stay.values, stream.values,
        low, low, stay.teacher, stream.teacher,
        stay.teacher_norms, stream.teacher_norms, parameters, factor, near,
        out, totals, partial, stay.count, stream.count, per_split, first // chosen.stay, before, count,
        width // 8,
        WEIGHT=loss.weight, COLUMN_SLOPES=loss.column_slopes,
        LINEAR=loss.linear, GAIN=loss.gain, STATES=loss.weight_states,
        A_STATE=stay_states is not None, B_STATE=stream_states is not None, WEIGHTED=weighted,
        SUMS=sums, SPARSE=loss.sparse and skips, W_SCALE=256.0 if x.dtype == torch.float16 else 1.0,
        NEAREST=pair.nearest, AXIS=0 if stay.centres > 1 else 1, SELF=own, SLOTS=loss.slots,
        BLOCK_A=chosen.stay, BLOCK_B=chosen.stream, BLOCK_O=chosen.output,
        FOLD=None if one is None else one.fold, KINDS=() if one is None else one.kinds,
        STORE=written is not None,
        num_warps=chosen.warps, num_stages=chosen.stages,
        **shared(loss, pair, parameters.numel(), chosen, rounding, d, stay.taught, centres),
    )  # fmt: skip
    products = out[0] if parts == 1 or written is not None else out.sum(0)
    total = None if totals is None else totals.sum(0)
    results = None
    if partial is not None and isinstance(loss, TileLoss):
        known = torch.empty(loss.values, count, dtype=torch.float32, device=device)
        results = torch.empty(loss.outputs + loss.derivatives, count, dtype=torch.float32, device=device)
        _merge(loss, 0, partial, known, parameters, results)
    return Weighted(
        products,
        total[:2] if total is not None and sums else None,
        total[2:] if total is not None and slopes else None,
        results,
    )


def _config(
    kernel: str, loss: AnyLoss, rule: Callable[..., configs.Config], x: Tensor, rounding: str,
    sizes: dict[str, Any], run: Callable[[configs.Config], object],
) -> configs.Config:  # fmt: skip
    if x.device.type != "cuda":
        return configs.interpreter_config(x.shape[1])
    arch = configs.architecture(x.device)
    needs = statistics_needs(loss) if kernel == "statistics" else weights_needs(loss)
    needs["shared"] = configs.shared_memory(x.device)
    fixed = rule(arch, x.dtype, x.shape[1], rounding, **needs)
    kind = f"{kernel}.{rounding}" if x.dtype == torch.float32 else kernel
    return tune.choose(tune.key(kind, loss.name, arch, x.dtype, x.shape[1], **sizes), fixed, run)


def _sizes(
    loss: AnyLoss, stay: Side, stream: Side, pair: Numbers, find: bool = False
) -> dict[str, Any]:
    """What else tells calls of a loss apart whose best sizes of tiles may differ."""
    return {
        "metric": pair.metric, "centres": max(stay.centres, stream.centres), "slots": loss.slots,
        "teacher": stay.taught, "find": find,
    }  # fmt: skip


def _splits(blocks: int, tiles: int, device: torch.device, bytes_per_split: int) -> int:
    if device.type != "cuda":
        return min(tiles, 3)  # the interpreter: enough to exercise the merge
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return configs.splits(blocks, tiles, processors, bytes_per_split)
