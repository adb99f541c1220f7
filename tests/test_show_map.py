"""The pictures' content; how they look is for eyes.

* Patch colours tell different sounds apart and equal ones not; the ticks of the frequency axis lie on the band that
  a tone of that frequency excites; time axes are the recording's seconds.
* Self-similarity is symmetric, 1 on the diagonal, and highest between repeats of a sound.
* The map's projection keeps clusters apart; labels are found by the end of a path; a table
  that fits nothing is refused.
* The commands write pictures.
"""

import math

import numpy
import pytest
import soundfile
import torch

from hear_jepa import Embedder
from hear_jepa.cli import main
from hear_jepa.commands.map import project, read_labels
from hear_jepa.commands.show import draw, excerpt, mel_ticks, patch_colours, self_similarity
from hear_jepa.errors import OptionError
from hear_jepa.model.checkpoint import save_checkpoint

pytest.importorskip("matplotlib")


def test_patch_colours_tell_sounds_apart():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(3, 32, generator=generator)
    which = torch.randint(3, (20, 5), generator=generator)
    colours = patch_colours(kinds[which] + 0.01 * torch.randn(20, 5, 32, generator=generator))  # [F, T, 3]
    assert colours.shape == (5, 20, 3) and colours.min() >= 0 and colours.max() <= 1
    spread = [colours[kind == which.T].std(0).max() for kind in range(3)]
    means = torch.stack([colours[kind == which.T].mean(0) for kind in range(3)])
    assert torch.pdist(means).min() > 0.5 and max(spread) < 0.5
    assert torch.isfinite(patch_colours(torch.ones(1, 5, 32))).all()


def test_repeats_are_alike(model, minute):
    sound = torch.cat([minute[:16000], minute[200000:216000], minute[:16000]])
    embeddings = model.timestamps(sound[None])[0][0]
    similarity = self_similarity(embeddings)
    torch.testing.assert_close(similarity, similarity.T)
    torch.testing.assert_close(similarity.diagonal(), torch.ones(len(similarity)))
    assert similarity[5:20, 55:70].diagonal().mean() > similarity[5:20, 30:45].diagonal().mean()


def test_frequency_ticks_lie_where_tones_do(model):
    places, labels = mel_ticks(model)
    for place, label in zip(places, labels, strict=True):
        tone = torch.sin(2 * math.pi * float(label) * torch.arange(16000) / 16000)
        assert abs(model.log_mel(tone[None])[0, :, 50].argmax().item() - place) <= 1


def test_axes_are_seconds_and_hertz(model, minute):
    figure = draw(model, minute[:48000], start_s=10.0)
    sound, colours, alike = figure.axes[:3]
    for axes in (sound, colours):
        assert axes.get_xlim() == (10.0, 13.0) and "(s)" in axes.get_xlabel() and "(Hz)" in axes.get_ylabel()
    left, right, bottom, top = alike.images[0].get_extent()
    assert (left, right) == (bottom, top) and 10 <= left < 10.06 and 12.94 < right <= 13.02


def test_an_excerpt_is_that_part_of_the_file(tmp_path, minute):
    soundfile.write(tmp_path / "a.wav", minute[:400000].numpy(), 16000, subtype="FLOAT")
    assert torch.equal(excerpt(tmp_path / "a.wav", 9.5, 2.0), minute[152000:184000])
    assert len(excerpt(tmp_path / "a.wav", 24.0, 60.0)) == 16000
    with pytest.raises(OptionError, match="25.00 s"):
        excerpt(tmp_path / "a.wav", 30.0, 1.0)


def test_the_projection_keeps_clusters_apart():
    generator = numpy.random.default_rng(0)
    centres = 5 * generator.normal(size=(3, 40))
    which = numpy.arange(60) % 3
    embeddings = (centres[which] + generator.normal(size=(60, 40))).astype("f4")
    embeddings[:, 7] = 1.0  # a dead dimension
    places, names = project(embeddings, "pca")
    means = numpy.stack([places[which == kind].mean(0) for kind in range(3)])
    nearest = ((places[:, None] - means) ** 2).sum(2).argmin(1)
    assert (nearest == which).all() and "%" in names[0]


def test_labels_are_found_by_the_end_of_a_path(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("path,label\na.wav,any\ndogs/a.wav,dog\nb.wav,bird\n", encoding="utf-8")
    assert read_labels(table, ["x/dogs/a.wav", "x/cats/a.wav", "b.wav", "c.wav"]) == ["dog", "any", "bird", ""]
    with pytest.raises(OptionError, match="c.wav"):
        read_labels(table, ["c.wav"])
    table.write_text("name;kind\na.wav;x\n", encoding="utf-8")
    with pytest.raises(OptionError, match="path and label"):
        read_labels(table, ["a.wav"])


def test_the_commands_write_pictures(tmp_path, checkpoint, minute):
    weights = tmp_path / "small.safetensors"
    save_checkpoint(weights, checkpoint)
    for number in range(4):
        soundfile.write(tmp_path / f"{number}.wav", minute[50000 * number :][:20000].numpy(), 16000)
    assert main(["show", str(tmp_path / "0.wav"), "--model", str(weights), "--out", str(tmp_path / "show.png")]) == 0
    out = tmp_path / "e.npz"
    assert main(["embed", str(tmp_path), "--model", str(weights), "--out", str(out), "--kind", "timestamps"]) == 0
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n0.wav,x\n1.wav,y\n", encoding="utf-8")
    assert main(["map", str(out), "--labels", str(labels)]) == 0
    for name in ("show.png", "e.map.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert main(["map", str(tmp_path / "0.wav")]) == 2


def test_one_patch_can_be_drawn(checkpoint):
    draw(Embedder(checkpoint), torch.ones(100))
