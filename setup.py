"""Builds the compiled extension.

FASTDML_BUILD=auto   compile for the CPU, and for CUDA where nvcc is found (the default)
FASTDML_BUILD=cpu    compile for the CPU only
FASTDML_BUILD=cuda   compile for both, and fail where that is impossible
FASTDML_BUILD=none   install pure Python

Torch must be installed first and is never fetched: build with --no-build-isolation.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

MODE = os.environ.get("FASTDML_BUILD", "auto")
if MODE not in ("auto", "cpu", "cuda", "none"):
    raise SystemExit(f"FASTDML_BUILD={MODE}: expected auto, cpu, cuda or none")


def missing() -> str | None:
    """Why the extension cannot be compiled here, or None."""
    if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")):
        return "no C++ compiler was found"
    for package in ("torch", "pybind11", "ninja"):
        try:
            __import__(package)
        except ImportError:
            return f"{package} is not installed (build with --no-build-isolation)"
    return None


class NinjaBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        from csrc.build import build

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build(ROOT, Path(self.build_temp).resolve(), target, mode=MODE)
        if not self.inplace:
            self.add_headers(target.parent / "csrc")

    @staticmethod
    def add_headers(folder: Path) -> None:
        """What users' own losses are compiled with, at their first use, and what `fastdml show` prints."""
        csrc = ROOT / "csrc"
        for source in [
            csrc / "build.py",
            *csrc.glob("rows/*.h"),
            *csrc.glob("cpu/*.h"),
            csrc / "cpu" / "differences.cpp",
        ]:
            to = folder / source.relative_to(csrc)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, to)


extensions = []
if MODE != "none":
    reason = missing()
    if reason is None:
        extensions = [Extension("fastdml._C", sources=[])]
    elif MODE == "auto":
        print(f"fastdml: {reason}; installing without compiled kernels", file=sys.stderr)
    else:
        raise SystemExit(f"FASTDML_BUILD={MODE}: {reason}")

setup(ext_modules=extensions, cmdclass={"build_ext": NinjaBuild})
