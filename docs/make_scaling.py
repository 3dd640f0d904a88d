"""Computes the tables of docs/scaling.md: a step over 8 to 4,096 GPUs, from stated rates, not measured.

`python docs/make_scaling.py` writes them into the page, `--check` says whether they are up to date.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

from fastdml.distributed import cost
from fastdml.losses import MultiSimilarityLoss, SigLIPLoss

PAGE = Path(__file__).resolve().parent / "scaling.md"
GPUS = (8, 64, 512, 4096)
MS = 1e-3


@dataclasses.dataclass(frozen=True)
class Machine:
    """What is assumed of a GPU and of the links. Rates a second."""

    products: float = 400e12  # of bfloat16 matrix products, half of what the H100's data sheet says
    # 132 processors with 128 lanes at 1.7 GHz, all of them busy.
    instructions: float = 132 * 128 * 1.7e9
    within: float = 450e9  # bytes that a GPU sends to others of its node: NVLink 4, one direction
    between: float = 50e9  # to other nodes: one port of 400 Gb/s a GPU
    node: int = 8
    latency: float = 10e-6  # of one exchange between two GPUs

    def collective(self, gpus: int) -> float:
        """Of a collective, in which what a node gets of others comes in by all its ports."""
        return self.within if gpus <= self.node else min(self.within, self.node * self.between)

    def ring(self, gpus: int) -> float:
        """Of a ring of all GPUs, which enters a node by one port and leaves it by one."""
        return self.within if gpus <= self.node else self.between


@dataclasses.dataclass(frozen=True)
class Work:
    """A loss: instructions a pair of its row kernel (benchmarks/results/row-instructions.md), visits for
    statistics alone, and its description."""

    name: str
    instructions: float
    loss: object

    def per_pair(self, machine: Machine, dimension: int, products: int = 3) -> float:
        """Seconds of a pair: similarity and both gradients, and the row kernel."""
        return 2 * dimension * products / machine.products + self.instructions / machine.instructions


WORKS = (
    Work("multi-similarity", 57, MultiSimilarityLoss().description()),
    Work("SigLIP", 73, SigLIPLoss().description()),
)


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds of the loss of one step on every GPU. gather: computing, sending, both; ring: of its rounds,
    whichever of the two takes longer, and both without overlap."""

    computing: float
    gathering: float
    ring_computing: float
    ring_sending: float
    hops: float

    @property
    def gather(self) -> float:
        return self.computing + self.gathering

    @property
    def ring(self) -> float:
        return max(self.ring_computing, self.ring_sending) + self.hops


def step(work: Work, gpus: int, rows: int, dimension: int, machine: Machine) -> Step:
    """One step, `rows` a GPU in bfloat16."""
    sizes = cost.Sizes(gpus, rows, dimension, bytes=2)
    pairs = rows * rows * gpus
    computing = pairs * work.per_pair(machine, dimension)
    sent = cost.gathered(sizes)
    # Derivatives of half precision are added up in single precision.
    bytes_sent = sent.forward + (gpus - 1) * sizes.wide
    gathering = bytes_sent / machine.collective(gpus) + 2 * machine.latency * max(1, gpus.bit_length() - 1)
    rounds = cost.rounds(work.loss)
    sweeps = pairs * (rounds - 1) * work.per_pair(machine, dimension, products=1)
    return Step(
        computing,
        gathering,
        computing + sweeps,
        cost.ring(sizes, work.loss).forward / machine.ring(gpus),
        rounds * gpus * machine.latency,
    )


def times(machine: Machine, rows: int = 1024, dimension: int = 512) -> str:
    lines = [
        "| loss | GPUs | global batch | computing | gather: sending | gather: step | ring: sending | "
        "ring: step | sooner |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for work in WORKS:
        for gpus in GPUS:
            s = step(work, gpus, rows, dimension, machine)
            sooner = "ring" if s.ring < s.gather else "gather"
            numbers = (s.computing, s.gathering, s.gather, s.ring_sending, s.ring)
            shown = " | ".join(f"{x / MS:,.2f} ms" for x in numbers)
            lines.append(f"| {work.name} | {gpus:,} | {gpus * rows:,} | {shown} | {sooner} |")
    return "\n".join(lines)


def shares(machine: Machine, dimension: int = 512, gpus: int = 512) -> str:
    """The part of a gathered step that is spent sending, by the rows of a GPU."""
    lines = [
        f"| rows a GPU, {gpus} GPUs | computing | gather: sending | sending's share | ring: step | sooner |",
        "|--:|--:|--:|--:|--:|---|",
    ]
    work = WORKS[0]
    for rows in (64, 256, 1024, 4096, 16384):
        s = step(work, gpus, rows, dimension, machine)
        sooner = "ring" if s.ring < s.gather else "gather"
        lines.append(
            f"| {rows:,} | {s.computing / MS:,.2f} ms | {s.gathering / MS:,.2f} ms | "
            f"{s.gathering / s.gather:.0%} | {s.ring / MS:,.2f} ms | {sooner} |"
        )
    return "\n".join(lines)


def memory(dimension: int = 512, workspace: int = 256 << 20) -> str:
    lines = [
        "| global batch | GPUs | rows a GPU | gather | ring |",
        "|--:|--:|--:|--:|--:|",
    ]
    for batch, gpus in ((65_536, 8), (65_536, 64), (1_000_000, 8), (1_000_000, 64), (1_000_000, 512)):
        rows = -(-batch // gpus)
        sizes = cost.Sizes(gpus, rows, dimension, bytes=2)
        found = (cost.held(sizes, way, workspace) for way in ("gather", "ring"))
        shown = " | ".join(f"{x / 2**30:.2f} GiB" for x in found)
        lines.append(f"| {batch:,} | {gpus} | {rows:,} | {shown} |")
    return "\n".join(lines)


def proxies(dimension: int = 512, rows: int = 1024) -> str:
    """Sharded classes: parameters, their gradient and two moments in float32, and a step's row statistics."""
    lines = [
        "| classes | GPUs | proxies, gradient, Adam's moments a GPU | on one GPU | row statistics a step |",
        "|--:|--:|--:|--:|--:|",
    ]
    for classes, gpus in ((100_000, 8), (1_000_000, 8), (10_000_000, 8), (10_000_000, 64), (10_000_000, 512)):
        bytes_of_all = classes * dimension * 4 * 4
        statistics = gpus * rows * 3 * 4
        lines.append(
            f"| {classes:,} | {gpus} | {bytes_of_all / gpus / 2**30:.2f} GiB "
            f"| {bytes_of_all / 2**30:.1f} GiB | {statistics / 2**20:.2f} MiB |"
        )
    return "\n".join(lines)


def page(text: str) -> str:
    """The text of the page with its tables as they are now."""
    machine = Machine()
    made = {
        "times": times(machine), "shares": shares(machine), "memory": memory(), "proxies": proxies(),
    }  # fmt: skip
    for name, table in made.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        assert pattern.search(text), name
        text = pattern.sub(lambda m, table=table: m[1] + table + "\n" + m[2], text)
    return text


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    after = page(before)
    if "--check" in sys.argv:
        sys.exit(int(before != after))
    PAGE.write_text(after, encoding="utf-8")
