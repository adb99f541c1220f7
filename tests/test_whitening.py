"""Claims about whitened scenes:

* those of the sounds that a whitening was measured on are centred and uncorrelated, in order of their variance;
* a whitened scene is the plain one less the mean, by the matrices, whoever asks: one clip, a batch, files, a graph;
* a file holds the whitening, and one that does not fit is refused by name;
* it is asked for, and refused for other layers and poolings;
* timestamps are never whitened; search finds the model again that embedded an index, whitened or not;
* `hear-jepa whiten` makes such a file, of the same weights, and says what is wrong with too little sound.
"""

from dataclasses import replace

import numpy
import pytest
import soundfile
import torch
from conftest import random_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import hear_jepa
from hear_jepa import Embedder, cli
from hear_jepa.commands.export import ExportedEmbedder
from hear_jepa.errors import CheckpointError, OptionError
from hear_jepa.evaluation.baselines.untrained import untrained
from hear_jepa.explore.same_model import load_same_model
from hear_jepa.files.formats import open_output
from hear_jepa.model.checkpoint import load_checkpoint, save_checkpoint
from hear_jepa.model.pooling import ScenesMeasured

KEPT = 6


@pytest.fixture(scope="module")
def scenes():
    """[1200, 2 · 20], correlated, of unlike variance."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(1200, 40, generator=generator) * torch.linspace(0.1, 3, 40)
    return 5 + mixed @ torch.randn(40, 40, generator=generator)


def measured(scenes, kept=None):
    found = ScenesMeasured(2, 20)
    for part in scenes.split([1, 550, 649]):
        found.add(part)
    return found.whitening(kept)


@pytest.mark.parametrize("kept", [None, KEPT])
def test_whitened_scenes_are_centred_and_uncorrelated(scenes, kept):
    whitening = measured(scenes, kept)
    whitened = whitening(scenes).double()
    assert whitened.shape == (1200, whitening.size) and whitening.size == 2 * (kept or 20)
    assert whitened.mean(0).abs().max() < 1e-5
    for part, plain in zip(whitened.chunk(2, 1), scenes.double().chunk(2, 1), strict=True):
        covariance = part.T @ part / 1200
        variance = torch.linalg.eigvalsh(torch.cov(plain.T, correction=0)).flip(0)
        expected = variance / (variance + variance.mean())
        torch.testing.assert_close(covariance, torch.diag(expected[: part.shape[1]]), rtol=0, atol=1e-5)


def test_too_few_scenes_and_too_many_components_are_refused(scenes):
    with pytest.raises(OptionError, match="1 to 20, not 21"):
        measured(scenes, 21)
    few = ScenesMeasured(2, 20)
    few.add(scenes[:20])
    with pytest.raises(OptionError, match="20 scenes do not tell 20 components"):
        few.whitening()
    assert few.whitening(19).size == 38
    alike = ScenesMeasured(2, 20)
    alike.add(scenes[:1].expand(50, -1))
    with pytest.raises(OptionError, match="all alike"):
        alike.whitening(3)


@pytest.fixture(scope="module")
def whitened(minute):
    """A checkpoint that serves mean and deviation of two layers, whitened on parts of a minute of sound."""
    plain = random_checkpoint()
    plain = replace(plain, served=replace(plain.served, layers=(0, 1), pooling="mean+std"))
    model = Embedder(plain)
    found = ScenesMeasured(2, model.timestamp_embedding_size)
    found.add(model.scenes(minute[: 64 * 12_800].unfold(0, 12_800, 6_400)))
    return replace(plain, whitening=found.whitening(KEPT))


def test_a_scene_is_the_plain_one_by_the_matrices(whitened, minute, tmp_path):
    model, plain = Embedder(whitened, whiten=True), Embedder(whitened)
    assert model.scene_embedding_size == 2 * KEPT == model.size_of("windows")
    clips = minute[:200_000].reshape(4, 50_000)
    scenes = model.scenes(clips)
    mean, maps = whitened.whitening.mean.numpy(), whitened.whitening.maps.numpy()
    parts = (plain.scenes(clips).numpy() - mean).reshape(4, 2, -1)
    numpy.testing.assert_allclose(scenes, numpy.einsum("cps,psk->cpk", parts, maps).reshape(4, -1), atol=1e-4)
    torch.testing.assert_close(torch.cat([model.scenes(clip[None]) for clip in clips]), scenes, rtol=0, atol=1e-4)
    soundfile.write(tmp_path / "clip.wav", clips[0].numpy(), 16000, subtype="FLOAT")
    (file,) = model.embed_files([tmp_path / "clip.wav"])
    numpy.testing.assert_allclose(file.embeddings[0], scenes[0], atol=1e-4)
    (file,) = model.embed_files([tmp_path / "clip.wav"], "windows", window_s=10)
    numpy.testing.assert_allclose(file.embeddings[0][0], scenes[0], atol=1e-4)
    graph = ExportedEmbedder(model, "scene")
    torch.testing.assert_close(graph(clips), scenes, rtol=0, atol=1e-3)
    torch.testing.assert_close(model.timestamps(clips), plain.timestamps(clips), rtol=0, atol=0)


def test_a_file_holds_the_whitening_and_only_one_that_fits(whitened, tmp_path):
    path = tmp_path / "whitened.safetensors"
    save_checkpoint(path, whitened)
    found = load_checkpoint(path)
    assert torch.equal(found.whitening.maps, whitened.whitening.maps)
    assert torch.equal(found.whitening.mean, whitened.whitening.mean)
    assert set(found.weights) == set(whitened.weights)
    other = replace(whitened, served=replace(whitened.served, pooling="mean"))
    save_checkpoint(tmp_path / "other.safetensors", other)
    with pytest.raises(CheckpointError, match="whitening.ma"):
        load_checkpoint(tmp_path / "other.safetensors")
    tensors = load_file(path)
    del tensors["whitening.mean"]
    with safe_open(path, "pt") as file:
        header = file.metadata()
    save_file(tensors, tmp_path / "half.safetensors", metadata=header)
    with pytest.raises(CheckpointError, match="whitening.mean is absent"):
        load_checkpoint(tmp_path / "half.safetensors")


def test_it_is_asked_for_and_must_fit(whitened):
    assert Embedder(whitened).whitening is None
    assert Embedder(whitened, layers=[0, 1], pooling="mean+std", scene_hop_ms=40, whiten=True).whitening is not None
    assert untrained(whitened).whitening is None
    for other in ({"layers": 1}, {"pooling": "mean"}):
        with pytest.raises(OptionError, match=r"layers \[0, 1\] and pooling mean\+std"):
            Embedder(whitened, **other, whiten=True)
    with pytest.raises(OptionError, match="hear-jepa whiten"):
        Embedder(replace(whitened, whitening=None), whiten=True)


def sha256_without(path):
    return hear_jepa.load_model(path).weights_sha256("scene")


def write_sounds(folder, count):
    folder.mkdir()
    for number in range(count):
        noise = numpy.random.default_rng(number).normal(0, 0.02 * (number + 1), 40_000)
        soundfile.write(folder / f"{number}.wav", noise, 16000)
    return str(folder)


def test_the_command_whitens_a_checkpoint(whitened, tmp_path, capsys):
    plain, out = tmp_path / "plain.safetensors", tmp_path / "out.safetensors"
    save_checkpoint(plain, replace(whitened, whitening=None))
    sounds = write_sounds(tmp_path / "sounds", 5)
    arguments = ["whiten", str(plain), sounds, "--out", str(out), "--window-s", "0.5"]
    assert cli.main([*arguments, "--components", "3"]) == 0
    assert "25 scenes" in capsys.readouterr().out
    made = load_checkpoint(out)
    assert made.whitening.size == 6
    assert all(torch.equal(made.weights[name], tensor) for name, tensor in whitened.weights.items())
    assert made.provenance["whitened_on"]["scenes"] == 25
    assert cli.main([*arguments, "--components", "25"]) == 2
    assert "25 scenes do not tell 25 components: take more sound" in capsys.readouterr().err
    assert cli.main([*arguments, "--components", "3", "--hours", "0.0006"]) == 0  # one file is as long
    assert "5 scenes" in capsys.readouterr().out


def test_search_takes_the_model_that_embedded_the_index(whitened, tmp_path, capsys):
    path, sounds = tmp_path / "whitened.safetensors", write_sounds(tmp_path / "sounds", 3)
    save_checkpoint(path, whitened)
    index = str(tmp_path / "index.npz")
    assert cli.main(["embed", sounds, "--out", index, "--model", str(path), "--whiten"]) == 0
    assert open_output(index).settings["embedding_size"] == 2 * KEPT
    columns = ["embed", sounds, "--out", str(tmp_path / "t.npz"), "--model", str(path), "--kind", "timestamps"]
    assert cli.main([*columns, "--whiten"]) == 2
    assert "timestamps have no whitening" in capsys.readouterr().err
    assert cli.main(["search", index, f"{sounds}/1.wav", "--model", str(path), "-k", "1"]) == 0
    assert "1.wav" in capsys.readouterr().out
    plain = str(tmp_path / "plain.npz")
    settings = {**open_output(index).settings, "whitened": False}
    assert load_same_model(str(path), settings | {"weights_sha256": sha256_without(path)}, plain).whitening is None
    save_checkpoint(path, replace(whitened, whitening=None))
    assert cli.main(["search", index, f"{sounds}/1.wav", "--model", str(path), "-k", "1"]) == 2
