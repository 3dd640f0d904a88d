"""``fastdml embed``: embeddings of files, into a file."""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .. import command_line
from ..metrics.extras import require
from . import files
from .export import load_embedder, read_config


def add_command(commands: argparse._SubParsersAction) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser(
        "embed",
        help="embed an array or a folder of images with a saved embedder",
        description="Writes float32 embeddings [N, D] of an npy or npz file, or of all images below a "
        "folder; of these also OUTPUT.files.txt and OUTPUT.labels.txt (the folder each image is in), "
        "one a line.",
    )
    add = parser.add_argument
    add("embedder", type=Path, help="folder that fastdml.integrations.save_embedder wrote")
    add("inputs", type=Path, help="npy, npz, or a folder of images")
    add("output", type=Path, help="npy file to write")
    add("--key", metavar="NAME", help="array of an npz file")
    add("--batch-size", type=command_line.integer(1), default=256, metavar="N", help="default 256")
    add("--device", type=command_line.device, default="cpu", help="default cpu")

    def command(arguments: argparse.Namespace) -> None:
        try:
            embed_files(arguments)
        except ValueError as error:
            parser.error(str(error))
        except ImportError as error:
            parser.exit(1, f"{parser.prog}: {error}\n")

    parser.set_defaults(command=command)


@torch.inference_mode()
def embed_files(arguments: argparse.Namespace) -> None:
    """What the command does.

    Raises:
        ValueError: a file is not what is expected there.
    """
    bars = require("rich.progress", "an embedder in files needs", "embed")
    output: Path = arguments.output
    if output.suffix != ".npy":
        raise ValueError(f"output: expected a name that ends in .npy, got {str(output)!r}")
    command_line.make_folder(output.parent, "output")
    device = _present(arguments.device)
    model = load_embedder(arguments.embedder, device=device)
    inputs: files.Inputs
    if arguments.inputs.is_dir():
        inputs = files.Images(arguments.inputs, read_config(arguments.embedder).get("image"))
    else:
        inputs = files.Array(arguments.inputs, arguments.key)
    kind = next((p.dtype for p in model.parameters()), torch.float32)

    written: np.memmap | None = None
    columns = (
        bars.TextColumn("embedding"), bars.BarColumn(), bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )  # fmt: skip
    target = output.resolve()
    # Beside it until all is there: the output may be the file that is read, and half of one looks whole.
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as beside,
        bars.Progress(*columns) as progress,
        _named_inputs(arguments.inputs),
    ):
        task = progress.add_task("", total=len(inputs))
        for start in range(0, len(inputs), arguments.batch_size):
            stop = min(start + arguments.batch_size, len(inputs))
            part = inputs.part(start, stop)
            # Integers that embedding layers look up stay what they are.
            part = part.to(device, part.dtype if part.dtype in (torch.int32, torch.int64) else kind)
            found = model(part)
            if (
                not isinstance(found, torch.Tensor)
                or found.dim() != 2
                or len(found) != stop - start
            ):
                raise ValueError(
                    "embedder: expected a network that returns embeddings [batch, dim]"
                )
            if written is None:  # mapped: never more than a batch in memory
                shape = (len(inputs), found.shape[1])
                written = np.lib.format.open_memmap(
                    f"{beside}/{target.name}", mode="w+", dtype=np.float32, shape=shape
                )
            written[start:stop] = found.float().cpu().numpy()
            progress.advance(task, stop - start)
        assert written is not None
        written.flush()
        os.replace(f"{beside}/{target.name}", target)
    print(f"{output}: {written.shape[0]} x {written.shape[1]}")
    if isinstance(inputs, files.Images):
        for name, lines in (("files", inputs.paths), ("labels", inputs.labels)):
            path = output.with_suffix(f".{name}.txt")
            path.write_text("".join(f"{line}\n" for line in lines))
            print(path)


def _present(name: str) -> torch.device:
    """The device of that name, on which numbers can be held. Raises ValueError where there is none."""
    try:
        if torch.empty(1, device=name).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:
        said = str(error).partition("\n")[0]
        raise ValueError(f"--device: expected one that is here, got {name!r} ({said})") from None
    return torch.device(name)


@contextlib.contextmanager
def _named_inputs(path: Path) -> Iterator[None]:
    """What a network says of inputs that it cannot take, in a line."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        said = str(error).partition("\n")[0]
        raise ValueError(f"{path}: expected inputs that the embedder takes ({said})") from error
