"""A trained embedder saved, loaded, and embedding files."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from fastdml import cli
from fastdml.demo.data import load_icons
from fastdml.demo.model import SmallCNN
from fastdml.integrations import load_embedder, save_embedder

IMAGE = {"size": 32, "channels": 1}


@pytest.fixture(scope="module")
def trained():
    """Weights and running statistics that no fresh network has."""
    torch.manual_seed(0)
    model = SmallCNN(embedding_size=16, width=4)
    model(torch.rand(8, 1, 32, 32))
    return model.eval()


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedder")
    save_embedder(trained, folder, arguments={"embedding_size": 16, "width": 4}, image=IMAGE)
    return folder


@pytest.fixture(scope="module")
def icons():
    return load_icons(max_classes=4)[0]


def embed(*argv, capsys=None) -> tuple[int, str]:
    try:
        status = cli.main(["embed", *map(str, argv)])
    except SystemExit as stop:
        status = int(stop.code or 0)
    said = capsys.readouterr()
    return status, said.out + said.err


def test_what_is_loaded_is_what_was_saved(trained, saved, icons):
    with torch.inference_mode():
        want = trained(icons.pixels)
        loaded = load_embedder(saved)
        assert not loaded.training and torch.equal(loaded(icons.pixels), want)
        given = SmallCNN(16, 4)
        assert load_embedder(saved, model=given) is given
        assert torch.equal(given(icons.pixels), want)
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_arrays_and_a_folder_of_images(trained, saved, icons, tmp_path, capsys):
    from PIL import Image

    with torch.inference_mode():
        want = trained(icons.pixels).numpy()
    np.save(tmp_path / "inputs.npy", icons.pixels.numpy())
    np.savez(tmp_path / "inputs.npz", pixels=icons.pixels.numpy(), other=np.zeros(3))
    for i, (pixels, label) in enumerate(zip(icons.pixels, icons.labels)):
        folder = tmp_path / "images" / icons.names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels[0] * 255).round().byte().numpy()).save(folder / f"{i:03}.png")

    out = tmp_path / "made" / "out.npy"
    for inputs, more in (("inputs.npy", ()), ("inputs.npz", ("--key", "pixels"))):
        status, said = embed(saved, tmp_path / inputs, out, "--batch-size", 7, *more, capsys=capsys)
        assert status == 0 and f"{len(want)} x 16" in said
        np.testing.assert_allclose(np.load(out), want, rtol=1e-5, atol=1e-6)

    assert embed(saved, tmp_path / "images", out, capsys=capsys)[0] == 0
    files = out.with_suffix(".files.txt").read_text().splitlines()
    labels = out.with_suffix(".labels.txt").read_text().splitlines()
    order = [int(name.rpartition("/")[2].removesuffix(".png")) for name in files]
    assert sorted(order) == list(range(len(want))) and files == sorted(files)
    np.testing.assert_allclose(np.load(out), want[order], rtol=1e-4, atol=1e-5)
    assert labels == [icons.names[icons.labels[i]] for i in order]


def test_a_file_may_be_embedded_in_place(saved, icons, tmp_path, capsys):
    np.save(tmp_path / "inputs.npy", icons.pixels.numpy())
    np.save(tmp_path / "same.npy", icons.pixels.numpy())
    for inputs, output in (("inputs.npy", "out.npy"), ("same.npy", "same.npy")):
        paths = (tmp_path / inputs, tmp_path / output)
        assert embed(saved, *paths, "--batch-size", 7, capsys=capsys)[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "same.npy"), np.load(tmp_path / "out.npy"))
    assert {p.name for p in tmp_path.iterdir()} == {"inputs.npy", "out.npy", "same.npy"}


@pytest.mark.parametrize("stop", ["a broken image", "an interrupt"])
def test_what_ends_early_leaves_no_output(stop, saved, tmp_path, monkeypatch, capsys):
    from PIL import Image

    folder, output = tmp_path / "images", tmp_path / "made" / "out.npy"
    folder.mkdir()
    for i in range(5):
        Image.new("L", (32, 32), i).save(folder / f"{i}.png")
    if stop == "an interrupt":
        forward = SmallCNN.forward

        def interrupted(self, x):
            if len(x) == 1:  # the last batch
                raise KeyboardInterrupt
            return forward(self, x)

        monkeypatch.setattr(SmallCNN, "forward", interrupted)
    else:
        (folder / "4.png").write_text("broken")
    status, _ = embed(saved, folder, output, "--batch-size", 2, capsys=capsys)
    assert status == (130 if stop == "an interrupt" else 2)
    assert list(output.parent.iterdir()) == []


def test_images_of_other_shapes_are_fitted(tmp_path):
    from PIL import Image

    from fastdml.integrations.files import Images

    Image.new("RGB", (100, 50), (255, 0, 0)).save(tmp_path / "wide.PNG")
    inputs = Images(tmp_path, {"size": 10, "mean": [0.5, 0.5, 0.5], "std": 0.5})
    (found,) = inputs.part(0, 1)
    assert found.shape == (3, 10, 10) and inputs.labels == ["."]
    assert (found[1:] == -1).all() and (found[0, 3:7] == 1).all() and (found[0, :2] == -1).all()
    (plain,) = Images(tmp_path, {}).part(0, 1)  # by default as ImageNet's are, in [0, 1]
    assert plain.shape == (3, 224, 224) and plain.unique().tolist() == [0, 1]
    with pytest.raises(ValueError, match="image: expected size, channels, mean, std, got sizes"):
        Images(tmp_path, {"sizes": 10})


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda f: (f / "config.json").unlink(), r"folder: expected config.json in"),
        (lambda f: (f / "model.safetensors").unlink(), r"folder: expected model.safetensors in"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: expected JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "config.json: expected format 1"),
        (lambda f: (f / "config.json").write_text('{"format": 1}'), "config.json: expected 'model' as save_"),
        (lambda f: edit(f, arguments=None), "config.json: expected 'arguments' as save_embedder writes it"),
        (lambda f: (f / "model.safetensors").write_bytes(b"abc"), "expected safetensors"),
        (lambda f: edit(f, model="os:system"), "expected the name of a class of networks, got 'os:system'"),
        (lambda f: edit(f, arguments={"width": 8}), "expected those of a network with the same weights"),
        (lambda f: edit(f, arguments={"height": 8}), "arguments: expected those of SmallCNN"),
    ],
)
def test_what_cannot_be_loaded_is_named(change, message, trained, tmp_path):
    save_embedder(trained, tmp_path, arguments={"embedding_size": 16, "width": 4})
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_embedder(tmp_path)


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_what_could_not_be_loaded_is_not_saved(trained, tmp_path):
    class Local(nn.Module):
        pass

    for call, message in (
        (lambda f: save_embedder(trained, f), "arguments: expected those of a network with the same"),
        (lambda f: save_embedder(trained, f, arguments={"embedding_size": {1}}), "expected what JSON has"),
        (lambda f: save_embedder(Local(), f), "model: expected one of a class that can be imported"),
    ):
        with pytest.raises(ValueError, match=message):
            call(tmp_path / "none")
    assert not (tmp_path / "none").exists()


class Plain(nn.Module):
    """With a buffer that is not saved, and tied weights."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)
        self.last.weight = self.first.weight
        self.register_buffer("scale", torch.ones(8), persistent=False)

    def forward(self, x):
        return self.last(self.norm(self.first(x)) * self.scale)


class Mixed(Plain):
    def forward(self, x):
        return self.last(self.norm(self.first(x).float()).to(x.dtype))


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_types_are_kept(kind, tmp_path):
    mixed = Mixed().to(kind)
    mixed.norm.float()
    for model in (Plain().to(kind), mixed):
        save_embedder(model.eval(), tmp_path)
        loaded = load_embedder(tmp_path)
        x = torch.randn(3, 8).to(kind)
        assert torch.equal(loaded(x), model(x)) and loaded.last.weight is loaded.first.weight
        assert [p.dtype for p in loaded.parameters()] == [p.dtype for p in model.parameters()]
    assert load_embedder(tmp_path, model=Mixed()).first.weight.dtype == torch.float32  # its own


def test_weights_that_lie_by_columns_and_another_device(tmp_path):
    model, x = Plain().eval(), torch.randn(3, 8)
    model.last.weight = model.first.weight = nn.Parameter(torch.randn(8, 8).t())
    save_embedder(model, tmp_path)
    assert torch.equal(load_embedder(tmp_path).first.weight, model.first.weight)
    torch.testing.assert_close(load_embedder(tmp_path)(x), model(x))
    assert all(p.device.type == "meta" for p in load_embedder(tmp_path, device="meta").parameters())


class ReadsNumbers(nn.Module):
    """As drop path does, whose rates are read from a tensor; and draws."""

    def __init__(self):
        super().__init__()
        rates = [rate.item() for rate in torch.linspace(0, 0.1, 2)]
        self.layers = nn.Sequential(nn.Linear(8, 4), nn.Dropout(rates[1]))

    def forward(self, x):
        return self.layers(x)


class WithState(Plain):
    def get_extra_state(self):
        return {"steps": 1}

    def set_extra_state(self, state):
        pass


class Broken(Plain):
    made = 0

    def __init__(self):
        super().__init__()
        Broken.made += 1
        if Broken.made > 1:
            raise KeyError("what is not here")


def test_constructors_that_read_numbers(tmp_path):
    model, x = ReadsNumbers().eval(), torch.randn(3, 8)
    before = torch.get_rng_state()
    save_embedder(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(load_embedder(tmp_path)(x), model(x))
    with pytest.raises(ValueError, match="model: expected a state of tensors, got dict as '_extra_state'"):
        save_embedder(WithState(), tmp_path / "none")
    with pytest.raises(ValueError, match=r"model: expected a class that makes .*what is not here"):
        save_embedder(Broken(), tmp_path / "none")


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(100, 8)

    def forward(self, x):
        return self.bag(x)


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_tokens_stay_integers(kind, tmp_path, capsys):
    tokens = np.random.default_rng(0).integers(0, 100, (10, 5)).astype(kind)
    np.save(tmp_path / "tokens.npy", tokens)
    model = Tokens()
    save_embedder(model, tmp_path / "embedder")
    files = tmp_path / "tokens.npy", tmp_path / "out.npy"
    status, said = embed(tmp_path / "embedder", *files, "--batch-size", 4, capsys=capsys)
    assert status == 0, said
    want = model(torch.from_numpy(tokens)).detach().numpy()
    assert np.allclose(np.load(tmp_path / "out.npy"), want)


def test_pixels_of_bytes_are_numbers(tmp_path, capsys):
    pixels = np.arange(24, dtype=np.uint8).reshape(3, 8)
    np.save(tmp_path / "pixels.npy", pixels)
    model = Plain().eval()
    save_embedder(model, tmp_path / "embedder")
    status, said = embed(tmp_path / "embedder", tmp_path / "pixels.npy", tmp_path / "out.npy", capsys=capsys)
    assert status == 0, said
    want = model(torch.from_numpy(pixels).float()).detach().numpy()
    assert np.allclose(np.load(tmp_path / "out.npy"), want, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_inputs_are_of_the_type_of_the_weights(kind, tmp_path, capsys):
    rows = np.random.default_rng(0).random((3, 8), dtype=np.float32)
    np.save(tmp_path / "rows.npy", rows)
    model = Plain().to(kind).eval()
    save_embedder(model, tmp_path / "embedder")
    files = tmp_path / "rows.npy", tmp_path / "out.npy"
    status, said = embed(tmp_path / "embedder", *files, capsys=capsys)
    assert status == 0, said
    want = model(torch.from_numpy(rows).to(kind)).detach().float().numpy()
    assert np.load(tmp_path / "out.npy").dtype == np.float32
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), want)


@pytest.mark.parametrize(
    "inputs,output,more,message",
    [
        ("flat.npy", "out.npy", (), "expected numbers [N, ...]"),
        ("text.npy", "out.npy", (), "expected an npy or npz file"),
        ("nothing.npy", "out.npy", (), "expected an npy or npz file"),
        ("half.npz", "out.npy", ("--key", "a"), "expected an npy or npz file"),
        ("coloured.npy", "out.npy", (), "coloured.npy: expected inputs that the embedder takes (Given"),
        ("two.npz", "out.npy", (), "--key: expected one of a, b, got None"),
        ("flat.npy", "out.txt", (), "output: expected a name that ends in .npy"),
        ("empty", "out.npy", (), "expected images"),
        ("flat.npy", "out.npy", ("--device", "cuda:99"), "--device: expected one that is here"),
        ("flat.npy", "out.npy", ("--device", "meta"), "--device: expected one that is here"),
        ("flat.npy", "out.npy", ("--batch-size", "0"), "--batch-size: expected an integer"),
    ],
)
def test_wrong_files_are_named(inputs, output, more, message, saved, tmp_path, capsys):
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "coloured.npy", np.zeros((2, 3, 32, 32)))
    (tmp_path / "text.npy").write_text("text")
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    (tmp_path / "half.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:100])
    (tmp_path / "nothing.npy").touch()
    (tmp_path / "empty").mkdir()
    status, said = embed(saved, tmp_path / inputs, tmp_path / output, *more, capsys=capsys)
    assert status == 2 and message in " ".join(said.split())
    assert not (tmp_path / output).exists()


def test_the_document_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs" / "embedders.md").read_text()
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    pixels = np.random.default_rng(0).random((5, 1, 32, 32), dtype=np.float32)
    np.save("inputs.npy", pixels)
    np.savez("images.npz", pixels=pixels)
    from PIL import Image

    (tmp_path / "photographs" / "some").mkdir(parents=True)
    Image.new("L", (40, 30)).save("photographs/some/one.jpg")
    commands = re.findall(r"^    fastdml (embed .*)$", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert cli.main(command.split()) == 0
    assert "embeddings.npy: 1 x 64" in capsys.readouterr().out
