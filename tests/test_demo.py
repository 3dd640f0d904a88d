import json
import subprocess
import sys
import types

import pytest
import torch

import fastdml
from fastdml import cli
from fastdml.demo import augment, cost, report
from fastdml.demo.augment import jitter
from fastdml.demo.data import load_icons
from fastdml.demo.extras import require
from fastdml.demo.losses import available_losses, build_loss, canonical_name, learns_proxies
from fastdml.demo.model import SmallCNN, embed
from fastdml.demo.options import Options, from_arguments
from fastdml.demo.train import PROXY_RATE, _optimizer, new_model, train
from fastdml.metrics import retrieval_metrics


class Silent:
    """Stands in for the progress bar."""

    seconds = 1.0

    def start(self, title, steps):
        self.expected, self.seen = steps, 0

    def step(self, loss, images):
        self.seen += 1

    def paused(self):
        return torch.no_grad()


# ---- data


def test_split_keeps_classes_apart():
    training, test = load_icons()
    assert len(training) == len(test) == 3744
    assert len(set(training.names)) == len(set(test.names)) == 624
    assert not set(training.names) & set(test.names)
    for images in (training, test):
        assert images.pixels.shape == (3744, 1, 32, 32)
        assert images.pixels.min() == 0 and images.pixels.max() == 1
        assert torch.equal(images.labels.bincount(), torch.full((624,), 6))


def test_split_follows_the_seed():
    names = [load_icons(seed)[0].names for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_fewer_classes_on_request():
    training, test = load_icons(max_classes=5)
    assert len(training.names) == len(test.names) == 5 and len(training) == 30
    assert training.labels.unique().tolist() == [0, 1, 2, 3, 4]


def test_names_belong_to_the_pictures():
    training, test = load_icons()
    styles = {}
    for images in (training, test):
        for name in ("square", "minus"):
            if name in images.names:
                styles[name] = images.pixels[images.labels == images.names.index(name)]
    # A minus is a bar across the middle, a square an outline around it. Not so in every style: a
    # filled minus is white on black.
    bar, outline = (styles[name][:, 0].median(dim=0).values for name in ("minus", "square"))
    assert (bar[15:17, 10:22] > 0.4).all() and (bar[:12] == 0).all()
    assert (outline[12:20, 12:20] == 0).all() and (outline[4:8, 12:20].amax(0) > 0.4).all()


# ---- augmentation


def still(monkeypatch, **kept):
    settings = {"MAX_ROTATION": 0.0, "SCALES": (1.0, 1.0), "MAX_SHIFT": 0.0, **kept}
    for name, value in settings.items():
        monkeypatch.setattr(augment, name, value)


def test_no_jitter_is_the_identity(monkeypatch):
    still(monkeypatch)
    x = load_icons(max_classes=5)[0].pixels
    torch.testing.assert_close(jitter(x, torch.Generator()), x, atol=1e-5, rtol=0)


def blob(x=15.5, y=15.5, radius=4.0):
    grid = torch.arange(32.0)
    distance = ((grid[None] - x) ** 2 + (grid[:, None] - y) ** 2).sqrt()
    return (radius + 0.5 - distance).clamp(0, 1).expand(400, 1, 32, 32)


def centres(images):
    grid, ink = torch.arange(32.0), images[:, 0]
    mass = ink.sum((1, 2))
    return (ink.sum(1) @ grid / mass, ink.sum(2) @ grid / mass)


def test_shifts_reach_a_tenth_of_the_width(monkeypatch):
    still(monkeypatch, MAX_SHIFT=0.1)
    for centre in centres(jitter(blob(), torch.Generator().manual_seed(0))):
        offset = centre - 15.5
        assert 3.0 < offset.abs().max() <= 3.2 + 1e-3
        assert abs(offset.mean()) < 0.4  # both directions


def test_scales_stay_in_their_range(monkeypatch):
    still(monkeypatch, SCALES=(0.75, 1.1))
    area = jitter(blob(radius=8.0), torch.Generator().manual_seed(0)).sum((1, 2, 3))
    scale = (area / blob(radius=8.0)[0].sum()).sqrt()
    assert 0.73 < scale.min() < 0.77 and 1.08 < scale.max() < 1.12


def test_rotations_stay_in_their_range(monkeypatch):
    still(monkeypatch, MAX_ROTATION=augment.MAX_ROTATION)
    x, y = centres(jitter(blob(x=25.5, radius=3.0), torch.Generator().manual_seed(0)))
    angle = torch.rad2deg(torch.atan2(y - 15.5, x - 15.5))
    assert 19 < angle.max() < 20.5 and -20.5 < angle.min() < -19
    torch.testing.assert_close((x - 15.5).hypot(y - 15.5), torch.full((400,), 10.0), atol=0.1, rtol=0)


def test_jitter_is_seeded_and_differs_between_images():
    x = load_icons(max_classes=5)[0].pixels[:1].expand(8, 1, 32, 32)
    one, two, other = (jitter(x, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert len({tuple(image.flatten().tolist()) for image in one}) == 8
    assert one.min() >= 0 and one.max() <= 1


# ---- model


def test_embedding_does_not_depend_on_its_batch():
    model = SmallCNN().train()
    x = load_icons(max_classes=5)[0].pixels
    whole = embed(model, x)
    assert whole.shape == (30, 128) and not whole.requires_grad
    torch.testing.assert_close(embed(model, x, batch_size=7), whole, atol=1e-5, rtol=1e-5)
    assert model.training
    assert sum(isinstance(m, torch.nn.Conv2d) for m in model.modules()) == 5


# ---- losses by name


@pytest.mark.parametrize("name", ["smooth_ap", "SmoothAPLoss", "smooth-ap", "SMOOTH_AP", "smoothap"])
def test_names_of_losses(name):
    assert canonical_name(name) == "smooth_ap"


def test_unknown_loss_is_named():
    with pytest.raises(ValueError, match=r"loss: expected one of .*multi_similarity.*, got 'nope'"):
        canonical_name("nope")


def test_losses_are_built_for_the_demo():
    multi_similarity = build_loss("multi_similarity", 7, 5, "dense")
    assert multi_similarity.epsilon == 0.1, "the miner must be on"
    assert multi_similarity.backend == "dense"
    proxy_anchor = build_loss("proxy_anchor", 7, 5, "auto")
    assert proxy_anchor.proxies.shape == (7, 5)
    assert {"multi_similarity", "proxy_anchor", "smooth_ap"} <= set(available_losses())
    learning = [learns_proxies(n) for n in ("multi_similarity", "proxy_anchor", "smooth_ap")]
    assert learning == [False, True, False]


def test_later_losses_need_no_change_here(monkeypatch):
    class Base(torch.nn.Module):
        def __init__(self, *, backend="auto", temperature=1.0):
            super().__init__()
            self.backend = backend

        def forward(self, embeddings, labels, indices_tuple=None):
            raise NotImplementedError

    class BrandNewXYLoss(Base):
        def __init__(self, num_classes, scale=2.0, **kwargs):
            super().__init__(**kwargs)
            self.num_classes = num_classes

    class NeedsMoreLoss(Base):
        def __init__(self, teacher, **kwargs):
            super().__init__(**kwargs)

    class OfTwoSetsLoss(Base):
        def forward(self, embeddings, ref_emb):
            raise NotImplementedError

    for loss in (BrandNewXYLoss, NeedsMoreLoss, OfTwoSetsLoss):
        monkeypatch.setitem(fastdml.losses.MODULES, loss.__name__, loss)
    built = build_loss("brand-new-xy", 7, 5, "chunked")
    assert (built.num_classes, built.backend) == (7, "chunked")
    assert "brand_new_xy" in available_losses() and "needs_more" not in available_losses()
    with pytest.raises(ValueError, match="needs_more needs teacher"):
        canonical_name("needs_more")
    with pytest.raises(ValueError, match="of_two_sets needs other labels than classes, which"):
        canonical_name("of_two_sets")


# ---- options


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"batch_size": 30}, "batch_size: expected a multiple of per_class=4"),
        ({"batch_size": 4}, "batch_size: .* at least two classes"),
        ({"per_class": 1}, "per_class: expected at least 2"),
        ({"epochs": 0}, "epochs: expected an integer of at least 1"),
        ({"threads": 0}, "threads: expected an integer from 1 to 1024"),
        ({"seed": -1}, "seed: expected an integer of at least 0"),
        ({"threads": 1025}, "threads: expected an integer from 1 to 1024"),
        ({"backend": "abacus"}, "backend: expected one of auto"),
    ],
)
def test_bad_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Options(**changes)


def parse(*argv):
    return from_arguments(cli._parser().parse_args(["demo", *argv]))


def test_options_of_the_command_line():
    assert parse() == Options()
    chosen = parse("--loss", "SmoothAPLoss", "--loss", "multi_similarity", "--loss", "smooth_ap",
                   "--batch-size", "96", "--per-class", "3", "--epochs", "2", "--seed", "5",
                   "--backend", "chunked", "--output", "here", "--threads", "1")  # fmt: skip
    assert chosen.losses == ("smooth_ap", "multi_similarity")
    assert (chosen.batch_size, chosen.per_class, chosen.epochs, chosen.seed) == (96, 3, 2, 5)
    assert (chosen.backend, str(chosen.output), chosen.threads) == ("chunked", "here", 1)
    assert set(parse("--loss", "all").losses) == set(available_losses())
    assert parse("--quick").epochs == 1 and parse("--quick", "--epochs", "3").epochs == 3


# ---- training

SMALL = Options(batch_size=64, epochs=6, max_classes=60)


def train_small(name="multi_similarity", **changes):
    options = Options(**{**vars(SMALL), **changes})
    training, test = load_icons(options.seed, options.max_classes)
    pixels = jitter(test.pixels, torch.Generator().manual_seed(0))
    progress = Silent()
    result = train(
        name,
        training,
        lambda model: retrieval_metrics(embed(model, pixels), test.labels),
        options,
        progress,
    )
    assert progress.seen == progress.expected == len(result.losses)
    return result


def test_training_learns_unseen_classes():
    """Of one loss, whose proxies learn too; the leaderboard has all."""
    result = train_small("proxy_anchor")
    start, end = result.losses[:5], result.losses[-5:]
    assert sum(end) < 0.95 * sum(start)
    assert list(result.curve) == [0, 2, 4, 6]
    assert result.curve[6]["map@r"] > 1.5 * result.curve[0]["map@r"]


def test_training_repeats_itself():
    one, two, other = (train_small(epochs=1, seed=seed) for seed in (0, 0, 1))
    assert one.losses == two.losses != other.losses
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_every_loss_starts_from_the_same_network():
    weights = [list(new_model(seed).parameters()) for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*weights[:2], strict=True))
    assert not torch.equal(weights[0][0], weights[2][0])


def test_proxies_learn_faster_than_the_network():
    model, loss = SmallCNN(), build_loss("proxy_anchor", 7, 128, "auto")
    optimizer, _ = _optimizer(model, loss, 1e-3, 10)
    network, proxies = optimizer.param_groups
    assert proxies["params"] == [loss.proxies]
    assert len(network["params"]) == len(list(model.parameters()))
    assert proxies["lr"] == pytest.approx(PROXY_RATE * network["lr"])
    optimizer, _ = _optimizer(model, build_loss("smooth_ap", 7, 128, "auto"), 1e-3, 10)
    assert len(optimizer.param_groups) == 1


def test_a_loss_that_is_not_finite_stops_the_training(monkeypatch):
    class BrokenLoss(torch.nn.Module):
        def forward(self, embeddings, labels):
            return embeddings.sum() * torch.nan

    monkeypatch.setitem(fastdml.losses.MODULES, "BrokenLoss", BrokenLoss)
    with pytest.raises(FloatingPointError, match="broken: the loss is nan in epoch 1"):
        train_small("broken")


# ---- cost


def batch(classes=16, per_class=4, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    centre = torch.randn(classes, 1, 8, generator=g)
    x = centre + 0.7 * torch.randn(classes, per_class, 8, generator=g)
    return x.flatten(0, 1).to(dtype), torch.arange(classes).repeat_interleave(per_class)


def test_plain_torch_computes_the_same_loss():
    embeddings, labels = batch(dtype=torch.float64)
    results = []
    for loss in (cost.plain_torch, fastdml.losses.MultiSimilarityLoss(epsilon=0.1)):
        leaf = embeddings.clone().requires_grad_()
        value = loss(leaf, labels)
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    torch.testing.assert_close(*results, atol=1e-10, rtol=1e-8)


def test_costs_are_measured_and_compared():
    pytest.importorskip("pytorch_metric_learning")
    costs = cost.compare_costs([batch(), batch(32)], "auto", seconds=0)
    names = ["fastdml", "plain torch", "pytorch-metric-learning"]
    assert [c.contender for c in costs] == names * 2
    assert [c.batch for c in costs] == [64] * 3 + [128] * 3
    for first, measured in zip([costs[0]] * 3 + [costs[3]] * 3, costs, strict=True):
        assert measured.rounds >= cost.FEWEST_ROUNDS and measured.note == ""
        assert measured.ratio == pytest.approx(measured.milliseconds / first.milliseconds)


@pytest.mark.parametrize("wrong", [lambda x, y: x.square().sum(), lambda x, y: 1.01 * x.sum()])
def test_a_wrong_contender_is_not_compared(monkeypatch, wrong):
    monkeypatch.setattr(cost, "_pytorch_metric_learning", lambda: wrong)
    *others, last = cost.compare_costs([batch()], "auto", seconds=0)
    assert last.milliseconds is None and last.ratio is None and "wrong result" in last.note
    assert all(c.ratio for c in others)


def test_a_missing_contender_is_skipped_with_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    *_, last = cost.compare_costs([batch()], "auto", seconds=0)
    assert last.milliseconds is None and "pip install fastdml[demo]" in last.note


# ---- report


def test_queries_are_typical_ones_and_misses():
    labels = torch.arange(40) // 2
    neighbours = (torch.arange(40) ^ 1)[:, None].repeat(1, 5)  # all right ...
    neighbours[::5, 0] = (neighbours[::5, 0] + 20) % 40  # ... but eight
    queries = report.choose_queries(labels, neighbours, 10, 3, seed=0)
    assert len(set(queries)) == 10 and all(query % 5 == 0 for query in queries[-3:])
    assert report.choose_queries(labels, torch.arange(40)[:, None] ^ 1, 10, 3, 0) == queries[:7]


def test_table_of_recalls_in_per_cent():
    from rich.console import Console

    scores = {"recall@1": 0.5, "recall@4": 0.75, "map@r": 0.1234}
    table = report.recall_table({"ours": {"plain": scores, "jittered": {**scores, "map@r": 0.9}}})
    console = Console(width=100, record=True)
    console.print(table)
    text = console.export_text()
    row = next(line for line in text.splitlines() if "ours" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [
        "ours", "50.0", "75.0", "12.3", "50.0", "75.0", "90.0"
    ]  # fmt: skip


# ---- command line


def test_demo_from_start_to_end(tmp_path, capsys):
    output = tmp_path / "new" / "folder"
    threads = torch.get_num_threads()
    argv = ["demo", "--quick", "--loss", "proxy_anchor", "--loss", "smooth_ap", "--threads", "1"]
    assert cli.main([*argv, "--output", str(output)]) == 0
    assert torch.get_num_threads() == threads
    text = capsys.readouterr().out
    for name in ("neighbours.png", "curves.png", "results.json"):
        assert str(output / name) in text.replace("\n", "")
        assert (output / name).stat().st_size > 1000
    for name in ("neighbours.png", "curves.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    results = json.loads((output / "results.json").read_text())
    assert list(results["scores"]) == ["raw pixels", "untrained network", "proxy_anchor", "smooth_ap"]
    for by_condition in results["scores"].values():
        for values in by_condition.values():
            assert set(values) == {"recall@1", "recall@4", "map@r"}
            assert all(0 <= value <= 1 for value in values.values())
    assert results["training"]["smooth_ap"]["images_per_second"] > 0
    assert [c["batch"] for c in results["costs"][::3]] == [64, 128]
    assert results["options"]["losses"] == ["proxy_anchor", "smooth_ap"]


def test_no_command_prints_help(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("demo", "bench", "explain", "info"))


def test_demo_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("loss", "batch-size", "per-class", "epochs", "backend", "seed", "output",
                   "threads", "quick"):  # fmt: skip
        assert f"--{option}" in text


def test_bench_receives_its_own_arguments(monkeypatch):
    received = []
    bench = types.SimpleNamespace(main=lambda argv: received.append(argv))
    monkeypatch.setitem(sys.modules, "fastdml.bench", bench)
    monkeypatch.setattr(fastdml, "bench", bench, raising=False)
    assert cli.main(["bench", "--help", "-x"]) == 0
    assert received == [["--help", "-x"]]


def test_info_and_explain(capsys):
    assert cli.main(["info"]) == 0
    assert "compiled" in capsys.readouterr().out
    assert cli.main(["explain", "multi_similarity", "512", "--dim", "64"]) == 0
    assert str(fastdml.explain("multi_similarity", 512, None, 64)) in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv,message",
    [
        (["demo", "--batch-size", "30"], "batch_size: expected a multiple"),
        (["demo", "--loss", "nope"], "loss: expected one of"),
        (["explain", "nope", "5"], "loss: expected one of"),
    ],
)
def test_mistakes_exit_with_a_message(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_more_classes_in_a_batch_than_exist(tmp_path, capsys):
    argv = ["demo", "--quick", "--batch-size", "4000", "--output", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 1
    assert "batch_size: expected at most m * number of classes" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["rich", "matplotlib"])
def test_a_missing_extra_says_how_to_get_it(package, monkeypatch, tmp_path, capsys):
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", "--quick", "--output", str(tmp_path)])
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert package in error and "pip install fastdml[demo]" in error


def test_a_broken_extra_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "broken_extra.py").write_text("import something_it_lacks")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="something_it_lacks"):
        require("broken_extra")


def test_importing_the_library_leaves_the_extras_alone():
    code = (
        "import sys, fastdml, fastdml.cli, fastdml.samplers, fastdml.metrics, fastdml.demo.run\n"
        "print([m for m in ('rich', 'matplotlib', 'pytorch_metric_learning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
