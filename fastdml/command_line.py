"""What the commands share: kinds of arguments, and how a command ends that cannot go on."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
BROKEN_PIPE = 141


def integer(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """For ``type=``: an integer of that range."""
    return _checked(int, f"an integer from {low} to {high}", lambda value: low <= value <= high)


def number(low: float, *, above: bool = False, finite: bool = True) -> Callable[[str], float]:
    """For ``type=``: a number of at least ``low``, or above it."""
    expected = f"a number {'above' if above else 'of at least'} {low:g}"

    def is_right(value: float) -> bool:
        fits = value > low if above else value >= low
        return fits and (math.isfinite(value) or not finite)

    return _checked(float, expected, is_right)


def several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """For ``type=``: one or more of a kind, separated by commas."""

    def parse(text: str) -> list[Any]:
        parts = [kind(part) for part in text.split(",") if part]
        if not parts:
            raise argparse.ArgumentTypeError("expected one or more, separated by commas, got none")
        return parts

    return parse


def device(text: str) -> str:
    """For ``type=``: a device as torch writes them, whether it is here or not."""
    import torch

    try:
        torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(
            f"expected a device of torch, such as cpu, cuda or cuda:1, got {text!r}"
        ) from None
    return text


def _checked(
    kind: Callable[[str], Any], expected: str, is_right: Callable[[Any], bool]
) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            if is_right(value := kind(text)):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")

    return parse


def make_folder(path: Path, name: str) -> None:
    """Makes a folder for results, before the work that they come from.

    Raises:
        ValueError: it cannot be made or written to; names the argument.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"{name}: expected a folder that can be written to, got {str(path)!r} ({error.strerror})"
        ) from error


def leave(status: int) -> NoReturn:
    """Ends the process. An interrupted one at once: once any frame has ended in a KeyboardInterrupt, Python
    kills itself by the signal in the end, whatever status it was given; and a second one is no traceback."""
    if status != INTERRUPTED:
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, KeyboardInterrupt):
            stream.flush()
    os._exit(status)


def hear(program: str) -> None:
    """Has an interrupt end the process also where its exception would be printed and forgotten: in a
    destructor, or a callback that native code calls."""
    before = sys.unraisablehook

    def ended(error: Any) -> None:
        if not issubclass(error.exc_type, KeyboardInterrupt):
            return before(error)
        print(f"\n{program}: interrupted", file=sys.stderr)
        leave(INTERRUPTED)

    sys.unraisablehook = ended


def end(program: str, command: Callable[[], int | None]) -> int:
    """Runs a command; what the user or the machine has stopped ends in a line, not in a traceback."""
    try:
        return command() or 0
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # of `... | head`
        # What is still to be flushed at exit would raise once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
