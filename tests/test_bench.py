"""The benchmark harness: what it measures against what, and that it refuses wrong results."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import sys
from pathlib import Path

import pytest
import torch

from fastdml import bench, losses
from fastdml.bench import catalogue, contenders, eager, kernels, presets, record, verify
from fastdml.bench import measure as measuring
from fastdml.bench.contenders import FLOOR
from fastdml.bench.probe import Probe, probe
from fastdml.bench.timing import interleave, quantiles
from fastdml.bench.workload import Workload, parse_loss
from fastdml.engine import library

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
from requirements import issue, ranks
from requirements import losses as of_losses

JUDGED = {"issue": issue, "ranks": ranks, "losses": of_losses}
SETTINGS = measuring.Settings(threads=1, budget=0.01, memory_limit=1 << 30, timeout=30)
GIB = 1 << 30
compiled = pytest.mark.skipif(library.load() is None, reason="needs the compiled library")


def small(loss: str, **changes) -> Workload:
    return Workload(
        loss, batch=48, dim=16, classes=20, options=presets.USUAL.get(loss, ()), **changes
    )


@pytest.fixture
def no_probe(monkeypatch):
    """Contenders run here only, not in processes of their own first."""
    monkeypatch.setattr(measuring, "probe", lambda *_, **__: Probe("ok", "", 0.0, 1 << 20, 1 << 19))


class Clock:
    """A device on which steps take what they say, and every round is slower than the one before."""

    name = "cpu"

    def __init__(self):
        self.order = []

    def time(self, step):
        name, seconds = step()
        self.order.append(name)
        return seconds * (1 + len(self.order))


def test_quantiles():
    found = quantiles([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found.median, found.p20, found.p80) == (3.0, 1.8, 4.2)
    assert quantiles([7.0]).median == 7.0


def test_rounds_alternate_and_ratios_are_of_one_round():
    clock = Clock()
    steps = {"gemm": lambda: ("gemm", 1.0), "other": lambda: ("other", 3.0)}
    found = interleave(steps, clock, floor="gemm", budget=1e6)
    assert clock.order[:8] == ["gemm", "other"] * 4
    # The k-th measurement takes k + 1 times as long: only pairs of one round have the ratio.
    for k, seconds in found["other"].seconds.items():
        assert seconds / found["gemm"].seconds[k] == pytest.approx(3 * (4 + 2 * k + 1) / (4 + 2 * k))


def test_a_slow_contender_sits_out_but_the_floor_never():
    steps = {"gemm": lambda: ("gemm", 1e-4), "slow": lambda: ("slow", 1.0)}
    found = interleave(steps, Clock(), floor="gemm", budget=2.0)
    assert 3 <= len(found["slow"].seconds) < len(found["gemm"].seconds)
    assert found["slow"].seconds.keys() <= found["gemm"].seconds.keys()


def test_parse_loss():
    assert parse_loss("smooth_ap") == ("smooth_ap", ())
    name, options = parse_loss("contrastive:neg_margin=0.5,similarity=cosine")
    assert (name, options) == ("contrastive", (("neg_margin", 0.5), ("similarity", "cosine")))
    with pytest.raises(ValueError, match="expected NAME:KEY=VALUE"):
        parse_loss("smooth_ap:temperature")


def test_a_loss_is_measured_without_what_a_sum_adds_to_it():
    assert catalogue.module_class("sup_ap") is losses.SupAPLoss  # not ROADMAP, which has it in it


@pytest.mark.parametrize("loss", catalogue.measurable())
@pytest.mark.parametrize("contender", ["torch", "chunked", "native"])
def test_contenders_agree_with_the_reference(loss, contender):
    workload = small(loss)
    try:
        step = contenders.make(contender, workload)
        step()
    except ValueError as error:
        pytest.skip(str(error))
    errors = verify.compare(step, verify.truth(workload))
    assert errors.within(verify.TOLERANCE["float32"]), errors
    assert errors.how == "float64 dense"


@pytest.mark.parametrize("loss", sorted(eager.HAND))
def test_hand_written_losses_agree_with_the_reference(loss):
    workload = small(loss, dtype="float64")
    errors = verify.compare(contenders.make("torch-hand", workload), verify.truth(workload))
    assert errors.within(1e-9), errors


@pytest.mark.parametrize("loss", ["multi_similarity", "proxy_anchor", "smooth_ap", "siglip"])
def test_sampled_check_accepts_what_is_right(loss, monkeypatch):
    workload = small(loss)
    monkeypatch.setattr(verify, "_CHUNKED", 0)
    assert verify.truth(workload) is None
    errors = verify.sampled(workload, "chunked", contenders.make("chunked", workload))
    assert errors.within(verify.TOLERANCE["float32"]), errors


def test_sampled_check_sees_a_wrong_gradient():
    workload = small("multi_similarity")
    step = contenders.make("chunked", workload)
    right = step.forward
    step.forward = lambda: right() + 1e-3 * step.leaves["embeddings"].sum()
    assert not verify.sampled(workload, "chunked", step).within(1e-4)


def test_nan_is_not_within_any_tolerance():
    assert not verify.Errors(float("nan"), 0.0, "").within(1.0)
    assert not verify.Errors(0.0, float("nan"), "").within(1.0)


def broken(workload: Workload) -> contenders.Step:
    """A step whose value is right and whose gradient is 1 % too long."""
    step = contenders.of_module(workload, catalogue.build(workload, backend="chunked"))
    right = step.forward

    def forward():
        value = right()
        return value * 1.01 - 0.01 * value.detach()

    step.forward = forward
    return step


def test_a_wrong_result_is_refused(no_probe, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(contenders.CONTENDERS, "chunked", broken)
    arguments = ["--loss", "smooth_ap", "--batch", "32", "--budget", "0.01", "--contender", "chunked"]
    status = bench.main([*arguments, "--contender", "torch", "--output", str(tmp_path)])
    assert status == 1
    assert "wrong result" in capsys.readouterr().out
    rows = {r["contender"]: r for r in csv.DictReader((tmp_path / "bench.csv").open())}
    assert rows["chunked"]["status"] == "wrong" and rows["chunked"]["ms"] == ""
    assert float(rows["chunked"]["gradient_error"]) == pytest.approx(0.01, rel=1e-3)
    assert rows["torch"]["status"] == "ok" and float(rows["torch"]["ratio"]) > 0


def test_command_writes_results(no_probe, tmp_path, capsys):
    arguments = ["--loss", "multi_similarity:epsilon=0.1", "--batch", "16,32", "--budget", "0.01"]
    assert bench.main([*arguments, "--name", "try", "--output", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "try.csv").open()))
    assert [r["batch"] for r in rows] == ["16"] * 6 + ["32"] * 6
    for name in ("cpu", "cores", "torch", "fastdml", "python", "commit", "dirty", "threads", "date"):
        assert name in rows[0]
    assert {r["contender"] for r in rows} >= {FLOOR, "native", "torch-hand"}
    assert (tmp_path / "try.png").stat().st_size > 10_000
    assert "x products" in (tmp_path / "try.md").read_text()
    assert "multi_similarity:epsilon=0.1" in capsys.readouterr().out
    # What was written can be read and drawn again.
    (tmp_path / "try.png").unlink()
    assert bench.main(["--replot", str(tmp_path / "try.csv")]) == 0
    assert (tmp_path / "try.png").exists()
    read = record.read(tmp_path / "try.csv")
    assert read[0].contender == FLOOR and read[0].ratio == 1.0 and read[0].environment["torch"]


def test_a_missing_package_is_named_with_the_extra_of_the_benchmarks(monkeypatch, tmp_path, capsys):
    for name in [n for n in sys.modules if n.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(SystemExit) as stop:
        bench.main(["--loss", "smooth_ap", "--batch", "8", "--output", str(tmp_path)])
    assert stop.value.code == 1
    said = "the benchmarks need rich, which is not installed: pip install fastdml[bench]"
    assert said in capsys.readouterr().err


def drawn(tmp_path, workloads, **values):
    """Height and width of the figure of some problems, as if they had been measured."""
    pytest.importorskip("matplotlib")
    from fastdml.bench import plot

    records = [measuring._record(w, name, 2) for w in workloads for name in (FLOOR, "native")]
    for r in records:
        r.environment = {"cpu": "some processor"}
        r.ms = r.ms_p20 = r.ms_p80 = r.ratio = r.ratio_p20 = r.ratio_p80 = r.extra_mib = 2.0
    plot.plot(records, tmp_path / "figure.png")
    from matplotlib import image

    return image.imread(tmp_path / "figure.png").shape[:2]


def test_a_plot_of_many_losses_has_several_lines(tmp_path):
    names = ["circle", "contrastive", "sup_con", "nt_xent", "nca", "siglip", "binomial_deviance"]
    few = drawn(tmp_path, [Workload(n, b, dim=16) for n in names[:5] for b in (64, 128)])
    many = drawn(tmp_path, [Workload(n, b, dim=16) for n in names for b in (64, 128)])
    assert many[1] == few[1] and many[0] > 1.5 * few[0]


def test_a_plot_of_single_sizes_has_a_line_of_dots_per_problem(tmp_path, monkeypatch):
    from fastdml.bench import plot

    seen = []
    for kind in ("_dots", "_curves"):
        made = getattr(plot, kind)
        monkeypatch.setattr(plot, kind, lambda *a, f=made, k=kind: seen.append(k) or f(*a))
    names = ["circle", "contrastive", "sup_con"]
    drawn(tmp_path, [Workload(n, 64, dim=16) for n in names])
    drawn(tmp_path, [Workload(n, b, dim=16) for n in names for b in (64, 128)])
    twice = [Workload("circle", b, dim=16, per_class=k) for b in (64, 128) for k in (4, 8)]
    drawn(tmp_path, twice)
    assert seen == ["_dots", "_curves", "_dots"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--loss", "nothing"], "--loss: expected one of"),
        (["--contender", "nobody"], "--contender: expected one of"),
        (["--device", "meta"], "--device: expected cpu"),
        (["--loss", "smooth_ap:x"], "expected NAME:KEY=VALUE"),
        (["--preset", "shared", "--loss", "sup_con"], "--loss: expected of --preset shared all or some"),
        (["--preset", "quick", "--loss", "sup_con:temperature=2"], "without arguments, got 'sup_con' with"),
        (["--preset", "quick", "--batch", "4096"], "--batch: expected without --preset"),
        (["--preset", "quick", "--per-class", "4"], "--per-class: expected without --preset"),
        (["--kernels", "--loss", "pnp", "--preset", "shared"], "--loss: expected of --preset shared"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_contenders_and_losses(capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in (*contenders.CONTENDERS, *catalogue.measurable(), "--preset", "paper"):
        assert word in text


def test_probe_measures_memory():
    workload = dataclasses.replace(small("smooth_ap"), batch=512)
    found = probe("torch", workload, threads=1, memory_limit=GIB, timeout=60)
    assert found.status == "ok", found
    # The specification holds several matrices of 512 x 512 x 4 float32 values.
    assert 4 << 20 < found.extra <= found.peak


def test_probe_survives_exhausted_memory():
    workload = dataclasses.replace(small("smooth_ap"), batch=1024)
    found = probe("torch", workload, threads=1, memory_limit=8 << 20, timeout=60)
    assert found.status == "out of memory", found


def test_probe_says_who_is_unavailable():
    found = probe("torch-hand", small("siglip"), threads=1, memory_limit=GIB, timeout=60)
    assert (found.status, found.note) == ("unavailable", "not written by hand")


def test_time_out_is_a_result(monkeypatch):
    late = Probe("timed out", "no result within 1 s")
    fine = Probe("ok", "", 0.0, 0, 0)
    monkeypatch.setattr(
        measuring, "probe", lambda name, *_, **__: late if name == "torch" else fine
    )
    found = measuring.measure(small("smooth_ap"), ["torch"], SETTINGS, lambda *_: None)
    assert [r.status for r in found] == ["ok", "timed out"]
    assert found[1].ratio is None


def test_floor_multiplies_only_what_is_needed():
    for batch, products in ((small("smooth_ap"), 3), (small("smooth_ap", candidates=64), 2)):
        assert catalogue.shape(batch).products == products
        floor = contenders.Products(batch)
        floor.d_c.fill_(-1)
        floor()
        wanted = (floor.a @ floor.c.t()).t() @ floor.a
        if products == 3:
            torch.testing.assert_close(floor.d_c, wanted)
        else:
            assert bool((floor.d_c == -1).all())
    assert catalogue.shape(small("proxy_anchor")).rows == 20


@pytest.mark.parametrize(
    "loss,products",
    [
        ("contrastive", 4),  # S for the counts, S for the weights, two gradients
        ("info_nce", 4),  # S for the columns' sums
        ("relaxed_contrastive", 4),  # S and the teacher's
        ("rkd_distance", 8),  # the student's mean with its gradient, the teacher's, and the four of the loss
        ("margin", 3),
    ],
)
def test_floor_counts_every_similarity_that_is_needed(loss, products):
    assert catalogue.shape(small(loss)).products == products
    floor = contenders.Products(small(loss))
    floor.d_c.fill_(torch.nan)
    floor()
    assert floor.d_c.isfinite().all()


def test_floor_by_blocks_equals_the_whole(monkeypatch):
    workload = dataclasses.replace(small("smooth_ap"), dtype="float64")
    whole = contenders.Products(workload)
    monkeypatch.setattr(contenders, "_WHOLE", 8192)
    blocks = contenders.Products(workload)
    assert blocks.s.shape[0] < whole.s.shape[0] == 48
    blocks.a.copy_(whole.a), blocks.c.copy_(whole.c)
    whole(), blocks()
    torch.testing.assert_close(blocks.d_a, whole.d_a)
    torch.testing.assert_close(blocks.d_c, whole.d_c)


def test_a_batch_of_more_classes_than_proxies():
    workload = dataclasses.replace(small("proxy_anchor"), batch=100, per_class=2)
    labels = catalogue.inputs(workload).labels
    assert int(labels.max()) < workload.classes == 20
    assert len(labels.unique()) == 20
    contenders.make("auto", workload)()


def test_every_preset_names_known_things():
    for preset in (*presets.PRESETS.values(), *(module.cases for module in JUDGED.values())):
        for workload, names in preset():
            catalogue.check_loss(workload.loss)
            assert set(names) <= set(contenders.CONTENDERS)


def test_shared_losses_are_those_of_both_libraries():
    pml = pytest.importorskip("pytorch_metric_learning.losses")
    # Those that torch evaluates have no floor of products; these are not in the presets.
    further = {"AngularLoss", "DynamicSoftMarginLoss", "P2SGradLoss", "ThresholdConsistentMarginLoss"}
    both = {n for n, m in losses.MODULES.items() if hasattr(pml, n) and m.in_torch is None}
    assert set(catalogue.SHARED) | further == both
    for name in ("ArcFaceLoss", "NormalizedSoftmaxLoss", "NPairsLoss", "MultiSimilarityLoss"):
        workload = small(name)
        of = {who: contenders.make(who, workload) for who in ("native", "pml")}
        assert of["native"]().item() == pytest.approx(of["pml"]().item(), rel=1e-4)


@pytest.mark.parametrize("name", catalogue.SHARED)
def test_shared_losses_run_on_both_sides(name):
    """Of more classes than a proxy loss has proxies, too."""
    pytest.importorskip("pytorch_metric_learning")
    workload = Workload(name, 96, dim=8, classes=7)
    for contender in ("chunked", "pml"):
        step = contenders.make(contender, workload)
        assert step().isfinite()
        assert all(x.grad is not None for x in step.leaves.values())


def test_requirements_are_judged():
    def of(loss: str, batch: int, contender: str, ms: float, ratio: float) -> record.Record:
        return record.Record(
            loss, contender, "", batch, batch, batch, 128, 4, "float32", "cpu", 2.0, ms=ms,
            ratio=ratio, extra_mib=10.0,
        )  # fmt: skip

    mined = "multi_similarity:epsilon=0.1"
    rows = [of(mined, 4096, "native", 10, 1.25), of(mined, 4096, "pml", 100, 12.5)]
    found = {r.text: r for r in JUDGED["issue"].judged(rows)}
    assert found["multi_similarity, B=4096, native / products"].met is True
    assert found["multi_similarity, B=4096, pytorch-metric-learning / native"].met is False
    assert found["smooth_ap, B=4096, native / products"].met is None
    assert found["multi_similarity, B=4096, native: memory beyond inputs and gradients"].met is True


def test_requirements_of_ranks_are_judged():
    def of(batch: int, per_class: int, contender: str, ms: float, ratio: float) -> record.Record:
        return record.Record(
            "smooth_ap", contender, "", batch, batch, batch, 128, per_class, "float32", "cpu", 2.0,
            ms=ms, ratio=ratio, peak_mib=100 * ms, extra_mib=10.0,
        )  # fmt: skip

    rows = [of(4096, 4, "native", 9, 1.9), of(4096, 64, "native", 30, 6.5)]
    rows += [of(512, 4, "native", 1, 2), of(512, 4, "pml", 500, 900)]
    found = {r.text: r for r in JUDGED["ranks"].judged(rows)}
    assert found["smooth_ap, B=4096, 4 per class, native / products"].met is True
    assert found["smooth_ap, B=4096, 64 per class, native / products"].met is False
    assert found["smooth_ap, B=512, time of the dense form (pml) / native"].measured == "500x"
    assert found["smooth_ap, B=512, memory of the dense form (pml) / native"].met is True
    assert found["smooth_ap, B=32768, workspace"].met is None
    assert found["sup_ap, B=4096, 4 per class, native / products"].met is None


def test_requirements_of_losses_are_judged():
    def of(loss: str, batch: int, products: int, ratio: float) -> record.Record:
        return record.Record(
            loss, "native", "", batch, batch, batch, 128, 4, "float32", "cpu", 2.0,
            ms=5.0, ratio=ratio, products=products, extra_mib=65.0,
        )  # fmt: skip

    rows = [of("contrastive", 4096, 4, 1.2), of("log_ratio", 4096, 4, 1.4), of("nca", 4096, 3, 1.6)]
    found = {r.text: r for r in JUDGED["losses"].judged([*rows, of("ArcFaceLoss", 256, 3, 9.0)])}
    assert found["contrastive, native / its 4 products"].met is True
    assert found["contrastive, native / 3 products"].met is False  # 1.6
    assert found["log_ratio, native / its 4 products"].met is True
    assert "log_ratio, native / 3 products" not in found  # one of its four is the teacher's
    assert found["nca, native / its 3 products"].met is False
    assert found["nca, workspace"].met is False
    assert found["ArcFaceLoss, 1000000 classes, seconds of a step"].met is True
    assert found["ArcFaceLoss, native / its 3 products"].met is None
    judged = {w.loss for w, _ in JUDGED["losses"].cases()}
    assert {"relaxed_contrastive", "circle", "SoftTripleLoss"} <= judged and "smooth_ap" not in judged


@compiled
def test_kernels_are_timed_in_every_instruction_set():
    before = library.load().active_isa()
    asked = ["smooth_ap", "contrastive", "ArcFaceLoss"]
    found = kernels.measure([small(loss) for loss in asked], 16, 3, lambda _: None)
    assert library.load().active_isa() == before
    assert {k.isa for k in found} <= set(library.load().isas())
    pairs = set(itertools.product(asked, {k.isa for k in found}))
    assert {(k.loss, k.isa) for k in found} == pairs
    assert all(k.both.median > 0 and k.forward.median > 0 for k in found)
    sizes = {k.loss: (k.rows, k.columns) for k in found}
    assert sizes["ArcFaceLoss"] == (16, small("ArcFaceLoss").classes) != sizes["smooth_ap"]
