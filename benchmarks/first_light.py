"""The first minutes on a GPU: does it run, is it right, does it repeat, how fast is it. No pytest.

    python benchmarks/first_light.py right [--seconds 240] [--workers 14]
    python benchmarks/first_light.py fast  [--seconds 120] [--output FOLDER]

right: every loss, row functors and tiles, against float64 torch, on a small batch and on rows that 4 and
8 warps share, and again for the same bits. Several processes, as compiling tiles takes most of it.
fast: milliseconds of a step in bfloat16 beside the bare products of the same problem (the floor), what
the step holds beyond inputs and gradients, and which kernels take the time; FOLDER/first-light.csv.

The package must be built in place (`make gpu-check` does both). --device cpu tries the script itself.
What matters most comes first: time may run out. The exit status is 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import gpu_check  # noqa: E402
import torch  # noqa: E402
from conftest import (  # noqa: E402
    CASES,
    EXAMPLES,
    Case,
    call,
    distance,
    inputs,
    long_rows,
    on_device,
)  # fmt: skip

from fastdml.bench import contenders, timing  # noqa: E402
from fastdml.bench.device import device  # noqa: E402
from fastdml.bench.workload import Workload, parse_loss  # noqa: E402
from fastdml.engine import library  # noqa: E402

BACKENDS = ("native", "triton")
# How often a result is made again and compared to the bit. A race need not show at once.
REPEATS = 6
# Loss, proxies: what `fast` measures first, at B = 32,768 with four a class, dimension after dimension.
LOSSES = (
    ("multi_similarity:epsilon=0.1", 0),
    ("info_nce", 0),
    ("proxy_anchor", 100_000),
    ("smooth_ap", 0),
    ("contrastive", 0),
)
DIMENSIONS = (128, 512, 256, 1024)
# Two towers at the size that others have published, beside their kernels: loss, B, D, whose.
PEERS = (
    ("siglip", 65536, 768, "siglip-kernel"),
    ("info_nce:symmetric=true", 65536, 768, "memeff"),
)
PROFILED = (128, 512)
COLUMNS = ("loss", "batch", "dim", "per_class", "contender", "ms", "times_floor", "mib", "kernels")


def problems() -> Iterator[tuple[str, Case, torch.dtype, tuple[str, ...]]]:
    """(name, case, type, executors), the most telling first. Tiles compile anew for every type."""
    small = CASES["ragged"]()
    yield "ragged", small, torch.bfloat16, BACKENDS
    for columns, rows in ((4099, 48), (16389, 8), (1031, 48)):
        yield str(columns), long_rows(columns, rows), torch.float32, ("native",)
    yield "ragged", small, torch.float32, BACKENDS
    yield "4099", long_rows(4099, 48), torch.bfloat16, BACKENDS
    # Tiles write weights here, of several blocks of rows.
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2200, 320, generator=g, dtype=torch.float64)
    yield "320 dimensions", Case(x, torch.arange(2200) % 550), torch.bfloat16, ("triton",)


def right(options: argparse.Namespace) -> int:
    """How many results were wrong."""
    shard, of = (int(n) for n in options.shard.split("/"))
    chosen = list({p.values[0].name: p for p in reversed(EXAMPLES)}.values())[::-1][shard::of]
    ran = bad = 0
    for name, case, dtype, backends in problems():
        for p in chosen:
            where = f"{p.id} {name} {str(dtype)[6:]}"
            if time.monotonic() > options.end:
                print(f"out of time at {where}: {ran} ran, {bad} bad", flush=True)
                return bad
            description, narrow = p.values[0], case.to(dtype)
            given = on_device(inputs(description, narrow), options.device)
            wide = on_device(inputs(description, narrow.to(torch.float64)), options.device)
            try:
                true = call(description, wide, "chunked")
                plain = call(description, given, "chunked")
            except Exception as error:
                print(f"torch itself: {where}: {brief(error)}", flush=True)
                continue
            for backend in backends:
                try:
                    found = call(description, given, backend)
                    ran += 1
                    share = max(
                        distance(f, t) / (3 * distance(q, t) + 1e-4 + 4 * torch.finfo(dtype).eps)
                        for f, t, q in zip(found, true, plain, strict=True)
                    )
                    if not share <= 1:
                        bad += 1
                        print(f"WRONG {backend} {where}: {share:.2g} x what is allowed", flush=True)
                    again = (call(description, given, backend) for _ in range(REPEATS))
                    if not all(all(map(torch.equal, found, other)) for other in again):
                        bad += 1
                        print(f"BITS {backend} {where}", flush=True)
                except ValueError:  # this executor does not have this loss
                    continue
                except Exception as error:
                    bad += 1
                    print(f"FAIL {backend} {where}: {brief(error)}", flush=True)
                    if "CUDA error" in str(error):  # nothing runs in this process any more
                        return bad
    print(f"shard {options.shard} done: {ran} ran, {bad} bad", flush=True)
    return bad


def brief(error: Exception) -> str:
    return f"{type(error).__name__} {str(error).strip()[:200]}"


def in_shards(options: argparse.Namespace) -> int:
    """The same in several processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        __file__,
        "right",
        f"--seconds={options.seconds}",
        f"--device={options.device}",
    ]
    running = [
        subprocess.Popen([*command, f"--shard={k}/{options.workers}"], env=environment)
        for k in range(options.workers)
    ]
    return sum(child.wait() != 0 for child in running)


def plan() -> Iterator[tuple[str, int, int, int, int]]:
    """(loss, B, D, samples a class, proxies) of every line: these losses, then what gpu_check.py judges."""
    lines = [(loss, 32768, d, 4, classes or 1000) for d in DIMENSIONS for loss, classes in LOSSES]
    after = 2 * len(LOSSES)  # 128 and 512, which are predicted
    lines[after:after] = [(loss, b, d, 1, 1000) for loss, b, d, _ in PEERS]
    lines += [(loss, b, d, k, 1000) for loss, b, dims, k, _ in gpu_check.BENCHES for d in dims]
    yield from dict.fromkeys(lines)


def fast(options: argparse.Namespace) -> int:
    """Nothing here is judged: 1 only where an executor failed that should run."""
    on = device(options.device)
    tried = on.name == "cpu"
    rows: list[dict[str, Any]] = []
    failed = 0
    peers = {loss: who for loss, _, _, who in PEERS}
    for text, batch, dim, per_class, classes in plan():
        if time.monotonic() > options.end - 6:
            print(f"out of time at {text} D={dim}", flush=True)
            break
        loss, given = parse_loss(text)
        workload = Workload(
            loss, min(batch, 512) if tried else batch, dim, per_class,
            classes=min(classes, 200) if tried else classes,
            dtype="float32" if tried else "bfloat16", device=options.device, options=given,
        )  # fmt: skip
        peer = peers.get(text)
        found, errors = measured(workload, on, peer)
        if peer and peer not in found and not errors:
            print(f"      {peer} is not there, or runs on CUDA alone", flush=True)
        failed += len(errors)
        size = {"loss": text, "batch": workload.batch, "dim": dim, "per_class": per_class}
        for who, row in found.items():
            rows.append({**size, "contender": who, **row})
        line = " | ".join(f"{w} {r['ms']:.2f} ms {r['times_floor']:.2f}x" for w, r in found.items())
        print(
            f"{text:30} B={workload.batch:6} D={dim:5} K={per_class:4} | {line}",
            *errors,
            sep=" | ",
            flush=True,
        )
        for who, row in found.items():
            for kernel in filter(None, row["kernels"].split("; ")):
                print(f"      {who}: {kernel}", flush=True)
        if options.output:
            write(options.output / "first-light.csv", rows)
    return failed


def measured(
    workload: Workload, on: Any, peer: str | None = None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Of the floor, both executors and another package; and what went wrong."""
    steps: dict[str, Any] = {}
    errors = []
    others = (peer,) if peer and on.name != "cpu" else ()
    for who in (contenders.FLOOR, *BACKENDS, *others):
        # Lists compiled for larger dimensions take longer than they may; not what is chosen there either.
        if who == "triton" and workload.loss == "smooth_ap" and workload.dim > 128:
            continue
        try:
            step = contenders.make(who, workload)
            step()
            steps[who] = step
        except (ValueError, contenders.Unavailable):  # this executor does not have this loss
            continue
        except Exception as error:
            if who in others:  # not ours to mend
                print(f"      {who}: {brief(error)}", flush=True)
                continue
            errors.append(f"{who} FAIL {brief(error)}")
    series = timing.interleave(steps, on, floor=contenders.FLOOR, budget=1.5)
    found = {}
    for who, times in series.items():
        with on.peak() as peak:
            steps[who]()
        found[who] = {
            "ms": times.quantiles().median * 1e3,
            "times_floor": times.over(series[contenders.FLOOR]).median,
            "mib": peak.bytes / 2**20,  # gradients of the step before were there already
            "kernels": "; ".join(kernels(steps[who], on) if workload.dim in PROFILED else []),
        }
    return found, errors


def kernels(step: Any, on: Any) -> list[str]:
    """What takes longest in a step on the device."""
    if on.name == "cpu":
        return []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    longest = sorted(profile.key_averages(), key=lambda e: -e.device_time_total)[:7]
    return [f"{e.device_time_total / 1e3:.3f} ms {e.count}x {e.key[:90]}" for e in longest]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["right", "fast"])
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--workers", type=int, default=1, help="processes of `right`")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, help="a folder for first-light.csv")
    parser.add_argument("--shard", default="0/1", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.end = time.monotonic() + options.seconds
    warnings.simplefilter("ignore")
    if options.workers > 1 and options.what == "right":
        return min(1, in_shards(options))
    if options.shard.startswith("0/"):
        info = library.build_info()
        name = torch.cuda.get_device_name() if options.device != "cpu" else "cpu"
        print(
            f"{name}, torch {torch.__version__}, CUDA kernels: {info['cuda_kernels']}", flush=True
        )
    return min(1, (right if options.what == "right" else fast)(options))


if __name__ == "__main__":
    raise SystemExit(main())
