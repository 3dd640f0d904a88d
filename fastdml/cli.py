"""The command line: ``python -m fastdml`` or ``fastdml``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__, command_line


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    return command_line.end("fastdml", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["bench"]:  # has a command line of its own, --help included
        from . import bench

        return bench.main(argv[1:]) or 0
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 0
    return arguments.command(arguments) or 0


def run() -> None:
    """The console's command: runs it, and ends the process."""
    command_line.hear("fastdml")
    command_line.leave(main())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdml", description="Fused losses for deep metric learning."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in (
        _add_demo, _add_bench, _add_eval, _add_embed, _add_explain, _add_show, _add_info,
    ):  # fmt: skip
        add(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction) -> None:
    from .demo import options

    parser = commands.add_parser(
        "demo",
        help="train on real images and retrieve unseen classes",
        description="Trains a small network on 624 classes of icons, retrieves images of 624 "
        "others before and after, compares losses, and measures what the fused loss saves. "
        "Writes neighbours.png, curves.png and results.json. Takes a few minutes on two CPU cores.",
    )
    options.add_arguments(parser)

    def command(arguments: argparse.Namespace) -> None:
        from .demo.run import run

        try:
            chosen = options.from_arguments(arguments)
        except ValueError as error:
            parser.error(str(error))
        try:
            run(chosen)
        except (ImportError, ValueError, FloatingPointError) as error:
            parser.exit(1, f"{parser.prog}: {error}\n")

    parser.set_defaults(command=command)


def _add_bench(commands: argparse._SubParsersAction) -> None:
    commands.add_parser("bench", help="measure losses (fastdml bench --help)", add_help=False)


def _add_embed(commands: argparse._SubParsersAction) -> None:
    from .integrations.cli import add_command

    add_command(commands)


def _add_eval(commands: argparse._SubParsersAction) -> None:
    from .metrics.cli import add_command

    add_command(commands)


def _add_explain(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("explain", help="say what would compute a loss, and why")
    size = command_line.integer(1)
    parser.add_argument("loss", help="such as multi_similarity")
    parser.add_argument("rows", type=size, help="samples in the batch, or proxies")
    parser.add_argument("--columns", type=size, help="candidates (default: the rows themselves)")
    parser.add_argument("--dim", type=size, default=128, help="of the embeddings (default 128)")
    parser.add_argument(
        "--device", type=command_line.device, default="cpu", help="cpu (default), cuda, ..."
    )

    def command(arguments: argparse.Namespace) -> None:
        import fastdml

        try:
            print(
                fastdml.explain(
                    arguments.loss,
                    arguments.rows,
                    arguments.columns,
                    arguments.dim,
                    arguments.device,
                )
            )
        except ValueError as error:
            parser.error(str(error))

    parser.set_defaults(command=command)


def _add_show(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("show", help="print the code that computes a loss")
    parser.add_argument("loss", help="such as multi_similarity, or FILE.py:FUNCTION of the row language")
    forms = ("torch", "cpp", "cuda", "triton")
    parser.add_argument("--as", dest="form", choices=forms, default="cpp", help="default: cpp")

    def command(arguments: argparse.Namespace) -> None:
        from .language.show import shown

        try:
            print(shown(arguments.loss, arguments.form))
        except ValueError as error:
            parser.error(str(error))

    parser.set_defaults(command=command)


def _add_info(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("info", help="print how this installation was built")

    def command(arguments: argparse.Namespace) -> None:
        import fastdml

        for key, value in fastdml.build_info().items():
            print(f"{key:<18} {value}")

    parser.set_defaults(command=command)
