"""Compiles the kernels for a GPU that need not be there, and reads what the compiler made of them."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
import subprocess
import tempfile
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import backward, configs, forward, launch, lists, similarity
from .launch import AnyLoss
from .list_loss import ListLoss
from .tile import Pass, TileLoss

# Bytes of shared memory a block may have (CUDA programming guide, compute capabilities).
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
ARCHITECTURES = (80, 90, 100)  # those whose tiles were chosen by what was compiled
_TENSOR = {90: ("HGMMA", "wgmma"), 100: ("UTCHMMA", "tcgen05")}
_TENSOR |= dict.fromkeys((80, 86, 89, 120), ("HMMA", "mma.sync"))
# Instructions of tensor cores in PTX; the types of their operands are among their suffixes.
_PRODUCT = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\.(\S+)")
_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_SIZES = {"*fp32": 4, "*fp16": 2, "*bf16": 2}


@dataclasses.dataclass(frozen=True)
class Example:
    """A tile loss and how it is called: what its kernels are compiled for where there is no call.

    parameters: how many numbers its functions read as p. metric, teacher: its similarities. centres:
    candidates of a class in a row. one_set: anchors are candidates, so one sweep sums both directions.
    excludes_own: the pair of a sample with itself does not count. gradient: whether it has one.
    """

    tile: AnyLoss
    parameters: int
    metric: str = "cosine"
    teacher: str = "dot"
    centres: int = 1
    one_set: bool = True
    excludes_own: bool = True
    gradient: bool = True


@dataclasses.dataclass
class Compiled:
    """Resources of one kernel. counts: SASS instructions of the main loop by pipe, per thread; products:
    tensor-core instructions in the PTX by the type of their operands; issued: instructions of that loop a
    pair, all pipes, those of a loop over D as often as it runs; l2_bytes: what a pair reads of operands;
    visits: how often the grid visits every tile (groups of thresholds, chunks of D)."""

    registers: int
    spill_bytes: int
    shared: int
    warps: int
    tensor: bool
    products: dict[str, int]
    counts: dict[str, int]
    stay: int
    stream: int
    issued: float
    l2_bytes: float
    visits: int = 1


def kernels(
    example: Example, arch: int, dtype: torch.dtype, d: int, precision: str = "tf32"
) -> Any:
    """Yields (kernel, Compiled) for every kernel that a call of the loss launches."""
    tile = example.tile
    given = (example, arch, dtype, d, precision)
    if isinstance(tile, ListLoss):
        yield "thresholds", thresholds(*given)
        yield "statistics 1", statistics(*given)
        yield "finish", list_finish(example, arch)
    elif example.gradient and finds_statistics(*given):
        yield ALONE, statistics(*given)
    else:
        for number in range(len(tile.passes)):
            yield f"statistics {number + 1}", statistics(*given, number=number)
    if not example.gradient:
        return
    if writes_weights(*given):
        sides = "both" if example.one_set else "rows"
        yield f"{WRITTEN}, {'one set' if example.one_set else 'rows'}", weights(*given, sides=sides)
    elif example.one_set:
        yield "weights, one set", weights(*given, sides="both")
    else:
        yield "weights, rows", weights(*given, sides="rows")
        yield "weights, columns", weights(*given, sides="columns")


# Kernel 1 of a loss whose gradient needs none.
ALONE = "statistics, no gradient"


def finds_statistics(
    example: Example, arch: int, dtype: torch.dtype, d: int, precision: str = "tf32"
) -> bool:
    """`launch.finds_statistics` where there is no call."""
    chunks, write = _chunks(example, arch, dtype, d, precision), writes_weights(
        example, arch, dtype, d, precision
    )
    return launch.finds_statistics(example.tile, example.centres, chunks, write)


# Kernel 2 where it writes weights, which the library multiplies.
WRITTEN = "written weights"


def writes_weights(
    example: Example, arch: int, dtype: torch.dtype, d: int, precision: str = "tf32"
) -> bool:
    """`launch.writes_weights` where there is no call."""
    sums = example.metric.startswith("raw")
    chunks = _chunks(example, arch, dtype, d, precision)
    return launch.writes_weights(example.tile, example.centres, chunks, dtype, sums)


def _chunks(example: Example, arch: int, dtype: torch.dtype, d: int, precision: str) -> int:
    needs = launch.weights_needs(example.tile)
    return -(-d // configs.weights_config(arch, dtype, d, precision, **needs).output)


def thresholds(
    example: Example, arch: int, dtype: torch.dtype, d: int, precision: str = "tf32"
) -> Compiled:
    """The kernel that finds the thresholds of a ListLoss."""
    slots = example.tile.slots
    needs = launch.statistics_needs(example.tile) | {"shared": SHARED_LIMIT[arch]}
    c = configs.statistics_config(arch, dtype, d, precision, **needs)
    constants = {
        "SLOTS": slots, "METRIC": example.metric, "EPSILON": 0.0, "D": d, "BLOCK_M": c.stay,
        "BLOCK_N": c.stream, "BLOCK_D": c.depth, "PRECISION": precision,
    }  # fmt: skip
    pointers = _pointers("x y", _TYPES[dtype]) | _pointers("x_norms y_norms out", "fp32")
    pointers |= _pointers("near low", "i32")
    return _compile(lists.thresholds_kernel, pointers, constants, arch, c)


def list_finish(example: Example, arch: int) -> Compiled:
    """The kernel that finishes the rows of a ListLoss. It has no products."""
    tile = example.tile
    assert isinstance(tile, ListLoss)
    c = configs.Config(launch.LIST_ROWS, tile.slots, 0, 0, 4, 2)
    constants = {
        "FINISH": tile.finish, "VALUES": tile.values, "SLOTS": tile.slots, "OUTPUTS": tile.outputs,
        "PARAMETERS": example.parameters, "SELF": example.excludes_own, "BLOCK": c.stay,
    }  # fmt: skip
    pointers = _pointers("partial thresholds parameters results", "fp32")
    pointers |= _pointers("low size", "i32")
    return _compile(lists.list_finish_kernel, pointers, constants, arch, c)


def statistics(
    example: Example, arch: int, dtype: torch.dtype, d: int, precision: str = "tf32", *,
    number: int = 0, config: configs.Config | None = None,
) -> Compiled:  # fmt: skip
    """Kernel 1 for pass `number` of a loss."""
    tile = example.tile
    needs = launch.statistics_needs(tile) | {"shared": SHARED_LIMIT[arch]}
    c = (config or configs.statistics_config(arch, dtype, d, precision, **needs)).holding(example.centres)
    if isinstance(tile, ListLoss):
        slots = min(tile.slots, launch.GROUP)
        one = Pass(("sum",) * (tile.values * slots), tile.compare)
        known = slots
    else:
        slots = 0
        one = tile.passes[number]
        known = tile.inputs + sum(p.values for p in tile.passes[:number])
    constants = _shared(example, d, c, precision) | {
        "FOLD": one.fold, "KINDS": one.kinds, "KNOWN": known, "SLOTS": slots,
        "POSITIVES_ONLY": one.positives_only, "SELF": example.excludes_own,
        "BLOCK_M": c.stay, "BLOCK_N": c.stream,
    }  # fmt: skip
    pointers = _pointers("x y", _TYPES[dtype]) | _pointers("x_norms y_norms", "fp32")
    pointers |= (
        _pointers("near x_label y_label", "i32")
        | _pointers("known parameters partial y_values", "fp32")
    )
    if tile.teacher:
        pointers |= _pointers("u v", _TYPES[dtype]) | _pointers("u_norms v_norms", "fp32")
    made = _compile(forward.statistics_kernel, pointers, constants, arch, c)
    return dataclasses.replace(made, visits=tile.slots // slots if slots else 1)


def weights(
    example: Example, arch: int, dtype: torch.dtype, d: int, precision: str = "tf32", *,
    sides: str = "both", config: configs.Config | None = None,
) -> Compiled:  # fmt: skip
    """Kernel 2 for the gradient of the loss's "rows", of its "columns", or of "both", which are one set."""
    tile = example.tile
    write = writes_weights(example, arch, dtype, d, precision)
    rule = configs.written_config if write else configs.weights_config
    needs = launch.weights_needs(tile) | {"shared": SHARED_LIMIT[arch]}
    c = (config or rule(arch, dtype, d, precision, **needs)).holding(example.centres)
    find = sides != "columns" and finds_statistics(example, arch, dtype, d, precision)
    one = tile.passes[0] if find and isinstance(tile, TileLoss) else None
    constants = _shared(example, d, c, precision) | {
        "FOLD": one and one.fold, "KINDS": one.kinds if one else (),
        "WEIGHT": tile.weight, "COLUMN_SLOPES": tile.column_slopes,
        "GAIN": tile.gain, "LINEAR": tile.linear, "STATES": tile.weight_states,
        "A_STATE": sides != "columns", "B_STATE": sides != "rows", "WEIGHTED": False,
        "SUMS": example.metric.startswith("raw"), "SPARSE": tile.sparse and configs.skips_zeros(arch),
        "W_SCALE": 256.0 if dtype == torch.float16 else 1.0, "NEAREST": 0.0,
        "AXIS": 0 if sides == "columns" and example.centres > 1 else 1,
        "SELF": example.excludes_own, "SLOTS": tile.slots,
        "BLOCK_A": c.stay, "BLOCK_B": c.stream, "BLOCK_O": c.output, "STORE": write,
    }  # fmt: skip
    pointers = _pointers("a b", _TYPES[dtype]) | _pointers("a_norms b_norms", "fp32")
    pointers |= _pointers("a_label b_label near a_low b_low", "i32")
    pointers |= _pointers(
        "a_states b_states a_values b_values parameters factor sums partial", "fp32"
    )
    pointers |= _pointers("out", _TYPES[dtype] if write else "fp32")
    if tile.teacher:
        pointers |= _pointers("ta tb", _TYPES[dtype]) | _pointers("ta_norms tb_norms", "fp32")
    made = _compile(backward.weights_kernel, pointers, constants, arch, c)
    return made if write else dataclasses.replace(made, visits=-(-d // c.output))


def _shared(example: Example, d: int, c: configs.Config, precision: str) -> dict[str, Any]:
    """The constants that both kernels have."""
    pair = launch.Numbers(example.metric, teacher_metric=example.teacher)
    taught = d if example.tile.teacher else None
    return launch.shared(example.tile, pair, example.parameters, c, precision, d, taught, example.centres)


def _pointers(names: str, kind: str) -> dict[str, str]:
    return {name: f"*{kind}" for name in names.split()}


def _compile(
    kernel: Any, pointers: dict[str, str], constants: dict[str, Any], arch: int, c: configs.Config
) -> Compiled:
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in pointers:
            signature[name] = pointers[name]
            attributes[(i,)] = [["tt.divisibility", 16]]  # as torch allocates
        elif name in similarity.SIZES:
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
    pairs = c.stay * c.stream // (32 * c.warps)
    d, products_of = constants.get("D", 0), 2 if constants.get("TEACHER", "none") != "none" else 1
    counts = loop_counts(sass, pairs, -(-d // c.depth) if c.depth else 1)
    return Compiled(
        registers=field["REG"],
        spill_bytes=field["STACK"] + field["LOCAL"],
        shared=done.metadata.shared,
        warps=c.warps,
        tensor=names[0] in sass and names[1] in done.asm["ptx"],
        products=products(done.asm["ptx"]),
        counts=counts,
        stay=c.stay,
        stream=c.stream,
        issued=sum(counts.values()) / pairs if pairs else 0.0,
        l2_bytes=products_of * operand_bytes(
            c, d, _SIZES[pointers.get("x") or pointers.get("a") or "*fp32"], not constants.get("STORE", True)
        ),
    )


def operand_bytes(c: configs.Config, d: int, size: int, again: bool) -> float:
    """Bytes of operands a pair that one visit of all tiles reads, from the second cache at the nearest:
    shared memory holds the rows that stay where D fits one block, else a tile reads both sides anew; and
    `again` the rows that stream past, unless it still has them."""
    if not c.depth:
        return 0.0
    rows = c.stream if d <= c.depth else c.stay + c.stream
    rows += c.stream if again and not d <= c.depth == c.output else 0
    return rows * d * size / (c.stay * c.stream)


def products(ptx: str) -> dict[str, int]:
    """How many tensor-core instructions there are, by the type of their operands."""
    found: collections.Counter[str] = collections.Counter()
    for suffixes in _PRODUCT.findall(ptx):
        kinds = suffixes.replace("::", ".").split(".")
        found[next((k for k in ("tf32", "bf16", "f16") if k in kinds), "other")] += 1
    return dict(found)


def _tool(name: str) -> str:
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


def loop_counts(sass: str, pairs: int, depth: int = 1) -> dict[str, int]:
    """Instructions by pipe in the plain loop, in which a thread has `pairs` pairs of a tile.

    Loops are backward branches. Of those that multiply and do some arithmetic on every pair, the
    plain one is the first in the code that holds no other: a loop over D alone does less, and the masked
    one, whose tile may be narrower, comes after it. The loops in it count as often as they run: those that
    multiply `depth` times, those over the thresholds of a list as their counters say. Where that cannot be
    read it is the masked one, whose counter is a threshold's number.
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
    innermost: list[tuple[int, int, dict[str, int]]] = []
    for start, stop in sorted(loops, key=lambda one: one[1] - one[0]):
        counts = count(name for name, _ in code[start : stop + 1])
        holds = any(start <= first and last <= stop for first, last, _ in innermost)
        if counts["tensor"] and counts["fp32"] >= pairs and not holds:
            innermost.append((start, stop, counts))
    for start, stop, counts in sorted(innermost, key=lambda one: one[0]):
        times = {
            (first, last): trips(code, first, last)
            for first, last in loops
            if start < first <= last < stop
        }
        for (first, last), n in times.items():
            inner = count(name for name, _ in code[first : last + 1])
            times_more = 0
            if inner["tensor"]:
                times_more = depth - 1
            elif inner["fp32"] >= pairs:
                if n is None:
                    break
                times_more = n - 1
            counts = {pipe: c + times_more * inner[pipe] for pipe, c in counts.items()}
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
