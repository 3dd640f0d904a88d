"""Compiles the kernels for a GPU that need not be there, and reads what the compiler made of them."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

from . import configs
from .launch import AnyLoss
from .list_loss import ListLoss
from .tile import Pass

# Bytes of shared memory a block may have (CUDA programming guide, compute capabilities).
SHARED_LIMIT = {80: 166912, 90: 232448, 100: 232448}
ARCHITECTURES = tuple(SHARED_LIMIT)
_TENSOR = {80: ("HMMA", "mma.sync"), 90: ("HGMMA", "wgmma"), 100: ("UTCHMMA", "tcgen05")}
# Instructions of tensor cores in PTX; the types of their operands are among their suffixes.
_PRODUCT = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\.(\S+)")
_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclasses.dataclass
class Compiled:
    """Resources of one kernel. counts: SASS instructions of the main loop by pipe, per thread; products:
    tensor-core instructions in the PTX by the type of their operands."""

    registers: int
    spill_bytes: int
    shared: int
    warps: int
    tensor: bool
    products: dict[str, int]
    counts: dict[str, int]
    stay: int
    stream: int


@dataclasses.dataclass(frozen=True)
class Usual:
    """A tile loss as it is usually called: what its kernels are compiled for where there is no call.

    parameters: how many numbers p has. metric: its similarity. centres: candidates of a class in a row.
    two_sets: anchors and candidates differ, so no sweep sums both directions. gradient: whether it has one.
    """

    tile: AnyLoss
    parameters: int
    metric: str = "cosine"
    centres: int = 1
    two_sets: bool = False
    gradient: bool = True


def kernels(
    call: Usual, arch: int, dtype: torch.dtype, d: int, precision: str = "tf32"
) -> Iterator[tuple[str, Compiled]]:
    """Every kernel that a call of the loss launches, by name."""
    tile, parameters = call.tile, call.parameters
    metric, centres, two = call.metric, call.centres, call.two_sets
    given = (tile, parameters, arch, dtype, d)
    common: dict[str, Any] = {"precision": precision, "metric": metric, "centres": centres}
    if isinstance(tile, ListLoss):
        yield "thresholds", thresholds(tile, arch, dtype, d, precision=precision, metric=metric)
        yield "statistics 1", statistics(*given, exclude_self=tile.own, **common)
        yield "finish", list_finish(tile, parameters, arch)
        yield "weights, one set", weights(*given, both=True, **common)
        return
    for i in range(len(tile.passes)):
        yield f"statistics {i + 1}", statistics(*given, number=i, exclude_self=not two, **common)
    if not call.gradient:
        return
    if two:
        yield "weights, rows", weights(*given, **common)
        axis = 0 if centres > 1 else 1
        yield "weights, columns", weights(*given, stay=False, axis=axis, **common)
    else:
        yield "weights, one set", weights(*given, both=True, **common)


def thresholds(
    tile: ListLoss, arch: int, dtype: torch.dtype, d: int, *, precision: str = "tf32",
    metric: str = "cosine",
) -> Compiled:  # fmt: skip
    """The kernel that finds the thresholds of a ListLoss."""
    from . import lists

    c = configs.statistics_config(arch, dtype, d, precision, slots=tile.slots)
    constants = {
        "SLOTS": tile.slots, "METRIC": metric, "EPSILON": 0.0, "D": d, "BLOCK_M": c.stay,
        "BLOCK_N": c.stream, "BLOCK_D": c.depth, "PRECISION": precision,
    }  # fmt: skip
    pointers = _pointers("x y", _TYPES[dtype]) | _pointers("x_norms y_norms out", "fp32")
    pointers |= _pointers("near low", "i32")
    return _compile(lists.thresholds_kernel, pointers, constants, arch, c)


def list_finish(tile: ListLoss, parameters: int, arch: int) -> Compiled:
    """The kernel that finishes the rows of a ListLoss. It has no products."""
    from . import launch, lists

    c = configs.Config(launch.LIST_ROWS, tile.slots, 0, 0, 4, 2)
    constants = {
        "FINISH": tile.finish, "VALUES": tile.values, "SLOTS": tile.slots, "OUTPUTS": tile.outputs,
        "PARAMETERS": parameters, "SELF": tile.own, "BLOCK": c.stay,
    }  # fmt: skip
    pointers = _pointers("partial thresholds parameters results", "fp32")
    pointers |= _pointers("low size own", "i32")
    return _compile(lists.list_finish_kernel, pointers, constants, arch, c)


def statistics(
    tile: AnyLoss, parameters: int, arch: int, dtype: torch.dtype, d: int, *, number: int = -1,
    centres: int = 1, exclude_self: bool = True, precision: str = "tf32",
    metric: str = "cosine", config: configs.Config | None = None,
) -> Compiled:  # fmt: skip
    """Kernel 1 for pass `number` of a loss."""
    from . import forward, launch

    if isinstance(tile, ListLoss):
        c = config or configs.statistics_config(arch, dtype, d, precision, slots=tile.slots)
        slots = min(tile.slots, launch.GROUP)
        one = Pass(("sum",) * (tile.values * slots), tile.compare)
        known = slots
    else:
        slots = 0
        c = config or configs.statistics_config(arch, dtype, d, precision, tile.heavy)
        one = tile.passes[number]
        known = tile.inputs + sum(p.values for p in tile.passes[: number % len(tile.passes)])
    teacher = tile.teacher
    constants = {
        "FOLD": one.fold, "KINDS": one.kinds, "KNOWN": known, "PARAMETERS": parameters,
        "METRIC": metric, "EPSILON": 0.0, "TEACHER": "dot" if teacher else "none",
        "T_EPSILON": 0.0,
        "GROUPS": tile.groups or "none", "K": centres, "PADDED": 1 << (centres - 1).bit_length(),
        "D": d, "DT": d, "SELF": exclude_self,
        "POSITIVES_ONLY": one.positives_only, "COLUMN_VALUES": tile.column_values, "SLOTS": slots,
        "OWN": isinstance(tile, ListLoss) and tile.own, "BLOCK_M": c.stay, "BLOCK_N": c.stream,
        "BLOCK_D": c.depth, "BLOCK_T": c.depth if teacher else 16, "PRECISION": precision,
    }  # fmt: skip
    pointers = _pointers("x y", _TYPES[dtype]) | _pointers("x_norms y_norms", "fp32")
    pointers |= (
        _pointers("near own", "i32")
        | _pointers("x_label y_label", "i64")
        | _pointers("known parameters partial y_values", "fp32")
    )
    if teacher:
        pointers |= _pointers("u v", _TYPES[dtype]) | _pointers("u_norms v_norms", "fp32")
    return _compile(forward.statistics_kernel, pointers, constants, arch, c)


def weights(
    tile: AnyLoss, parameters: int, arch: int, dtype: torch.dtype, d: int, *, both: bool = False,
    stay: bool = True, centres: int = 1, axis: int = 1, precision: str = "tf32",
    metric: str = "cosine", config: configs.Config | None = None,
) -> Compiled:  # fmt: skip
    """Kernel 2 with the loss's rows along the side that stays, the other one, or both."""
    from . import backward

    c = config or configs.weights_config(
        arch, dtype, d, precision, tile.teacher, tile.states, tile.slots
    )
    teacher = tile.teacher
    constants = {
        "WEIGHT": tile.weight, "COLUMN_SLOPES": tile.column_slopes,
        "GAIN": tile.gain, "STATES": tile.weight_states, "PARAMETERS": parameters,
        "A_STATE": both or stay, "B_STATE": both or not stay, "WEIGHTED": False,
        "SUMS": metric.startswith("raw"), "SPARSE": tile.sparse and configs.skips_zeros(arch),
        "W_SCALE": 256.0 if dtype == torch.float16 else 1.0, "METRIC": metric, "EPSILON": 0.0,
        "NEAREST": 0.0, "TEACHER": "dot" if teacher else "none", "T_EPSILON": 0.0,
        "GROUPS": tile.groups or "none",
        "AXIS": axis, "K": centres, "PADDED": 1 << (centres - 1).bit_length(), "D": d, "DT": d,
        "SELF": tile.own if isinstance(tile, ListLoss) else both, "COLUMN_VALUES": tile.column_values,
        "SLOTS": tile.slots, "OWN": isinstance(tile, ListLoss) and tile.own,
        "BLOCK_A": c.stay, "BLOCK_B": c.stream, "BLOCK_D": c.depth,
        "BLOCK_T": c.depth if teacher else 16, "BLOCK_O": c.output, "PRECISION": precision,
    }  # fmt: skip
    pointers = _pointers("a b", _TYPES[dtype]) | _pointers("a_norms b_norms", "fp32")
    pointers |= _pointers("a_label b_label", "i64") | _pointers("near own a_low b_low", "i32")
    pointers |= _pointers("a_states b_states a_values b_values parameters factor out sums", "fp32")
    if teacher:
        pointers |= _pointers("ta tb", _TYPES[dtype]) | _pointers("ta_norms tb_norms", "fp32")
    return _compile(backward.weights_kernel, pointers, constants, arch, c)


def _pointers(names: str, kind: str) -> dict[str, str]:
    return {name: f"*{kind}" for name in names.split()}


def _compile(
    kernel: Any, pointers: dict[str, str], constants: dict[str, Any], arch: int, c: configs.Config
) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = pointers[name]
            attributes[(i,)] = [["tt.divisibility", 16]]  # as torch allocates
        elif name in ("M", "N", "tiles_per_split", "splits"):
            signature[name] = "i32"
        else:
            signature[name] = "constexpr"
            constants[name] = None
    source = ASTSource(kernel, signature, constants, attributes)
    done = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": c.warps, "num_stages": c.stages},
    )
    sass, usage = _disassemble(done.asm["cubin"])
    field = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    names = _TENSOR[arch]
    return Compiled(
        registers=field["REG"],
        spill_bytes=field["STACK"] + field["LOCAL"],
        shared=done.metadata.shared,
        warps=c.warps,
        tensor=names[0] in sass and names[1] in done.asm["ptx"],
        products=products(done.asm["ptx"]),
        counts=loop_counts(sass, c.stay * c.stream // (32 * c.warps)),
        stay=c.stay,
        stream=c.stream,
    )


def products(ptx: str) -> dict[str, int]:
    """How many tensor-core instructions there are, by the type of their operands."""
    found: collections.Counter[str] = collections.Counter()
    for suffixes in _PRODUCT.findall(ptx):
        kinds = suffixes.replace("::", ".").split(".")
        found[next((k for k in ("tf32", "bf16", "f16") if k in kinds), "other")] += 1
    return dict(found)


def _tool(name: str) -> str:
    import triton

    bundled = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", name)
    return bundled if os.path.exists(bundled) else name


def _disassemble(cubin: bytes) -> tuple[str, str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def call(*args: str) -> str:
            return subprocess.run(args, check=True, capture_output=True, text=True).stdout

        sass = call(_tool("nvdisasm"), "-c", file.name)
        usage = call(_tool("cuobjdump"), "-res-usage", file.name)
    return sass, usage


_PIPES = (
    ("tensor", re.compile(r"^(HMMA|HGMMA|UTC\w*MMA|QGMMA)")),
    ("mufu", re.compile(r"^MUFU")),
    ("memory", re.compile(r"^(LD|ST|UTMA|UBLK|RED|ATOM|SHFL)")),
    ("fp32", re.compile(r"^(FADD|FMUL|FFMA|FMNMX|FSEL|FSETP|FSET|FCHK|FADD2|FMUL2|FFMA2)")),
    (
        "alu",
        re.compile(r"^(I|LOP3|SEL|PRMT|SHF|LEA|MOV|F2F|I2F|F2I|F2FP|PLOP3|VOTE|R2P|P2R|CS2R|VI)"),
    ),
)
# A loop counts down: its counter before it, and what is taken off.
_START = re.compile(r"^U?R\d+, (?:RZ, RZ, )?(0x[0-9a-f]+)$")
_STEP = re.compile(r"^ (U?R\d+), (?:U?PT?\d*, )*(U?R\d+), -(0x[0-9a-f]+), U?RZ")
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([^;]*);")


def loop_counts(sass: str, pairs: int) -> dict[str, int]:
    """Instructions by pipe in the plain loop, in which a thread has `pairs` pairs of a tile.

    Loops are backward branches. Of those that multiply and do some arithmetic on every pair, the
    plain one is the shortest: the masked one does more, a loop over D alone does less, and loops
    around a wait are longer still. The loops in it (over the thresholds of a list) count as often as
    they run. Where that cannot be read it is the masked one, whose counter is a threshold's number.
    """
    code: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if found := _LABEL.match(line):
            labels[found[1]] = len(code)
        elif found := _INSTRUCTION.search(line):
            code.append((found[2], found[3]))
    loops = []
    for at, (name, rest) in enumerate(code):
        if name == "BRA" and (target := re.search(r"\.L_x_\d+", rest)):
            start = labels.get(target[0], at)
            if start < at:
                loops.append((start, at))
    for start, stop in sorted(loops, key=lambda one: one[1] - one[0]):
        counts = count(name for name, _ in code[start : stop + 1])
        if not counts["tensor"] or counts["fp32"] < pairs:
            continue
        times = {
            (first, last): trips(code, first, last)
            for first, last in loops
            if start < first <= last < stop
        }
        for (first, last), n in times.items():
            inner = count(name for name, _ in code[first : last + 1])
            if not inner["tensor"] and inner["fp32"] >= pairs:
                if n is None:
                    break
                counts = {pipe: c + (n - 1) * inner[pipe] for pipe, c in counts.items()}
        else:
            return counts
    return count([])


def trips(code: list[tuple[str, str]], first: int, last: int) -> int | None:
    """How often the loop code[first : last + 1] runs: its counter's start over its step."""
    for name, rest in code[first:last]:
        step = _STEP.match(rest) if re.match("U?V?U?IADD", name) else None
        if step is None or step[1] != step[2]:
            continue
        for _, earlier in reversed(code[:first]):
            # Behind the suffixes of the name: first what is written, then what is read.
            operands = earlier.partition(" ")[2].strip()
            if re.match(rf"{step[1]}\b", operands):
                start = _START.match(operands)
                return None if start is None else int(start[1], 16) // int(step[3], 16)
    return None


def count(names: Any) -> dict[str, int]:
    """Instructions by pipe."""
    found: collections.Counter[str] = collections.Counter({name: 0 for name, _ in _PIPES})
    for name in names:
        pipe = next((pipe for pipe, pattern in _PIPES if pattern.match(name)), "other")
        found[pipe] += 1
    return dict(found)
