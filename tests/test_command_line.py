"""Every command: arguments that cannot be right are named, and nothing ends in a traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

import fastdml
from fastdml import cli, command_line
from fastdml.bench.cli import parser as bench_parser

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
BENCH = ["bench", "--loss", "sup_con", "--batch", "64"]


def stopped(argv, capsys) -> tuple[int, str]:
    """Exit status and the last line of what it said."""
    try:
        status = cli.main(argv)
    except SystemExit as stop:
        status = int(stop.code or 0)
    said = capsys.readouterr()
    return status, (said.err or said.out).strip().splitlines()[-1]


@pytest.mark.parametrize(
    "argv,message",
    [
        ([*BENCH, "--per-class", "0"], "--per-class: expected an integer from 1 to 2147483647, got '0'"),
        ([*BENCH, "--per-class", "4,x"], "--per-class: expected an integer from 1 to 2147483647, got 'x'"),
        ([*BENCH, "--batch", ""], "--batch: expected one or more, separated by commas, got none"),
        ([*BENCH, "--batch", "0"], "--batch: expected an integer from 1"),
        ([*BENCH, "--dim", "-3"], "--dim: expected an integer from 1"),
        ([*BENCH, "--candidates", "0"], "--candidates: expected an integer from 1"),
        ([*BENCH, "--classes", "0"], "--classes: expected an integer from 1"),
        ([*BENCH, "--threads", "0"], "--threads: expected an integer from 1 to 1024, got '0'"),
        ([*BENCH, "--seed", "-1"], "--seed: expected an integer from 0"),
        ([*BENCH, "--budget", "-1"], "--budget: expected a number above 0, got '-1'"),
        ([*BENCH, "--budget", "nan"], "--budget: expected a number above 0, got 'nan'"),
        ([*BENCH, "--memory-limit", "0"], "--memory-limit: expected a number above 0"),
        ([*BENCH, "--timeout", "inf"], "--timeout: expected a number above 0, got 'inf'"),
        ([*BENCH, "--spread", "-1"], "--spread: expected a number of at least 0"),
        ([*BENCH, "--device", "foo"], "--device: expected a device of torch, such as cpu, cuda or cuda:1"),
        (["explain", "smooth_ap", "0"], "rows: expected an integer from 1"),
        (["explain", "smooth_ap", "8.5"], "rows: expected an integer from 1"),
        (["explain", "smooth_ap", "8", "--dim", "0"], "--dim: expected an integer from 1"),
        (["explain", "smooth_ap", "8", "--columns", "-1"], "--columns: expected an integer from 1"),
        (["explain", "smooth_ap", "8", "--device", "foo"], "--device: expected a device of torch"),
        (["demo", "--threads", "0"], "threads: expected an integer from 1 to 1024, got 0"),
        (["demo", "--seed", "9" * 30], "seed: expected an integer from 0 to"),
        (["demo", "--epochs", "0"], "epochs: expected an integer of at least 1"),
    ],
)
def test_what_cannot_be_right_is_named(argv, message, capsys):
    status, said = stopped(argv, capsys)
    assert status == 2 and message in said


def test_spread_may_be_infinite():
    assert bench_parser().parse_args(["--spread", "inf", "--batch", "8,16"]).spread == float("inf")


@pytest.mark.parametrize("argv", [["demo", "--quick"], BENCH], ids=lambda argv: argv[0])
@pytest.mark.parametrize("kind", ["a file", "below a file", "no permission"])
def test_a_folder_that_cannot_be_written_to(argv, kind, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    folder = {
        "a file": tmp_path / "file", "below a file": tmp_path / "file" / "x", "no permission": tmp_path,
    }[kind]  # fmt: skip
    if kind == "no permission":  # which the superuser always has

        def refused(dir: Path) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(command_line.tempfile, "TemporaryFile", refused)
    status, said = stopped([*argv, "--output", str(folder)], capsys)
    assert status == (1 if argv[0] == "demo" else 2)
    assert f"output: expected a folder that can be written to, got '{folder}'" in said


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "got one without results"),
        ("loss,batch\n", "got one without results"),
        ("a,b\n1,2\n", "expected a file of fastdml bench"),
    ],
)
def test_replot_of_something_else(text, message, tmp_path, capsys):
    path = tmp_path / "results.csv"
    path.write_text(text)
    status, said = stopped(["bench", "--replot", str(path)], capsys)
    assert status == 2 and f"{path}: expected a file of fastdml bench" in said and message in said


def test_replot_of_nothing(tmp_path, capsys):
    status, said = stopped(["bench", "--replot", str(tmp_path / "none.csv")], capsys)
    assert status == 1 and "none.csv" in said


def test_version(capsys):
    status, said = stopped(["--version"], capsys)
    assert (status, said) == (0, f"fastdml {fastdml.__version__}")


@pytest.mark.parametrize(
    "argv,begun",
    [
        (["demo", "--quick", "--loss", "smooth_ap", "--epochs", "900"], b"images of"),
        ([*BENCH, "--contender", "native", "--budget", "500"], b""),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_interrupt_ends_in_a_line(argv, begun, tmp_path):
    """As from a keyboard, to all processes of the command, once it is at work."""
    argv = [sys.executable, "-u", "-m", "fastdml", *argv, "--output", str(tmp_path / "out")]
    running = subprocess.Popen(
        argv, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        # Heard even where the tests run in the background of a shell, which ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 100
        while not (tmp_path / "out").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        if begun:
            assert begun in running.stdout.readline()
        time.sleep(1.5)
        os.killpg(running.pid, signal.SIGINT)
        said, errors = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            running.kill()
    assert running.returncode == command_line.INTERRUPTED, errors.decode()
    assert b"Traceback" not in said + errors and b"interrupted" in errors


AT_WORK = """
import os, signal, threading, torch
import fastdml
from fastdml import command_line

signal.signal(signal.SIGINT, signal.default_int_handler)
x, y = torch.randn(512, 64, requires_grad=True), torch.arange(512) // 4
loss = fastdml.losses.MultiSimilarityLoss()

def work():
    while True:
        loss(x, y).backward()

threading.Thread(target=work, daemon=True).start()
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
command_line.hear("fastdml")
command_line.leave(command_line.end("fastdml", work))
"""


def test_an_interrupt_while_a_worker_is_in_native_code():
    """And the command itself, forwards or backwards."""
    done = subprocess.run([sys.executable, "-c", AT_WORK], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nfastdml: interrupted\n")


def test_an_interrupt_where_its_exception_would_be_forgotten(monkeypatch, capsys):
    """In a destructor, Python prints it and goes on."""
    left = []
    monkeypatch.setattr(command_line.os, "_exit", left.append)
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    command_line.hear("fastdml")

    class Held:
        def __init__(self, error):
            self.error = error

        def __del__(self):
            raise self.error

    Held(KeyboardInterrupt())
    assert left == [130] and capsys.readouterr().err == "\nfastdml: interrupted\n"
    Held(ValueError("another"))
    assert left == [130] and "ValueError: another" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m fastdml info | head -n 1"
    done = subprocess.run(command, shell=True, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.startswith("torch") and done.stderr == ""


def test_an_error_of_the_machine_is_a_line(capsys):
    def full() -> int:
        raise OSError(28, "No space left on device", "results.csv")

    assert command_line.end("fastdml demo", full) == 1
    assert capsys.readouterr().err == "fastdml demo: [Errno 28] No space left on device: 'results.csv'\n"
