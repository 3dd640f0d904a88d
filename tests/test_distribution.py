"""What is given away: the source distribution builds a wheel that works where there is nothing else."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT

FOLDERS = ("csrc", "fastdml", "tests", "benchmarks", "docs", "examples")
LEFT_OUT = {".so", ".pyc", ".pyo"}

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path, **environment: str) -> str:
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("FASTDML_")}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd, env={**kept, **environment}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The unpacked source distribution, made of this tree and leaving nothing in it."""
    folder = tmp_path_factory.mktemp("source")
    run(
        "setup.py", "--quiet", "egg_info", "--egg-base", folder, "sdist", "--dist-dir", folder,
        cwd=ROOT, FASTDML_BUILD="none",
    )  # fmt: skip
    (archive,) = folder.glob("fastdml-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (found,) = (p for p in folder.glob("fastdml-*") if p.is_dir())
    return found


def test_the_source_distribution_is_the_source(source):
    for name in FOLDERS:
        own = {
            path.relative_to(ROOT)
            for path in (ROOT / name).rglob("*")
            if path.is_file() and path.suffix not in LEFT_OUT and "__pycache__" not in path.parts
        }
        lacking = [str(path) for path in own if not (source / path).exists()]
        assert own and not lacking
        assert not [p for p in (source / name).rglob("*") if p.suffix in LEFT_OUT]
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "CHANGELOG.md", "Makefile"):
        assert (source / name).exists()


def test_it_builds_a_wheel_that_works_elsewhere(source, tmp_path):
    """Compiled for one loss."""
    run(
        "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index",
        "--wheel-dir", tmp_path, source,
        cwd=tmp_path, FASTDML_BUILD="cpu", FASTDML_LOSSES="siglip",
    )  # fmt: skip
    (wheel,) = tmp_path.glob("fastdml-*.whl")
    assert not wheel.name.endswith("none-any.whl"), "the extension is missing"
    fresh = tmp_path / "fresh"
    run(
        "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", fresh, wheel,
        cwd=tmp_path,
    )  # fmt: skip
    said = run(
        "-c",
        "import fastdml, fastdml.demo.data, torch\n"
        "x = torch.randn(8, 4, requires_grad=True)\n"
        "fastdml.losses.SigLIPLoss()(x, torch.randn(8, 4)).backward()\n"
        "print(fastdml.__file__, fastdml.build_info()['functors'], bool(x.grad.norm() > 0))\n"
        "print(fastdml.explain('siglip', 8).executor, len(fastdml.demo.data.load_icons()[0]))\n"
        "from fastdml.language.show import shown\n"
        "print('(smooth_ap,' in shown('smooth_ap'))",
        cwd=tmp_path,
        PYTHONPATH=str(fresh),
    )
    assert said == f"{fresh}/fastdml/__init__.py ['siglip'] True\nnative 3744\nTrue\n"
