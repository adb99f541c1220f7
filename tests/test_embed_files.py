"""Files of sound -> embeddings.

* Of any format, rate, length and number of channels: what the HEAR functions give for the decoded audio, whatever the
  batch and the number of workers, scenes and timestamps, channels mixed or separate.
* A corpus of damaged, mislabelled, odd and empty files: each is accounted for once, and no bad one touches a good one.
* Leaving early, or a model that fails, ends the workers.
* A waveform embeds as the file that holds it. Unknown options are refused.
"""

import threading

import numpy
import pytest
import soundfile
import torch

from hear_jepa import Embedder, get_scene_embeddings, get_timestamp_embeddings
from hear_jepa.errors import AudioError, OptionError
from hear_jepa.files.audio import read_audio

EXACT = {"rtol": 0, "atol": 1e-5}
FORMATS = [  # suffix, rate, channels, samples
    ("wav", 16000, 1, 1),
    ("wav", 16000, 1, 900),
    ("wav", 8000, 2, 20000),
    ("flac", 44100, 2, 44100 * 12),
    ("flac", 48000, 1, 48000 * 3),
    ("ogg", 22050, 1, 22050),
    ("mp3", 32000, 2, 70000),
    ("aiff", 11025, 3, 11025 * 5),
    ("wav", 16000, 1, 33280),
    ("flac", 16000, 1, 16000 * 20),
    ("wav", 96000, 1, 50000),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, minute):
    """Real sound in many formats."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, (suffix, rate, channels, n_samples) in enumerate(FORMATS):
        sound = torch.stack([minute[5000 * c :][:n_samples] * (0.9 - 0.2 * c) for c in range(channels)], dim=1)
        sound = sound if len(sound) == n_samples else sound.repeat(2, 1)[:n_samples]
        soundfile.write(folder / f"{number:02d}.{suffix}", (sound + 0.01).numpy(), rate)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("batch_s, workers, scene_hop_ms", [(0.1, 1, 160), (7, 3, 40), (1000, 2, 160)])
def test_scenes_are_those_of_the_hear_function(corpus, checkpoint, batch_s, workers, scene_hop_ms):
    model = Embedder(checkpoint, scene_hop_ms=scene_hop_ms)
    found = {file.path: file for file in model.embed_files(corpus, batch_s=batch_s, workers=workers)}
    assert sorted(found) == corpus
    for path in corpus:
        audio, _ = read_audio(path, mono=True)
        expected = get_scene_embeddings(audio, model)[0]
        assert found[path].error is None and found[path].duration_s == audio.shape[1] / 16000
        torch.testing.assert_close(torch.from_numpy(found[path].embeddings[0]), expected, **EXACT)


@pytest.mark.parametrize("hop_ms", [20, 160])
def test_timestamps_are_those_of_the_hear_function(corpus, checkpoint, hop_ms):
    model = Embedder(checkpoint, hop_ms=hop_ms)
    for file in model.embed_files(corpus, "timestamps", batch_s=9):
        expected, timestamps = get_timestamp_embeddings(read_audio(file.path, mono=True)[0], model)
        torch.testing.assert_close(torch.from_numpy(file.embeddings[0]), expected[0], **EXACT)
        assert numpy.array_equal(file.timestamps_ms.astype("f4"), timestamps[0].numpy())


@pytest.mark.parametrize("kind", ["scene", "timestamps"])
def test_channels_can_be_embedded_separately(corpus, model, kind):
    functions = {"scene": get_scene_embeddings, "timestamps": lambda *a: get_timestamp_embeddings(*a)[0]}
    for file in model.embed_files(corpus[:8], kind, channels="separate", batch_s=5):
        audio, _ = read_audio(file.path)
        assert len(file.embeddings) == len(audio)
        found = torch.from_numpy(numpy.stack(file.embeddings))
        torch.testing.assert_close(found, functions[kind](audio, model), **EXACT)


def test_a_lone_path_is_a_path(corpus, model):
    for path in (corpus[3], str(corpus[3])):
        assert [file.path for file in model.embed_files(path)] == [corpus[3]]


def test_a_file_named_twice_is_embedded_once(corpus, model):
    assert sorted(file.path for file in model.embed_files([*corpus[:3], str(corpus[1])])) == corpus[:3]


def write_odd_files(folder, minute) -> dict[str, str | None]:
    """Name -> part of the reason why it fails, or None: it can be embedded."""
    sound = minute[:48000].numpy()
    soundfile.write(folder / "good.wav", sound, 16000)
    whole = (folder / "good.wav").read_bytes()
    soundfile.write(folder / "good.flac", sound, 16000)
    (folder / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "header only.wav").write_bytes(whole[:44])
    (folder / "half a header.wav").write_bytes(whole[:20])
    flac = (folder / "good.flac").read_bytes()
    (folder / "wav in truth.mp3").write_bytes(whole)
    (folder / "flac in truth.wav").write_bytes(flac)
    (folder / "flac in truth.m4a").write_bytes(flac)
    (folder / "empty.ogg").write_bytes(b"")
    (folder / "text.wav").write_text("This is not sound.\n" * 50)
    (folder / "noise.mp3").write_bytes(numpy.random.default_rng(0).bytes(30000))
    damaged = bytearray(flac)
    damaged[len(flac) // 2 : len(flac) // 2 + 2000] = b"\0" * 2000
    (folder / "damaged.flac").write_bytes(damaged)
    soundfile.write(folder / "8 bit.wav", sound, 16000, subtype="PCM_U8")
    with_nan = sound.copy()
    with_nan[40000] = numpy.nan
    soundfile.write(folder / "nan.wav", with_nan, 16000, subtype="FLOAT")
    with_nan[40000] = numpy.inf
    soundfile.write(folder / "inf.wav", with_nan, 16000, subtype="DOUBLE")
    soundfile.write(folder / "loud.wav", 1e4 * sound, 16000, subtype="FLOAT")
    soundfile.write(folder / "192 kHz.wav", sound, 192000)
    soundfile.write(folder / "1 kHz.wav", sound[:3000], 1000)
    soundfile.write(folder / "44101 Hz.wav", sound, 44101)
    soundfile.write(folder / "8 channels.wav", numpy.stack([sound] * 8, axis=1), 16000)
    soundfile.write(folder / "silent.flac", 0 * sound, 16000)
    soundfile.write(folder / "dc.wav", 0 * sound + 0.5, 16000)
    soundfile.write(folder / "no samples.wav", sound[:0], 16000)
    (folder / "folder.wav").mkdir()
    header = bytearray(whole)
    header[22:24] = (1000).to_bytes(2, "little")  # channels
    (folder / "claims 1000 channels.wav").write_bytes(header)
    header = bytearray(whole)
    header[24:28] = (2**31 - 1).to_bytes(4, "little")  # rate
    (folder / "claims 2 GHz.wav").write_bytes(header)
    header[24:28] = (1).to_bytes(4, "little")
    (folder / "claims 1 Hz.wav").write_bytes(header)
    reasons = dict.fromkeys(sorted(path.name for path in folder.iterdir()))
    reasons |= {"silent.flac": "silent", "nan.wav": "NaN", "inf.wav": "NaN or infinite", "empty.ogg": "empty"}
    reasons |= {"folder.wav": "a folder, not a file", "gone.wav": "no such file", "no samples.wav": ""}
    reasons |= {"claims 2 GHz.wav": "2147483647 Hz", "claims 1 Hz.wav": "1 Hz"}
    return reasons | dict.fromkeys(["header only.wav", "half a header.wav", "text.wav"], "")


MAY_FAIL = {"noise.mp3", "damaged.flac", "flac in truth.m4a", "wav in truth.mp3", "flac in truth.wav"}
MAY_FAIL |= {"claims 1000 channels.wav"}


@pytest.mark.parametrize("kind, channels", [("scene", "mix"), ("timestamps", "separate")])
def test_every_odd_file_is_accounted_for(tmp_path, checkpoint, minute, kind, channels):
    reasons = write_odd_files(tmp_path, minute)
    model = Embedder(checkpoint, hop_ms=160)
    files = list(model.embed_files([tmp_path / name for name in reasons], kind, channels=channels))
    assert sorted(file.path.name for file in files) == sorted(reasons)
    for file in files:
        name = file.path.name
        if reasons[name] is not None:
            assert file.error is not None and reasons[name] in file.error and not file.embeddings, name
            assert str(tmp_path) not in file.error  # it stands beside the path already
        elif name not in MAY_FAIL:
            assert file.error is None, f"{name}: {file.error}"
        if file.error is None:
            assert file.embeddings and all(numpy.isfinite(e).all() for e in file.embeddings), name
    good = {file.path.name: file for file in files}["good.wav"].embeddings[0]
    alone = next(iter(model.embed_files([tmp_path / "good.wav"], kind))).embeddings[0]
    numpy.testing.assert_allclose(good, alone, atol=1e-5, rtol=0)


def test_leaving_early_ends_the_workers(corpus, model):
    before = threading.active_count()
    files = model.embed_files(corpus * 3, workers=4, batch_s=1)
    next(files)
    files.close()
    assert threading.active_count() == before


def test_a_failing_model_is_no_bad_file(corpus, checkpoint, monkeypatch):
    def fail(spectrograms):
        raise RuntimeError("out of memory")

    model, before = Embedder(checkpoint), threading.active_count()
    monkeypatch.setattr(model, "encode_windows", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(model.embed_files(corpus))
    assert threading.active_count() == before


def test_a_waveform_embeds_as_the_file_that_holds_it(corpus, model):
    path = corpus[3]
    decoded, rate = soundfile.read(path, dtype="float32")
    scene = next(iter(model.embed_files([path]))).embeddings[0]
    numpy.testing.assert_allclose(model.embed(decoded.T, rate).numpy(), scene, atol=1e-5, rtol=0)
    file = next(iter(model.embed_files([path], "timestamps")))
    embeddings, timestamps = model.embed(torch.from_numpy(decoded.T), rate, "timestamps")
    numpy.testing.assert_allclose(embeddings.numpy(), file.embeddings[0], atol=1e-5, rtol=0)
    assert numpy.array_equal(timestamps.numpy(), file.timestamps_ms.astype("f4"))


def test_bad_waveforms_and_options_are_refused(model, corpus):
    for shape in [(16000, 2), (40, 16000), (3, 2)]:  # soundfile's own layout, and more channels than anyone records
        with pytest.raises(AudioError, match=rf"\({shape[0]}, {shape[1]}\).*give \[channels, samples\]"):
            model.embed(torch.zeros(*shape), 44100)
    for waveform, rate in [(torch.zeros(0), 16000), (torch.zeros(1, 2, 3), 16000), (torch.zeros(9), 0)]:
        with pytest.raises(AudioError):
            model.embed(waveform, rate)
    with pytest.raises(OptionError, match="scene, timestamps"):
        model.embed(torch.zeros(9), 16000, "scenes")
    for option in [{"kind": "x"}, {"channels": "left"}, {"batch_s": 0}, {"workers": 0}]:
        with pytest.raises(OptionError):
            list(model.embed_files(corpus, **option))
