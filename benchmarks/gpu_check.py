"""Builds, tests, sanitizes and measures fastdml on the CUDA machine it is run on. No network.

    make gpu-check OUT=folder STAGES=build,first,test,sanitize,bench
    python benchmarks/gpu_check.py [OUTPUT] [--stages ...] [--limit SECONDS] [--resume ARCHIVE]
        [--budget STAGE=SECONDS]

Stages run in order, each within its own time and all of them within --limit; docs/gpu.md has the
commands for a machine that is there for a quarter of an hour.

    build     the extension, for the architecture of this device, with this python's torch
    first     benchmarks/first_light.py: every loss against float64, then times; no pytest
    test      every test marked gpu, in groups so that what ran counts where time runs out; the tile
              kernels' tests, compiled instead of interpreted
    sanitize  compute-sanitizer memcheck over small problems of every loss's row functor
    bench     losses against three bare products: row functors and tiles first, in one process; then
              plain torch and torch.compile beside them, checked against float64

OUTPUT (default ./gpu-check) gets three files: summary.txt with device and versions; gpu-verified.txt,
the losses and executors whose tests all passed (copied to fastdml/engine/gpu-verified.txt, it is what
`explain` and the status table go by); and gpu-check.tar.gz with everything else: a log per stage, a junit
file per group of tests, CSV and tables. What cannot run here is skipped and said so. The exit status is 1
where something failed.

Where time runs out, run it again: groups of tests and benchmarks that passed, of the same sources on the
same device, are not repeated. What passed is in the archive: the one in OUTPUT, or that of --resume.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Each fits into a command of ten minutes.
BUDGET = {"build": 300, "first": 360, "test": 540, "sanitize": 300, "bench": 540}
BASE_ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}

# Loss, dimensions, samples per class, and what its time may be, in times of the three products (None:
# measured only). In the order of what is wanted most: time may run out.
PAIRS = {512: 1.8, 1024: 1.5}
BENCHES: list[tuple[str, int, list[int], int, dict[int, float]]] = [
    ("multi_similarity:epsilon=0.1", 32768, [512, 1024], 4, PAIRS),
    ("smooth_ap", 32768, [512], 4, {512: 2.2}),
    ("sup_ap", 32768, [512], 4, {512: 2.2}),
    ("triplet_margin", 32768, [512], 4, {512: 2.2}),
    ("smooth_ap", 32768, [512], 64, {512: 5.0}),
    ("sup_ap", 32768, [512], 64, {512: 5.0}),
    ("triplet_margin", 32768, [512], 64, {512: 5.0}),
    ("contrastive", 32768, [512, 1024], 4, PAIRS),
    ("circle", 32768, [512, 1024], 4, PAIRS),
    # Whether sorting rows pays. None does so for classes beyond 256.
    ("smooth_ap:sort=true", 32768, [512], 64, {}),
    ("smooth_ap", 32768, [512], 512, {}),
    ("smooth_ap:sort=true", 32768, [512], 512, {}),
    ("smooth_ap:sort=false", 32768, [512], 512, {}),
    ("triplet_margin:sort=true", 32768, [512], 512, {}),
    ("triplet_margin", 32768, [512], 512, {}),
    ("triplet_margin:negatives=nearest,k=8", 8192, [512], 4, {}),
    ("triplet_margin:negatives=nearest,k=8,sort=false", 8192, [512], 4, {}),
    # Beside siglip-kernel and memeff, where they are.
    ("siglip", 65536, [768], 1, {768: 1.5}),
    ("info_nce:symmetric=true", 65536, [768], 1, {}),
    ("multi_similarity:epsilon=0.1", 8192, [128, 256], 4, {}),
    ("info_nce", 32768, [128, 512], 4, {}),
    ("smooth_ap", 4096, [128], 4, {}),
    ("multi_similarity:epsilon=0.1", 1024, [128], 4, {}),
]
# Beside them, where there is time left. pytorch-metric-learning is not on such a machine.
PEERS = ("siglip-kernel", "memeff")
CONTENDERS = ("native", "triton", *PEERS, "chunked", "torch-hand", "torch-compiled")
# Memory of a step beyond inputs and gradients, in MiB; accumulating gradients in float32 comes on top.
WORKSPACE = 256
# Packages without which a stage cannot run.
NEEDED = {
    "build": ("setuptools", "ninja", "pybind11"),
    "first": ("pytest", "hypothesis"),
    "test": ("pytest", "hypothesis"),
    "sanitize": ("pytest", "hypothesis"),
    "bench": ("rich",),
}


@dataclasses.dataclass
class Line:
    """One line of the closing table."""

    what: str
    status: str  # pass, FAIL, skipped, measured
    seconds: float = 0.0
    note: str = ""


class Done:
    """What passed in this folder before, with the same sources on the same device."""

    def __init__(self, path: Path, mark: str) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        self.path = path
        self.passed = set(lines[1:]) if lines[:1] == [mark] else set()
        path.write_text("".join(f"{line}\n" for line in (mark, *sorted(self.passed))))

    def __contains__(self, what: str) -> bool:
        return what in self.passed

    def add(self, what: str) -> None:
        self.passed.add(what)
        with open(self.path, "a") as file:
            file.write(f"{what}\n")


ARCHIVE = "gpu-check.tar.gz"
PLAIN = ("summary.txt", "gpu-verified.txt")  # also beside the archive


def pack(folder: Path, output: Path) -> None:
    """Everything in `folder` as one file, and what is looked at first. Whole at any moment."""
    output.mkdir(parents=True, exist_ok=True)
    made = output / f".{ARCHIVE}"
    with tarfile.open(made, "w:gz") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name)
    made.rename(output / ARCHIVE)
    for name in PLAIN:
        if (folder / name).exists():
            shutil.copyfile(folder / name, output / name)


def unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as held:
        held.extractall(folder, filter="data")


def workers() -> int:
    """Processes that test at once: compiling the tiles' kernels is most of the work. Two cores are left."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, cores - 2)


def fingerprint(device: Device) -> str:
    """Of everything that results depend on."""
    found = hashlib.sha256(f"{device.name} {device.versions}".encode())
    for folder in ("csrc", "fastdml", "tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".h", ".cuh", ".cu", ".cpp"):
                found.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return found.hexdigest()


class Run:
    """Runs commands of one stage into its log, within its time."""

    def __init__(self, stage: str, output: Path, budget: float, done: Done) -> None:
        self.done = done
        self.log = output / f"{stage}.log"
        self.log.touch()
        self.output = output
        self.end = time.monotonic() + budget

    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())

    def __call__(
        self, command: list[str], *, limit: float | None = None, **environment: str
    ) -> tuple[int | None, str]:
        """(exit status, or None where time ran out; output)."""
        limit = min(self.left(), limit or self.left())
        print("   ", " ".join(command)[:150], flush=True)
        with open(self.log, "a") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            start = log.tell()
            # A session of its own: what it started (workers, compilers) ends with it.
            with subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, **BASE_ENVIRONMENT, **environment},
            ) as child:  # fmt: skip
                try:
                    code: int | None = child.wait(max(1.0, limit))
                except subprocess.TimeoutExpired:
                    code = None
                    os.killpg(child.pid, signal.SIGKILL)
                    log.write(f"\n[stopped after {limit:.0f} s]\n")
        with open(self.log, errors="replace") as log:
            log.seek(start)
            return code, log.read()


@dataclasses.dataclass(frozen=True)
class Device:
    name: str
    capability: str  # "90"
    versions: str
    torch: str = "cuda"  # torch's name for it

    @staticmethod
    def find() -> Device | None:
        """The CUDA device torch would use. Asked in a process of its own."""
        code = (
            "import sys, torch\n"
            "if torch.cuda.is_available():\n"
            "    print(torch.cuda.get_device_name(), '%d%d' % torch.cuda.get_device_capability(), "
            "f'torch {torch.__version__}, CUDA {torch.version.cuda}, Python {sys.version.split()[0]}', "
            "sep='|')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        fields = done.stdout.strip().split("|")
        return Device(*fields) if len(fields) == 3 else None

    def describe(self) -> str:
        try:
            commit = subprocess.run(
                ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
            ).stdout.strip()
        except OSError:  # a machine that only runs things need not have it
            commit = ""
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        return f"{self.name}, sm_{self.capability}, {self.versions}, commit {commit or 'unknown'}, {when}"


def architecture(capability: str) -> str:
    """What to compile for on one device: its own architecture, with Hopper's and later's own features."""
    return f"{capability}a" if int(capability) >= 90 else capability


def build(run: Run, device: Device) -> Iterator[Line]:
    start = time.monotonic()
    code, _ = run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        FASTDML_BUILD="cuda",
        FASTDML_CUDA_ARCH=architecture(device.capability),
    )
    took = time.monotonic() - start
    if code != 0:
        yield Line("build", "FAIL", took, "out of time" if code is None else f"see {run.log.name}")
        return
    yield Line("build", "pass", took)
    code, text = run(
        [sys.executable, "-c", "from fastdml.engine import library; print(library.build_info())"]
    )
    good = code == 0 and "'cuda_kernels': True" in text
    yield Line("library loads with CUDA kernels", "pass" if good else "FAIL")
    if good:
        code, _ = run([sys.executable, "benchmarks/cuda_resources.py", "--jobs=8", "--losses",
                       "multi_similarity", "smooth_ap", "proxy_anchor", "auc"])  # fmt: skip
        yield Line("kernels without spills (four losses)", "pass" if code == 0 else "FAIL")


def first(run: Run, device: Device) -> Iterator[Line]:
    """Most of the time for whether results are right; the rest for times."""
    yield from light(run, device, "right", run.left() * 0.65)
    yield from light(run, device, "fast", run.left())


def light(run: Run, device: Device, what: str, limit: float) -> Iterator[Line]:
    """A half of benchmarks/first_light.py."""
    name = f"first light: {what}"
    if name in run.done:
        yield Line(name, "pass", note="earlier")
        return
    if limit < 30:
        yield Line(name, "skipped", note="out of time")
        return
    start = time.monotonic()
    code, text = run(
        [sys.executable, "benchmarks/first_light.py", what, f"--device={device.torch}",
         f"--seconds={limit - 20:.0f}",  # it finishes what it has begun
         f"--workers={workers()}", f"--output={run.output}"],
        limit=limit,
    )  # fmt: skip
    took = time.monotonic() - start
    wrong = re.findall(r"^(?:WRONG|BITS|FAIL).*|^.*\| \w+ FAIL .*", text, re.M)
    late = re.findall(r"^out of time.*", text, re.M)
    for line in re.findall(r"^.*\| gemm .*", text, re.M):
        yield Line(f"  {line}", "measured")
    for line in wrong[:40]:
        yield Line(f"  {line}", "FAIL")
    for line in late:
        yield Line(f"  {line}", "skipped")
    if code == 0 and not late:
        run.done.add(name)
    note = "out of time" if code is None or late else f"{len(wrong)} wrong" if wrong else ""
    yield Line(name, "pass" if code == 0 else "FAIL", took, note)


NATIVE = "tests/cuda/test_gpu_native.py"
TILES = "tests/tiles"
# (name, executor that it speaks for, arguments of pytest). What matters most comes first.
GROUPS: list[tuple[str, str, list[str]]] = [
    ("native against float64", "native", [NATIVE, "-k", "float64_is_the_dense_form"]),
    ("native in float32, float16, bfloat16", "native", [NATIVE, "-k", "narrow_types"]),
    (
        "tile kernels, compiled",
        "triton",
        [f"{TILES}/test_gpu_losses.py", f"{TILES}/test_tiles.py", f"{TILES}/test_executor.py"],
    ),
    ("tile kernels on a GPU", "", [f"{TILES}/test_gpu.py"]),
    (
        "native: bits, sizes, graphs, memory, streams",
        "native",
        [NATIVE, "-k", "not float64_is_the_dense_form and not narrow_types"],
    ),
]


def test(run: Run, device: Device) -> Iterator[Line]:
    spread = ["-n", str(workers())] if importlib.util.find_spec("xdist") else ["-p", "no:xdist"]
    verified: dict[str, dict[str, bool]] = {"native": {}, "triton": {}}
    stopped: set[str] = set()
    for k, (name, executor, arguments) in enumerate(GROUPS):
        if not all((ROOT / a).exists() for a in arguments if a.endswith(".py")):
            yield Line(name, "skipped", note="not there")
            continue
        report = run.output / f"junit-{k}.xml"
        earlier = name in run.done and report.exists()
        if not earlier and run.left() < 15:
            yield Line(name, "skipped", note="out of time")
            stopped.add(executor)
            continue
        start = time.monotonic()
        code: int | None = 0
        if not earlier:
            report.unlink(missing_ok=True)
            code, _ = run(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                 f"--junitxml={report}", *spread, "--maxfail=60", *arguments],
                OMP_NUM_THREADS="1",
            )  # fmt: skip
        took = time.monotonic() - start
        if code is None or not report.exists():
            yield Line(name, "FAIL", took, "out of time" if code is None else f"see {run.log.name}")
            stopped.add(executor)  # what was not seen cannot count
            continue
        suite = ElementTree.parse(report).getroot().find("testsuite")
        assert suite is not None
        note = ", ".join(f"{suite.get(c)} {c}" for c in ("tests", "failures", "errors", "skipped"))
        if suite.get("tests") == suite.get("skipped"):
            yield Line(name, "skipped", took, note)
            continue
        if earlier:
            note += ", earlier"
        elif code == 0:
            run.done.add(name)
        if executor:
            tally(suite, executor, verified[executor])
        yield Line(name, "pass" if code == 0 else "FAIL", took, note)
    lines = sorted(
        f"{loss} {executor}"
        for executor, found in verified.items()
        for loss, ok in found.items()
        if ok and executor not in stopped
    )
    (run.output / "gpu-verified.txt").write_text("".join(f"{line}\n" for line in lines))


def tally(suite: ElementTree.Element, executor: str, found: dict[str, bool]) -> None:
    """Whether every test of a loss passed, by name. Tests name the loss in their parameters."""
    from fastdml.engine.registry import LOSSES

    for case in suite.iter("testcase"):
        if case.find("skipped") is not None:
            continue
        parts = re.split(r"[\[\]\-:.]", case.get("name", ""))
        if executor == "native" and {"dense", "chunked"} & set(parts):
            continue
        passed = case.find("failure") is None and case.find("error") is None
        for loss in {part.rstrip("0123456789") for part in parts} & set(LOSSES):
            found[loss] = found.get(loss, True) and passed


def sanitize(run: Run, device: Device) -> Iterator[Line]:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        yield Line("sanitize", "skipped", note="compute-sanitizer is not installed")
        return
    # Row functors alone: Triton would compile inside the sanitizer.
    what = "memcheck native"
    if what in run.done:
        yield Line(what, "pass", note="earlier")
        return
    start = time.monotonic()
    code, text = run(
        [tool, "--tool=memcheck", "--error-exitcode=9", "--print-limit=20", sys.executable,
         str(Path(__file__).resolve()), "--small-problems", "native"],
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )  # fmt: skip
    took = time.monotonic() - start
    note = "; ".join(re.findall(r"ERROR SUMMARY: (.*)", text))
    if "Device not supported" in text or "Failed to initialize" in text:
        yield Line(what, "skipped", took, "the tool refuses this machine")
    elif code == 5:
        yield Line(what, "skipped", took, "no compiled functors for CUDA")
    else:
        if code == 0:
            run.done.add(what)
        yield Line(
            what, "pass" if code == 0 else "FAIL", took, "out of time" if code is None else note
        )


def bench(run: Run, device: Device) -> Iterator[Line]:
    from fastdml.bench.contenders import CONTENDERS as known
    from fastdml.engine.registry import LOSSES

    # A few seconds a line, in one process. Below, every contender has one of its own.
    yield from light(run, device, "fast", run.left() / 3)
    options = [f"--contender={c}" for c in CONTENDERS if c in known]
    for loss, size, dims, per_class, _ in BENCHES:
        name = loss.partition(":")[0]
        label = f"{re.sub('[:,=]', '-', loss)}-{size}-{per_class}"
        if name not in LOSSES:
            yield Line(f"bench {label}", "skipped", note="no such loss")
            continue
        results = run.output / f"cuda-{label}.csv"
        if label in run.done and results.exists():
            yield Line(f"bench {label}", "pass", note="earlier")
            yield from against_floor(results, loss, size, per_class)
            continue
        if run.left() < 20:
            yield Line(f"bench {label}", "skipped", note="out of time")
            continue
        start = time.monotonic()
        code, _ = run(
            [sys.executable, "-m", "fastdml", "bench", "--device=cuda", "--dtype=bfloat16",
             f"--loss={loss}", f"--batch={size}", f"--dim={','.join(map(str, dims))}",
             f"--per-class={per_class}", "--budget=5", "--timeout=30", *options,
             f"--output={run.output}", f"--name=cuda-{label}"]
        )  # fmt: skip
        if code == 0:
            run.done.add(label)
        status = "pass" if code == 0 else "FAIL"
        note = "out of time" if code is None else ""
        yield Line(f"bench {label}", status, time.monotonic() - start, note)
        yield from against_floor(results, loss, size, per_class)
    if "crossover table" in run.done:
        yield Line("crossover table", "pass", note="earlier")
        return
    if run.left() < 30:
        yield Line("crossover table", "skipped", note="out of time")
        return
    start = time.monotonic()
    seconds = f"--seconds={max(10.0, run.left() - 20):.0f}"
    code, _ = run([sys.executable, "benchmarks/crossover.py", str(run.output), seconds])
    if code == 0:
        run.done.add("crossover table")
    status = "pass" if code == 0 else "FAIL"
    yield Line("crossover table", status, time.monotonic() - start, "crossover-measured.txt")


def against_floor(path: Path, loss: str, size: int, per_class: int) -> Iterator[Line]:
    """Times against the three products, and whether they are what is asked for."""
    if not path.exists():
        return
    wanted = {
        d: limit
        for name, b, _, k, limits in BENCHES
        if (name, b, k) == (loss, size, per_class)
        for d, limit in limits.items()
    }
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for d in sorted({int(r["dim"]) for r in rows}):
        ours = {
            r["contender"]: float(r["ratio"])
            for r in rows
            if int(r["dim"]) == d and r["ratio"] and r["status"] == "ok"
        }
        text = ", ".join(
            f"{who} {ratio:.2f}" for who, ratio in sorted(ours.items(), key=lambda p: p[1])
        )
        best = min((ours[c] for c in ("native", "triton") if c in ours), default=None)
        limit = wanted.get(d)
        status = "pass" if best is not None and (limit is None or best <= limit) else "FAIL"
        aim = "" if limit is None else f" (at most {limit})"
        yield Line(f"  x floor, D={d}", status, 0.0, text + aim)
        held = {
            r["contender"]: float(r["extra_mib"])
            for r in rows
            if int(r["dim"]) == d and r["contender"] in ("native", "triton") and r["extra_mib"]
        }
        most = WORKSPACE + 4 * size * d / 2**20
        if held:
            status = "pass" if max(held.values()) <= most else "FAIL"
            text = ", ".join(f"{who} {mib:.0f}" for who, mib in sorted(held.items()))
            yield Line(f"  MiB, D={d}", status, 0.0, f"{text} (at most {most:.0f})")


STAGES: dict[str, Callable[[Run, Device], Iterator[Line]]] = {
    "build": build,
    "first": first,
    "test": test,
    "sanitize": sanitize,
    "bench": bench,
}


def small_problems(backend: str) -> int:
    """Every loss once, small and ragged: what the sanitizers watch. 5: nothing can run."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "cuda")]
    import torch
    from conftest import CASES, EXAMPLES, call
    from test_gpu_native import given_on_gpu

    ran = 0
    for parameter in EXAMPLES:
        description = parameter.values[0]
        for dtype in (torch.float32, torch.bfloat16):
            case = CASES["ragged"]().to(dtype)
            try:
                call(description, given_on_gpu(description, case), backend)
            except ValueError as error:  # this executor does not have this loss
                print(f"{description.name}: {error}")
                continue
            torch.cuda.synchronize()
            ran += 1
    print(f"{ran} problems")
    return 0 if ran else 5


def table(lines: list[Line]) -> str:
    wide = max((len(line.what) for line in lines), default=0)
    return "\n".join(
        f"{line.what:{wide}}  {line.status:8}{line.seconds:7.1f} s  {line.note}".rstrip()
        for line in lines
    )


def carried_out(
    device: Device, stages: list[str], budget: dict[str, int], options: argparse.Namespace
) -> list[Line]:
    """The lines of all stages. What there is of results is in OUTPUT after each of them."""
    output = options.output.resolve()
    end = time.monotonic() + (options.limit or sum(budget.values()))
    print(f"{device.describe()}; results go to {output}")
    sys.path.insert(0, str(ROOT))
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        earlier = options.resume or output / ARCHIVE
        if earlier.exists():
            unpack(earlier, folder)
        elif options.resume:
            print(f"--resume: there is no {earlier}; nothing counts as done")
        done = Done(folder / "done.txt", fingerprint(device))
        for stage in stages:
            seconds = min(float(budget[stage]), end - time.monotonic())
            if lacking := [m for m in NEEDED[stage] if not importlib.util.find_spec(m)]:
                lines.append(Line(stage, "skipped", note=f"needs {', '.join(lacking)}"))
                continue
            if seconds < 10:
                lines.append(Line(stage, "skipped", note="out of time"))
                continue
            print(f"{stage}, {seconds:.0f} s at most", flush=True)
            for line in STAGES[stage](Run(stage, folder, seconds, done), device):
                lines.append(line)
                # A window may close at any time.
                (folder / "summary.txt").write_text(f"{device.describe()}\n{table(lines)}\n")
                pack(folder, output)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", nargs="?", type=Path, default=Path("gpu-check"))
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--budget", action="append", default=[], metavar="STAGE=SECONDS")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="of all stages together")
    parser.add_argument("--resume", type=Path, metavar="ARCHIVE",
                        help="what an earlier call has left (default: the one in OUTPUT)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    parser.add_argument("--without-device", metavar="ARCH", help=argparse.SUPPRESS)
    parser.add_argument("--small-problems", metavar="BACKEND", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.small_problems:
        return small_problems(options.small_problems)
    stages = [s for s in options.stages.split(",") if s]
    if unknown := [s for s in stages if s not in STAGES]:
        parser.error(f"--stages: expected some of {', '.join(STAGES)}, got {', '.join(unknown)}")
    budget = dict(BUDGET)
    for text in options.budget:
        stage, _, seconds = text.partition("=")
        if stage not in STAGES or not seconds.isdigit():
            parser.error(f"--budget: expected STAGE=SECONDS, got {text!r}")
        budget[stage] = int(seconds)

    found = Device.find() if importlib.util.find_spec("torch") else None
    if found is None and options.without_device:
        found = Device("no device", options.without_device, "a trial of this script", "cpu")
    if found is None:
        lines = [Line(stage, "skipped", note="no GPU") for stage in stages]
    elif options.dry_run:
        lines = [
            Line(stage, "skipped", note=f"would run, {budget[stage]} s at most") for stage in stages
        ]
    else:
        lines = carried_out(found, stages, budget, options)
    print(table(lines))
    return int(any(line.status == "FAIL" for line in lines))


if __name__ == "__main__":
    raise SystemExit(main())
