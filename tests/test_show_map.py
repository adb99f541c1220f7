"""The pictures' content; how they look is for eyes.

* Patch colours tell different sounds apart and equal ones not; the ticks of the frequency axis lie on the band that
  a tone of that frequency excites; time axes are the recording's seconds.
* Self-similarity is symmetric, 1 on the diagonal, and highest between repeats of a sound.
* The map's projection has the largest variances and keeps kinds apart; neighbours are those of all cosines.
* The commands write pictures, and say what they cannot write, draw or play.
"""

import math
import tarfile

import numpy
import pytest
import soundfile
import torch

from hear_jepa import Embedder
from hear_jepa.cli import main
from hear_jepa.errors import AudioError, OptionError
from hear_jepa.explore.excerpt import read_excerpt
from hear_jepa.explore.map import write_page
from hear_jepa.explore.projection import clusters, project
from hear_jepa.explore.recording_picture import draw, mel_ticks, patch_colours, self_similarity
from hear_jepa.explore.similarity import Standardiser, nearest, neighbours
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
    assert torch.equal(read_excerpt(tmp_path / "a.wav", 9.5, 11.5), minute[152000:184000])
    assert len(read_excerpt(tmp_path / "a.wav", 24.0)) == 16000
    with pytest.raises(AudioError, match="25.00 s"):
        read_excerpt(tmp_path / "a.wav", 30.0)
    with pytest.raises(OptionError, match="from 3 to 2 s"):
        read_excerpt(tmp_path / "a.wav", 3, 2)


@pytest.mark.parametrize("n", [30, 300])  # fewer than dimensions, and more
def test_the_projection_and_the_clusters_tell_kinds_apart(n):
    generator = numpy.random.default_rng(0)
    which = numpy.arange(n) % 3
    embeddings = (5 * generator.normal(size=(3, 40))[which] + generator.normal(size=(n, 40))).astype("f4")
    embeddings[:, 7] = 1.0  # a dead dimension
    standard = Standardiser.of(embeddings)(embeddings)
    places, names = project(standard, "pca")
    means = numpy.stack([places[which == kind].mean(0) for kind in range(3)])
    assert (((places[:, None] - means) ** 2).sum(2).argmin(1) == which).all()
    exact = numpy.linalg.svd(standard.astype("f8"), compute_uv=False) ** 2
    numpy.testing.assert_allclose((places.astype("f8") ** 2).sum(0), exact[:2], rtol=1e-4)
    assert f"({exact[0] / exact.sum():.0%} of the variance)" in names[0]
    pytest.importorskip("sklearn")
    assert len({*zip(clusters(standard, 3), which, strict=True)}) == 3


def test_neighbours_are_those_of_all_cosines():
    generator = numpy.random.default_rng(0)
    embeddings = (3 + generator.normal(size=(700, 12))).astype("f4")  # more rows than are compared at once
    embeddings[5:20] = embeddings[4]  # more equal ones than neighbours
    directions = Standardiser.of(embeddings).directions(embeddings)
    standard = (embeddings.astype("f8") - embeddings.mean(0)) / embeddings.std(0)
    cosines = standard @ standard.T / numpy.outer(*2 * [numpy.linalg.norm(standard, axis=1)])
    indices, values = neighbours(directions, 4)
    assert indices.shape == (700, 4) and (indices != numpy.arange(700)[:, None]).all()
    numpy.testing.assert_allclose(numpy.take_along_axis(cosines, indices, 1), values, atol=1e-5)
    numpy.fill_diagonal(cosines, -2)
    numpy.testing.assert_allclose(-numpy.sort(-cosines, axis=1)[:, :4], values, atol=1e-5)
    assert (
        neighbours(directions[:3], 10)[0].shape == (3, 2)
        and nearest(directions, directions[:1], 999)[0].shape[1] == 700
    )


def test_the_commands_write_pictures(tmp_path, checkpoint, minute, capsys):
    weights = tmp_path / "small.safetensors"
    save_checkpoint(weights, checkpoint)
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for number in range(4):
        soundfile.write(sounds / f"{number}.wav", minute[50000 * number :][:20000].numpy(), 16000)
    assert main(["show", str(sounds / "0.wav"), "--model", str(weights), "--out", str(tmp_path / "show.png")]) == 0
    out = tmp_path / "e.npz"
    assert main(["embed", str(sounds), "--model", str(weights), "--out", str(out), "--kind", "timestamps"]) == 0
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n0.wav,x\n1.wav,y\n", encoding="utf-8")
    assert main(["map", str(out), "--labels", str(labels)]) == 0
    for name in ("show.png", "e.map.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert main(["map", str(sounds / "0.wav")]) == 2
    for name in ("map", "map.xyz"):
        for command in (["map", str(out)], ["show", str(sounds / "0.wav"), "--model", str(weights)]):
            assert main([*command, "--out", str(tmp_path / name)]) == 2
            assert f"{name}: give a name that ends in .png" in capsys.readouterr().err
            assert not (tmp_path / name).exists()


def test_the_page_counts_what_it_cannot_play(tmp_path, weights, minute, capsys):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for number in range(4):
            soundfile.write(tmp_path / "sound.wav", minute[50000 * number :][:20000].numpy(), 16000)
            archive.add(tmp_path / "sound.wav", f"{number}.wav")
    out, page = str(tmp_path / "e.npz"), str(tmp_path / "map.html")
    inputs = [str(tmp_path / "t.tar"), str(tmp_path / "sound.wav")]
    assert main(["embed", *inputs, "--model", weights, "--out", out]) == 0
    assert write_page(out, page) == 4 and write_page(out, page, embed_audio=True) == 0
    pytest.importorskip("sklearn")
    capsys.readouterr()
    assert main(["map", out, "--html", page, "--clusters", "-2"]) == 2
    assert "at least one cluster, not -2" in capsys.readouterr().err


def test_one_patch_can_be_drawn(checkpoint):
    draw(Embedder(checkpoint), torch.ones(100))
