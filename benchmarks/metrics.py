"""Retrieval metrics beside the least anything exact can cost: a blocked product and torch's top-k, and faiss.

    python benchmarks/metrics.py                      60,502 x 60,502, D=128, and a mapped gallery of 10^6
    python benchmarks/metrics.py --small              the same at a size that takes seconds
    python benchmarks/metrics.py --out FOLDER         where metrics.csv and metrics.md go

Contenders take turns in one process, so that a ratio compares neighbours in time; each turn is written to
metrics.csv at once, and a run that was stopped goes on where it stood (--fresh begins anew). Memory is that
of a process of its own: the most it held during the work beyond what it held before, its inputs in memory.
What a mapped file occupies of the page cache is the system's to reclaim and is given apart.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

D = 128
K = 10
FULL = {"items": 60502, "gallery": 1_000_000, "queries": 1000}
SMALL = {"items": 4000, "gallery": 60_000, "queries": 200}
RANKED = ("recall", "precision", "r_precision", "map@r", "map", "ndcg", "mrr")
EVERY = (*RANKED, "auc", "tar@far", "alignment", "uniformity")
FIELDS = ("problem", "contender", "turn", "threads", "seconds", "peak_mib", "mapped_mib", "check")


def data(items: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows in classes of 2 to 12, as in Stanford Online Products' test split, mean 5.3."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(2 + rng.poisson(3.35, items), 12)
    y = np.repeat(np.arange(len(sizes)), sizes)[:items]
    centres = rng.standard_normal((y.max() + 1, D), dtype=np.float32)
    x = centres[y] + 1.35 * rng.standard_normal((items, D), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    order = rng.permutation(items)
    return x[order], y[order]


def ours_all(x: np.ndarray, y: np.ndarray) -> float:
    from fastdml.metrics import evaluate

    return evaluate(x, y, metrics=EVERY, k=(1, 10, 100, 1000))["recall@1"]


def ours_ranked(x: np.ndarray, y: np.ndarray) -> float:
    from fastdml.metrics import evaluate

    return evaluate(x, y, metrics=RANKED, k=(1, 10, 100, 1000))["recall@1"]


def ours_nearest(x: np.ndarray, y: np.ndarray) -> float:
    from fastdml.metrics import nearest_neighbours

    return float((y[nearest_neighbours(x, K)[:, 0]] == y).mean())


def bare(x: np.ndarray, y: np.ndarray, k: int = K) -> float:
    """A blocked product and torch.topk: no metric, and each row's own copy still among its neighbours."""
    import torch

    t = torch.from_numpy(x)
    rows, hits = 256, 0
    block = torch.empty(rows, len(t))
    for start in range(0, len(t), rows):
        part = block[: min(rows, len(t) - start)]
        torch.mm(t[start : start + len(part)], t.T, out=part)
        second = part.topk(k + 1, dim=1).indices[:, 1].numpy()
        hits += int((y[second] == y[start : start + len(part)]).sum())
    return hits / len(t)


def faiss_nearest(x: np.ndarray, y: np.ndarray) -> float:
    import faiss

    index = faiss.IndexFlatIP(D)
    index.add(x)
    return float((y[index.search(x, K + 1)[1][:, 1]] == y).mean())


def ours_calculator(x: np.ndarray, y: np.ndarray) -> float:
    from fastdml.metrics import AccuracyCalculator

    calculator = AccuracyCalculator(exclude=("NMI", "AMI"), k="max_bin_count")
    return calculator.get_accuracy(x, y)["precision_at_1"]


def their_calculator(x: np.ndarray, y: np.ndarray) -> float:
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    calculator = AccuracyCalculator(exclude=("NMI", "AMI"), k="max_bin_count")
    return calculator.get_accuracy(x, y)["precision_at_1"]


BARE = f"bare: product, torch.topk {K}"
ONE_SET: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    BARE: bare,
    "fastdml, all metrics": ours_all,
    "fastdml, metrics of rankings": ours_ranked,
    f"fastdml, {K} nearest": ours_nearest,
    f"faiss IndexFlatIP, {K} nearest": faiss_nearest,
    "fastdml AccuracyCalculator": ours_calculator,
    "pytorch-metric-learning AccuracyCalculator": their_calculator,
}
MAPPED = ("fastdml, all metrics", f"fastdml, {K} nearest")


def mapped(contender: str, folder: Path, size: dict[str, int]) -> float:
    """Queries in memory against a gallery in a mapped file."""
    from fastdml.metrics import evaluate, nearest_neighbours

    gallery = np.load(folder / "gallery.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")
    rng = np.random.default_rng(1)
    chosen = np.sort(rng.choice(len(gallery), size["queries"], replace=False))
    queries, wanted = np.array(gallery[chosen]), labels[chosen]
    if contender == MAPPED[0]:
        found = evaluate(queries, wanted, gallery, labels, metrics=EVERY, k=(1, 10, 100, 1000),
                         own_index=chosen)  # fmt: skip
        return found["recall@1"]
    nearest = nearest_neighbours(queries, K, gallery, own_index=chosen)
    return float((labels[nearest[:, 0]] == wanted).mean())


def write_gallery(folder: Path, count: int) -> None:
    """A file larger than what is held while it is written."""
    if (folder / "labels.npy").exists():
        return
    out = np.lib.format.open_memmap(folder / "gallery.npy", "w+", np.float32, (count, D))
    labels = np.empty(count, dtype=np.int64)
    step = 50_000
    for part, start in enumerate(range(0, count, step)):
        x, y = data(min(step, count - start), seed=part)
        out[start : start + len(x)], labels[start : start + len(x)] = x, y + start
    out.flush()
    np.save(folder / "labels.npy", labels)


def status(name: str) -> float:
    """A field of this process's status, in MiB."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name + ":"))


def peak_of(work: Callable[[], float]) -> tuple[float, float]:
    """(memory of this process's own, pages of files) it held at most beyond before, in MiB, sampled."""
    before = status("RssAnon"), status("RssFile")
    most, done = list(before), threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            for i, name in enumerate(("RssAnon", "RssFile")):
                most[i] = max(most[i], status(name))

    watcher = threading.Thread(target=watch)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return most[0] - before[0], most[1] - before[1]


def measure_memory(problem: str, contender: str, size: dict[str, int], folder: Path) -> tuple[float, float]:
    """Runs one contender in a process of its own."""
    command = [sys.executable, __file__, "--memory", problem, contender, "--scratch", str(folder)]
    command += ["--small"] if size is SMALL else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    own, files = done.stdout.split()[-2:]
    return float(own), float(files)


def memory_of(problem: str, contender: str, size: dict[str, int], folder: Path) -> None:
    if problem == "mapped":
        warm = {"queries": 10}
        mapped(contender, _warm_gallery(folder), warm)
        work = lambda: mapped(contender, folder, size)  # noqa: E731
    else:
        x, y = data(size["items"])
        ONE_SET[contender](x[:500].copy(), y[:500] // 5)  # libraries are loaded, threads started
        work = lambda: ONE_SET[contender](x, y)  # noqa: E731
    own, files = peak_of(work)
    print(f"{own:.1f} {files:.1f}")


def _warm_gallery(folder: Path) -> Path:
    small = folder / "warm"
    small.mkdir(exist_ok=True)
    write_gallery(small, 500)
    return small


class Record:
    """Turns so far, in a file that grows by a line each."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self._path = path
        if fresh or not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                csv.DictWriter(file, FIELDS).writeheader()
        with path.open(newline="") as file:
            self.rows = list(csv.DictReader(file))

    def has(self, problem: str, contender: str, turn: int | str) -> bool:
        key = (problem, contender, str(turn))
        return any((r["problem"], r["contender"], r["turn"]) == key for r in self.rows)

    def add(self, **row: object) -> None:
        row = {field: row.get(field, "") for field in FIELDS}
        self.rows.append({k: str(v) for k, v in row.items()})
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS).writerow(row)


def run(size: dict[str, int], turns: int, record: Record, folder: Path) -> None:
    import torch

    threads = torch.get_num_threads()
    problem = f"{size['items']} x {size['items']}"
    x, y = data(size["items"])
    available = dict(ONE_SET)
    for package, names in (("faiss", [n for n in ONE_SET if "faiss" in n or "pytorch" in n]),):
        try:
            __import__(package)
        except ImportError:
            print(f"{package} is not installed: without it")
            for name in names:
                available.pop(name, None)
    for turn in range(turns):
        for contender, work in available.items():
            if record.has(problem, contender, turn):
                continue
            if turn == 0:
                work(x[:500].copy(), y[:500] // 5)
            start = time.perf_counter()
            check = work(x, y)
            seconds = time.perf_counter() - start
            record.add(problem=problem, contender=contender, turn=turn, threads=threads,
                       seconds=f"{seconds:.4f}", check=f"{check:.6f}")  # fmt: skip
            print(f"{problem}  turn {turn}  {contender:<44} {seconds:9.2f} s", flush=True)
    for contender in available:
        if not record.has(problem, contender, "memory"):
            own, files = measure_memory("one set", contender, size, folder)
            record.add(problem=problem, contender=contender, turn="memory", threads=threads,
                       peak_mib=f"{own:.1f}", mapped_mib=f"{files:.1f}")  # fmt: skip
            print(f"{problem}  memory  {contender:<44} {own:9.1f} MiB", flush=True)
    problem = f"{size['queries']} x {size['gallery']}, mapped"
    missing = [c for c in MAPPED if not record.has(problem, c, "memory") or not record.has(problem, c, 0)]
    if missing:
        write_gallery(folder, size["gallery"])
    for contender in missing:
        start = time.perf_counter()
        check = mapped(contender, folder, size)
        seconds = time.perf_counter() - start
        record.add(problem=problem, contender=contender, turn=0, threads=threads,
                   seconds=f"{seconds:.4f}", check=f"{check:.6f}")  # fmt: skip
        own, files = measure_memory("mapped", contender, size, folder)
        record.add(problem=problem, contender=contender, turn="memory", threads=threads,
                   peak_mib=f"{own:.1f}", mapped_mib=f"{files:.1f}")  # fmt: skip
        print(f"{problem}  {contender:<44} {seconds:9.2f} s {own:9.1f} MiB", flush=True)


def table(record: Record) -> str:
    """The results as a table in Markdown; ratios are medians of ratios within a turn."""
    lines = ["| problem | contender | median | to bare | own memory | pages of the file | recall@1 |",
             "|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    problems = list(dict.fromkeys(r["problem"] for r in record.rows))
    for problem in problems:
        rows = [r for r in record.rows if r["problem"] == problem]
        times = {(r["contender"], r["turn"]): float(r["seconds"]) for r in rows if r["seconds"]}
        for contender in dict.fromkeys(r["contender"] for r in rows):
            own = [t for (c, _), t in times.items() if c == contender]
            ratios = [t / times[BARE, turn] for (c, turn), t in times.items()
                      if c == contender and (BARE, turn) in times]  # fmt: skip
            memory = [r for r in rows if r["contender"] == contender and r["peak_mib"]]
            check = next((r["check"] for r in rows if r["contender"] == contender and r["check"]), "")
            ratio = f"{statistics.median(ratios):.2f}" if ratios else ""
            mib = [f"{float(memory[-1][f]):.0f} MiB" if memory else "" for f in ("peak_mib", "mapped_mib")]
            median = f"{statistics.median(own):.2f} s" if own else ""
            lines.append(
                f"| {problem} | {contender} | {median} | {ratio} | {mib[0]} | "
                f"{mib[1] if 'mapped' in problem else ''} | {check} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a size that takes seconds")
    parser.add_argument("--turns", type=int, default=3, help="of each contender (default 3)")
    parser.add_argument("--threads", type=int, help="of torch and faiss (default: torch's)")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results"), help="folder of the results")
    parser.add_argument("--note", default="", help="a line above the table")
    parser.add_argument("--fresh", action="store_true", help="forget turns measured before")
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help="folder for the mapped gallery (default: a temporary one)")
    arguments = parser.parse_args()
    size = SMALL if arguments.small else FULL
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
        import torch

        torch.set_num_threads(arguments.threads)
    if arguments.memory:
        return memory_of(*arguments.memory, size, Path(arguments.scratch))
    record = Record(Path(arguments.out) / "metrics.csv", arguments.fresh)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.scratch or temporary)
        run(size, arguments.turns, record, folder)
    shown = table(record)
    print(shown)
    note = f"{arguments.note}\n\n" if arguments.note else ""
    text = f"# Retrieval metrics\n\n{__doc__.split(chr(10) * 2)[-1].strip()}\n\n{note}{shown}\n"
    (Path(arguments.out) / "metrics.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
