"""`make gpu-check` where there is no GPU: everything is skipped, said so, and nothing has failed. And the
script itself, tried on the CPU."""

import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
from conftest import ROOT

STAGES = ("build", "first", "test", "sanitize", "bench")


def check(*arguments, **environment):
    script = str(ROOT / "benchmarks" / "gpu_check.py")
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
    )  # fmt: skip


def lines(text):
    """(stage, status, note) of every line of the closing table."""
    found = [line.split(None, 4) for line in text.strip().splitlines()]
    return [(f[0], f[1], f[4]) for f in found if len(f) == 5]


@pytest.mark.parametrize("stages", [STAGES, ("test", "bench")])
def test_without_a_gpu_every_stage_is_skipped(stages, tmp_path):
    done = check(tmp_path / "out", "--stages", ",".join(stages))
    assert done.returncode == 0, done.stderr
    assert lines(done.stdout) == [(stage, "skipped", "no GPU") for stage in stages]
    assert not (tmp_path / "out").exists()  # nothing that could be taken for a result


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_target_of_make(tmp_path):
    done = subprocess.run(
        ["make", "-s", "gpu-check", f"OUT={tmp_path / 'out'}", f"PYTHON={sys.executable}"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line[0] for line in lines(done.stdout)] == list(STAGES)


def test_what_would_run_is_said(tmp_path):
    done = check(tmp_path / "out", "--without-device", "90", "--dry-run", "--budget", "test=60")
    assert done.returncode == 0, done.stderr
    found = lines(done.stdout)
    assert [(stage, status) for stage, status, _ in found] == [(s, "skipped") for s in STAGES]
    assert ("test", "skipped", "would run, 60 s at most") in found


@pytest.mark.parametrize("arguments", [("--stages=all",), ("--budget=test",), ("--budget=all=3",)])
def test_what_it_does_not_know_is_refused(arguments, tmp_path):
    done = check(tmp_path / "out", *arguments)
    assert done.returncode == 2 and "expected" in done.stderr


def script():
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "benchmarks" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def members(output):
    with tarfile.open(output / "gpu-check.tar.gz") as archive:
        return {m.name: archive.extractfile(m).read().decode() for m in archive if m.isfile()}


def test_on_a_machine_without_git_and_sanitizer(tmp_path):
    """A stage runs to its end, and what it leaves is few files, one of them with all the others."""
    empty = tmp_path / "bin"
    empty.mkdir()
    out = tmp_path / "out"
    done = check(out, "--without-device", "90", "--stages", "sanitize", PATH=str(empty))
    assert done.returncode == 0, done.stderr
    assert "commit unknown" in done.stdout and "compute-sanitizer is not installed" in done.stdout
    assert {p.name for p in out.iterdir()} == {"gpu-check.tar.gz", "summary.txt"}
    assert members(out)["summary.txt"] == (out / "summary.txt").read_text()


def test_what_passed_before_is_not_repeated(tmp_path):
    """... in a folder of results, or in an archive from another call that left no folder."""
    made = script()
    device = made.Device("no device", "90", "a trial of this script", "cpu")
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    made.Done(work / "done.txt", made.fingerprint(device)).add("first light: right")
    made.pack(work, out)
    arguments = ("--without-device", "90", "--stages", "first", "--limit", "20")
    again = check(out, *arguments)
    assert "earlier" in again.stdout and "first light: fast   skipped" in again.stdout, again.stdout
    other = tmp_path / "other"
    resumed = check(other, *arguments, "--resume", out / "gpu-check.tar.gz")
    assert "earlier" in resumed.stdout
    assert "first light: right" in members(other)["done.txt"]
    assert "earlier" not in check(tmp_path / "third", *arguments).stdout


def test_every_stage_fits_into_a_call_of_ten_minutes(monkeypatch):
    made = script()
    assert max(made.BUDGET.values()) <= 560 and set(made.BUDGET) == set(made.STAGES) == set(STAGES)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert made.workers() == 14
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert made.workers() == 1
    assert made.CONTENDERS[:2] == ("native", "triton") and "pml" not in made.CONTENDERS


@pytest.mark.parametrize("what", ["right", "fast"])
def test_first_light_on_the_cpu(what, tmp_path):
    """The script of the first minutes is right about where it stands when its time is up."""
    done = subprocess.run(
        [sys.executable, "benchmarks/first_light.py", what, "--device=cpu", "--seconds=7",
         f"--output={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "out of time at" in done.stdout
    if what == "right":
        assert "0 bad" in done.stdout
    else:
        lines = (tmp_path / "first-light.csv").read_text().splitlines()
        assert lines[0].startswith("loss,batch,dim,per_class,contender,ms,times_floor,mib")
        assert {line.split(",")[4] for line in lines[1:]} >= {"gemm", "native"}


def test_the_prediction_is_made_from_the_kept_counts():
    """Who remakes the counts remakes what is computed from them."""
    done = subprocess.run([sys.executable, "benchmarks/predict.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run python benchmarks/predict.py"


def test_the_formulas_of_the_prediction():
    spec = importlib.util.spec_from_file_location("predict", ROOT / "benchmarks" / "predict.py")
    made = importlib.util.module_from_spec(spec)
    sys.modules["predict"] = made
    spec.loader.exec_module(made)
    machine = made.Machine(processors=1, clock=1.0, lanes=4, tensor=8, cublas=6.0, memory=2.0, cache=1.0)
    problem = made.Problem("", "loss", "Loss", rows=10, columns=10, one_set=False)
    assert made.bare(problem, 12, machine) == 3 * 100 * 24 / 6  # by the products
    assert made.bare(problem, 2, machine) == 3 * 100 * 2 / 2  # by memory
    row = {"label": "now", "functor": "Loss", "form": problem.form, "blocks": "2", "visits": "40 80",
           "inner": "0 0", "row_bytes": "4 6", "column_bytes": "8 8", "copy": "2",
           "shared_bytes": "229376"}  # fmt: skip
    step = made.native(problem, 12, machine, [row])
    assert (step.issued, step.cached, step.bound) == (120, 18, "issue") and step.rest == 100 * 120 / 4
    # A row that is held is read once a sweep.
    held = {**row, "shared_bytes": "0"}
    step = made.native(problem, 12, machine, [held])
    assert step.issued == pytest.approx(120 + 2 * 0.8) and step.cached == pytest.approx(18 - 4 * 0.8)
    assert machine.held(2, 0, 10) == 8
    twice = dataclasses.replace(problem, similarities=2)
    step = made.native(twice, 12, machine, [held])
    assert step.issued == pytest.approx(160 + 4 * 0.8) and step.cached == pytest.approx(26 - 4 * 0.8)
    kernel = {"loss": "loss", "arch": "sm_90", "dtype": "bfloat16", "D": "12", "kernel": "weights, rows",
              "issued_per_pair": "20", "l2_bytes_per_pair": "3", "products": "2", "warps": "8",
              "registers": "255", "shared_bytes": "0"}  # fmt: skip
    step = made.tiles(problem, 12, machine, [kernel])
    assert step.bound == "in turn" and step.products == 100 * 2 * 24 / 8 and step.rest == 100 * 20 / 4
    step = made.tiles(problem, 12, machine, [{**kernel, "registers": "128"}])
    assert step.bound == "overlapped" and step.seconds == 600
    step = made.tiles(problem, 12, machine, [{**kernel, "l2_bytes_per_pair": "30"}])
    assert step.bound == "cache" and step.seconds == 3000


@pytest.mark.parametrize("loss, options, peer", [("siglip", (), "siglip-kernel"),
                                                 ("info_nce", (("symmetric", True),), "memeff")])  # fmt: skip
def test_other_packages_are_left_out_with_a_word(loss, options, peer, monkeypatch):
    monkeypatch.setitem(sys.modules, peer.replace("-", "_"), None)
    from fastdml.bench import contenders
    from fastdml.bench.workload import Workload

    with pytest.raises(contenders.Unavailable, match=f"{peer} is not installed"):
        contenders.make(peer, Workload(loss, 8, 4, options=options))
    with pytest.raises(contenders.Unavailable, match=f"{peer} has no such loss"):
        contenders.make(peer, Workload("sup_con", 8, 4))
