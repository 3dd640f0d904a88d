"""Measures up to which dimension tile kernels are quicker than row functors, on the CUDA device.

    python benchmarks/crossover.py FOLDER [--batch 8192] [--seconds 120]

Writes FOLDER/crossover.csv with the times, and FOLDER/crossover-measured.txt, which `backend="auto"`
reads when it lies in fastdml/engine. Every registered loss that both executors run is tried, in
bfloat16, forward and backward, in the order of the list below and then of the alphabet, until the time
is up.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path

import torch

import fastdml  # noqa: F401
from fastdml.engine.autograd import evaluate
from fastdml.engine.call import Call
from fastdml.engine.dispatch import EXECUTORS
from fastdml.engine.loss import RowLoss
from fastdml.engine.problem import Problem
from fastdml.engine.registry import LOSSES

FIRST = (
    "multi_similarity",
    "info_nce",
    "sup_con",
    "proxy_anchor",
    "softmax_cross_entropy",
    "contrastive",
)
DIMENSIONS = (64, 128, 256, 512, 1024)


def example(loss: RowLoss, batch: int, d: int, device: str) -> Call:
    """A call of a loss: four samples a class, a proxy for each class."""
    g = torch.Generator(device).manual_seed(0)

    def draw(rows: int) -> torch.Tensor:
        x = torch.randn(rows, d, generator=g, device=device)
        return x.to(torch.bfloat16 if device == "cuda" else torch.float32).requires_grad_()

    labels = torch.arange(batch, device=device) // 4
    classes = torch.arange(batch // 4, device=device)
    own = classes.repeat_interleave(loss.columns_per_class)
    call = Call(loss, draw(batch), None, labels)
    if loss.columns == "proxies":
        call = Call(loss, draw(batch), draw(len(own)), labels, own)
    elif loss.rows == "proxies":
        call = Call(loss, draw(len(classes)), draw(batch), classes, labels)
    m = call.anchors.shape[0]
    n = m if call.candidates is None else call.candidates.shape[0]
    values = {name: v.to(device) for name, v in loss.example_values(m, n).items()}
    teacher = () if loss.teacher_similarity is None else (draw(m).detach(),)
    return call.replace(teacher=teacher, **values)


def refused(call: Call) -> bool:
    problem = Problem.of(call)
    return any(EXECUTORS[name].refuses(problem) is not None for name in ("native", "triton"))


def milliseconds(call: Call) -> float:
    """Median of a step: forward and backward."""

    def step() -> None:
        evaluate(call).backward()

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    times = []
    for _ in range(10):
        wait()
        start = time.perf_counter()
        step()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2]


def compare(loss: RowLoss, batch: int, d: int, device: str) -> dict[str, object] | None:
    """One line of the table, or None where one of the executors refuses."""
    call = example(loss, batch, d, device)
    if refused(call):
        return None
    found = {name: milliseconds(call.replace(backend=name)) for name in ("native", "triton")}
    return {
        "loss": loss.name,
        "batch": batch,
        "dim": d,
        **{f"{k}_ms": f"{v:.4f}" for k, v in found.items()},
    }


def largest(rows: list[dict[str, object]]) -> dict[str, int]:
    """Per loss the largest dimension up to which tiles won at every one measured; 0 for none."""
    limits: dict[str, int] = {}
    lost: set[str] = set()
    for row in sorted(rows, key=lambda r: int(str(r["dim"]))):
        name = str(row["loss"])
        if float(str(row["triton_ms"])) > float(str(row["native_ms"])):
            lost.add(name)
        limits.setdefault(name, 0)
        if name not in lost:
            limits[name] = int(str(row["dim"]))
    return limits


def write(folder: Path, arch: str, rows: list[dict[str, object]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "crossover.csv", "w", newline="") as file:
        writer = csv.DictWriter(
            file, ("loss", "batch", "dim", "native_ms", "triton_ms"), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    lines = (f"{arch} {loss} {d}\n" for loss, d in sorted(largest(rows).items()))
    (folder / "crossover-measured.txt").write_text("".join(lines))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--dim", type=int, nargs="*", default=list(DIMENSIONS))
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--losses", nargs="*")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("crossover: no CUDA device; nothing measured")
        return 5
    major, minor = torch.cuda.get_device_capability()
    arch = f"sm_{major}{minor}"
    end = time.monotonic() + options.seconds
    rows: list[dict[str, object]] = []
    for name in options.losses or (*FIRST, *sorted(set(LOSSES) - set(FIRST))):
        loss = LOSSES[name].examples()[0]
        if loss.threshold_list:  # `auto` does not ask how long lists are
            continue
        for d in options.dim:
            if time.monotonic() > end:
                break
            if (row := compare(loss, options.batch, d, "cuda")) is None:
                break
            rows.append(row)
            print(row, flush=True)
        write(options.folder, arch, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
