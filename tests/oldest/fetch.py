"""Fetches what compiling against older releases of torch needs: `make test-oldest`.

    python tests/oldest/fetch.py FOLDER VERSION... [--triton VERSION]

Of torch the headers and the names that its libraries export, from the wheel for another processor: there
it is for the CPU only, while the wheel for this one would bring several gigabytes of CUDA packages. A few
hundred megabytes are downloaded once, and not kept. Triton whole.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LIBRARIES = ("torch/lib/libtorch_cpu.so", "torch/lib/libc10.so")


def exported(library: Path) -> list[str]:
    """What an ELF library of any processor defines for others."""
    table = subprocess.run(
        ["readelf", "--dyn-syms", "-W", str(library)], check=True, capture_output=True, text=True
    ).stdout
    rows = (line.split() for line in table.splitlines())
    return [re.sub("@.*", "", r[7]) for r in rows if len(r) >= 8 and r[6] not in ("UND", "Ndx")]


def fetch(version: str, to: Path) -> None:
    """Leaves to/include and to/symbols.txt."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
             "--platform=manylinux_2_28_aarch64", "--python-version=3.11", f"torch=={version}",
             f"--dest={folder}"],
            check=True,
        )  # fmt: skip
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            prefix = "torch/include/"
            wheel.extractall(folder, [n for n in wheel.namelist() if n.startswith(prefix)])
            symbols: list[str] = []
            for library in LIBRARIES:
                symbols += exported(Path(wheel.extract(library, folder)))
        to.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", str(Path(folder) / prefix), str(to / "include")], check=True)
        # Last: a fetch that broke off is repeated.
        (to / "symbols.txt").write_text("\n".join(sorted(set(symbols))) + "\n")


def fetch_triton(version: str, to: Path) -> None:
    """Leaves the package in a folder to put on PYTHONPATH."""
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", f"--target={to}",
         f"triton=={version}"],
        check=True,
    )  # fmt: skip
    (to / "complete").touch()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("torch", nargs="*")
    parser.add_argument("--triton")
    options = parser.parse_args()
    if options.triton and not (options.folder / "triton" / "complete").exists():
        print(f"fetching triton {options.triton}", flush=True)
        fetch_triton(options.triton, options.folder / "triton")
    for version in options.torch:
        folder = options.folder / version
        if not (folder / "symbols.txt").exists():
            print(f"fetching the headers of torch {version}", flush=True)
            fetch(version, folder)
