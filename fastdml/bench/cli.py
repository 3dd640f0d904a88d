"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..command_line import device as device_name
from ..command_line import end, integer, make_folder, number, several
from . import catalogue, contenders, kernels, plot, presets, record, report
from .device import device
from .extras import require
from .measure import Settings, measure
from .presets import Case
from .record import Record
from .requirement import Requirement
from .workload import Workload, parse_loss

_ABOUT = """\
Measures one training step of a loss, forward and backward, against the three bare matrix products
of the same problem (the floor), against plain torch and against pytorch-metric-learning. All
contenders run in turn in one process; ratios are taken round by round. Peak memory is measured for
every contender in a process of its own. Every result is compared with float64 first: no time is
reported of a wrong one, and the exit status is then 1.
"""


# Presets with what judges their records.
Judged = Mapping[str, tuple[Callable[[], list[Case]], Callable[[Sequence[Record]], list[Requirement]]]]


def _presets(judged: Judged | None) -> dict[str, Callable[[], list[Case]]]:
    return {**presets.PRESETS, **{name: make for name, (make, _) in (judged or {}).items()}}


def parser(judged: Judged | None = None) -> argparse.ArgumentParser:
    who = "\n".join(f"  {name:15}{text}" for name, text in contenders.MEANING.items())
    found = argparse.ArgumentParser(
        prog="python -m fastdml bench",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"contenders:\n{who}\n\nlosses:\n  {', '.join(catalogue.measurable())}",
    )
    what = found.add_argument_group("what")
    known = _presets(judged)
    about = "; ".join(f"{k}: {(f.__doc__ or '').rstrip('.')}" for k, f in known.items())
    what.add_argument("--preset", choices=sorted(known), help=f"problems of sizes of their own. {about}")
    what.add_argument(
        "--loss", action="append", metavar="NAME[:KEY=VALUE,...]",
        help="a registered loss, with arguments; repeatable; 'all'. Example: "
        "multi_similarity:epsilon=0.1. With --preset: only these losses of it",
    )  # fmt: skip
    what.add_argument(
        "--contender", action="append", metavar="NAME",
        help="who is measured beside the floor; repeatable (default: native chunked torch "
        "torch-hand pml, or what the preset says)",
    )  # fmt: skip
    what.add_argument("--batch", type=several(integer(1)), metavar="B,...",
                      help="batch sizes (default 4096)")  # fmt: skip
    what.add_argument("--candidates", type=integer(1), metavar="N", help="compare with N other embeddings")
    what.add_argument("--dim", type=several(integer(1)), metavar="D,...",
                      help="embedding dimensions (default 128)")  # fmt: skip
    what.add_argument("--per-class", type=several(integer(1)), metavar="K,...",
                      help="samples per class (default 4)")  # fmt: skip
    what.add_argument("--classes", type=integer(1), metavar="C",
                      help="proxies of proxy losses (default 1000)")  # fmt: skip
    what.add_argument("--dtype", default="float32",
                      choices=["float64", "float32", "float16", "bfloat16"])  # fmt: skip
    what.add_argument("--device", type=device_name, default="cpu", help="cpu, cuda or cuda:1 (default cpu)")
    what.add_argument("--spread", type=number(0, finite=False), default=2.0,
                      help="distance of embeddings from their class centre: 0.5 is well trained, 2 "
                      "(default) early in training, inf random")  # fmt: skip
    what.add_argument("--seed", type=integer(0), default=0)
    what.add_argument("--kernels", action="store_true",
                      help="instead: the compiled row functors alone")  # fmt: skip
    how = found.add_argument_group("how")
    how.add_argument("--threads", type=integer(1, 1024), help="of torch (default: torch's; --kernels: 1)")
    how.add_argument("--budget", type=number(0, above=True), metavar="SECONDS",
                     help="of timing per problem (default 10, or what the preset says; up to three "
                     "times that while the spread is large)")  # fmt: skip
    how.add_argument("--memory-limit", type=number(0, above=True), metavar="GIB",
                     help="of one step (default: two thirds of what is available)")  # fmt: skip
    how.add_argument("--timeout", type=number(0, above=True), default=60.0, metavar="SECONDS",
                     help="of one step (default 60)")  # fmt: skip
    out = found.add_argument_group("results")
    out.add_argument("--output", type=Path, default=Path("bench-output"), metavar="FOLDER",
                     help="for NAME.csv, .md and .png (default ./bench-output)")  # fmt: skip
    out.add_argument("--name", default=None, help="of the files (default: the preset, or 'bench')")
    out.add_argument("--replot", type=Path, metavar="CSV", help="only draw the plot of results")
    out.add_argument("--strict", action="store_true",
                     help="exit status 2 if a requirement of the preset is missed")  # fmt: skip
    return found


def cases(options: argparse.Namespace, judged: Judged | None = None) -> list[Case]:
    """The problems asked for. Raises ValueError for unknown names."""
    for name in options.contender or ():
        if name not in contenders.CONTENDERS:
            raise ValueError(
                f"--contender: expected one of {', '.join(contenders.CONTENDERS)}, got {name!r}"
            )
    asked = [parse_loss(text) for text in options.loss or ()]
    for name, _ in asked:
        if name != "all":
            catalogue.check_loss(name)
    if options.preset:
        return _of_preset(_presets(judged)[options.preset](), asked, options)
    if not asked or ("all", ()) in asked:
        asked = [(name, presets.USUAL.get(name, ())) for name in catalogue.measurable()]
    names = tuple(options.contender or ("native", "chunked", "torch", "torch-hand", "pml"))
    per_class, dim, batch = options.per_class or [4], options.dim or [128], options.batch or [4096]
    candidates, classes = options.candidates, options.classes or 1000
    return [
        (_on(Workload(loss, b, d, k, candidates, classes, options=arguments), options), names)
        for (loss, arguments), k, d, b in itertools.product(asked, per_class, dim, batch)
    ]


def _of_preset(
    known: list[Case], asked: list[tuple[str, Any]], options: argparse.Namespace
) -> list[Case]:
    """Those asked for of a preset's problems, which have sizes and arguments of their own."""
    for name in ("batch", "candidates", "dim", "per_class", "classes"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: expected without --preset, which has its own")
    there = {w.loss for w, _ in known}
    for name, arguments in asked:
        if arguments or name not in {"all", *there}:
            raise ValueError(
                f"--loss: expected of --preset {options.preset} all or some of {', '.join(sorted(there))}, "
                f"without arguments, got {name!r}{' with some' if arguments else ''}"
            )
    kept = {name for name, _ in asked}
    return [
        (_on(w, options), tuple(options.contender or names))
        for w, names in known
        if not kept or "all" in kept or w.loss in kept
    ]


def _on(workload: Workload, options: argparse.Namespace) -> Workload:
    return dataclasses.replace(
        workload,
        dtype=options.dtype,
        device=options.device,
        spread=options.spread,
        seed=options.seed,
    )


def main(argv: Sequence[str] | None = None, judged: Judged | None = None) -> int:
    """The command line. judged: further presets, each with what judges its records."""
    options_parser = parser(judged)
    options = options_parser.parse_args(argv)

    def command() -> int:
        try:
            if options.replot:
                return _replot(options)
            if options.kernels:
                return _kernels(options)
            return _bench(options, judged)
        except ValueError as error:
            options_parser.error(str(error))
        except ImportError as error:  # rich, matplotlib
            options_parser.exit(1, f"{options_parser.prog}: {error}\n")

    return end(options_parser.prog, command)


def _bench(options: argparse.Namespace, judged: Judged | None = None) -> int:
    console = _console()
    bars = require("rich.progress")
    chosen = cases(options, judged)
    on = device(options.device)
    make_folder(options.output, "--output")
    if options.threads:
        torch.set_num_threads(options.threads)
    limit = options.memory_limit * 2**30 if options.memory_limit else on.available() * 2 / 3
    budget = options.budget or presets.BUDGET.get(options.preset, 10.0)
    settings = Settings(torch.get_num_threads(), budget, int(limit), options.timeout)
    environment = record.environment(on)
    name = options.name or options.preset or "bench"
    groups: list[list[Record]] = []
    failures = 0
    columns = (
        bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
    )  # fmt: skip
    with bars.Progress(*columns, console=console, transient=True) as progress:
        whole = progress.add_task("problems", total=len(chosen))
        part = progress.add_task("", total=1.0)
        for workload, names in chosen:

            def tell(what: str, share: float, of: Workload = workload) -> None:
                progress.update(part, description=f"{of.loss} {of.batch}: {what}", completed=share)

            try:
                found = measure(workload, names, settings, tell)
            except KeyboardInterrupt:
                if groups:
                    console.print(f"measured so far: {options.output / name}.csv")
                raise
            except Exception as error:  # one problem must not cost the results of the others
                console.print(f"[bold red]{workload.title}, B={workload.batch}: {error!r}[/]")
                failures += 1
                continue
            for r in found:
                r.environment, r.preset = environment, options.preset or ""
            groups.append(found)
            console.print(report.records_table(report.heading(found), found))
            # After every problem: an interrupted run keeps what it has.
            record.write(options.output / f"{name}.csv", list(itertools.chain(*groups)))
            progress.advance(whole)
    records = list(itertools.chain(*groups))
    if not records:
        return 1
    demanded = judged[options.preset][1](records) if judged and options.preset in judged else []
    if demanded:
        console.print(report.requirements_table(demanded))
    (options.output / f"{name}.md").write_text(report.markdown(groups, demanded))
    endings = ["csv", "md"]
    try:
        plot.plot(records, options.output / f"{name}.png")
        endings.append("png")
    except ImportError as error:  # the numbers are there
        console.print(f"no plot: {error}")
    for ending in endings:
        console.print(f"{options.output / name}.{ending}")
    wrong = [r for r in records if r.status == "wrong"]
    for r in wrong:
        console.print(
            f"[bold red]wrong result: {r.contender}, {r.loss}, B={r.batch}: relative error of the "
            f"value {r.value_error:.2g}, of the gradient {r.gradient_error:.2g}[/]"
        )
    if wrong or failures:
        return 1
    return 2 if options.strict and any(r.met is not True for r in demanded) else 0


def _console() -> Any:
    console = require("rich.console").Console()
    # What is written to a file has no width of its own.
    return console if console.is_terminal else require("rich.console").Console(width=130)


def _kernels(options: argparse.Namespace) -> int:
    console = _console()
    torch.set_num_threads(options.threads or 1)
    chosen = [w for w, _ in cases(options)]
    with console.status("") as status:
        found = kernels.measure(chosen, rows=256, repeats=25, progress=status.update)
    console.print(kernels.table(found))
    return 0


def _replot(options: argparse.Namespace) -> int:
    path = options.replot.with_suffix(".png")
    plot.plot(record.read(options.replot), path)
    print(path)
    return 0
