"""Decoding and resampling.

* Every format decodes to its rate, channels and the tone that was written; a format without its decoder says so; a
  missing, empty, foreign or damaged file is an AudioError that names it. A file that was cut is known as such, and no
  other one.
* Read in blocks is read whole, at any rate and block length; 16-bit samples at 16 kHz come back exactly.
* Resampling keeps a tone's frequency and level and the length, and agrees with scipy's on real sound.
"""

import math
import shutil
import subprocess

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch

from hear_jepa.errors import AudioError
from hear_jepa.files.audio import AudioReader, read_audio, read_blocks
from hear_jepa.files.folders import find_audio
from hear_jepa.files.resample import resample, resample_blocks

FFMPEG = shutil.which("ffmpeg")


def tone(rate: int, seconds: float = 1.5, hz: float = 440.0) -> np.ndarray:
    return (0.25 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def loudest_hz(audio: torch.Tensor, rate: int) -> float:
    spectrum = torch.fft.rfft(audio * torch.hann_window(len(audio)), n=8 * len(audio)).abs()
    return spectrum.argmax().item() * rate / (8 * len(audio))


def write(path, samples: np.ndarray, rate: int) -> None:
    """Write with libsndfile, or with ffmpeg where libsndfile cannot."""
    if path.suffix[1:] in ("wav", "flac", "ogg", "opus", "mp3", "aiff"):
        kinds = {"opus": {"format": "OGG", "subtype": "OPUS"}}
        soundfile.write(path, samples, rate, **kinds.get(path.suffix[1:], {}))
        return
    if FFMPEG is None:
        pytest.skip(f"writing and reading {path.suffix} needs ffmpeg")
    source = path.with_suffix(".source.wav")
    soundfile.write(source, samples, rate)
    subprocess.run([FFMPEG, "-v", "error", "-i", source, path], check=True)
    source.unlink()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "aiff", "m4a", "g722"])
def test_every_format_decodes(tmp_path, suffix):
    rate = 16000 if suffix == "g722" else 48000
    path = tmp_path / f"tone.{suffix}"
    samples = tone(rate)
    write(path, samples if suffix == "g722" else np.stack([samples, 0 * samples], axis=1), rate)
    own, own_rate = read_audio(path, sample_rate=None)
    assert own_rate == rate and own.shape[0] == (1 if suffix == "g722" else 2)
    audio, audio_rate = read_audio(path)
    assert audio_rate == 16000 and audio.dtype == torch.float32
    assert abs(audio.shape[1] - 24000) < 1700  # lossy codecs pad
    assert abs(loudest_hz(audio[0, 4000:20000], 16000) - 440) < 1
    assert abs(audio[0, 4000:20000].square().mean().sqrt().item() - 0.25 / math.sqrt(2)) < 0.02
    mono, _ = read_audio(path, mono=True)
    torch.testing.assert_close(mono[0], audio.mean(dim=0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 44101, 48000, 5513])
def test_blocks_join_without_a_seam(rate):
    audio = torch.randn(2, rate * 2 + 77, generator=torch.Generator().manual_seed(0))
    whole = resample(audio, rate)
    assert abs(whole.shape[1] - audio.shape[1] * 16000 / rate) < 1 + 1e-5 * whole.shape[1]
    for length in (rate // 7 + 1, 100):
        joined = torch.cat(list(resample_blocks(iter(audio.split(length, dim=1)), rate, 16000)), dim=1)
        torch.testing.assert_close(joined, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 44101, 48000, 22255, 192000])
def test_resampling_agrees_with_an_independent_resampler(minute, rate):
    """Real sound, taken to another rate by scipy (FFT, exact), comes back as it was, below where filters roll off."""
    recorded = minute[:80000].double().numpy()
    low_pass = scipy.signal.firwin(255, 0.85 * min(rate, 16000) / 2, fs=16000)
    recorded = scipy.signal.fftconvolve(recorded, low_pass, "same")
    source = scipy.signal.resample(recorded, 5 * rate)
    ours = resample(torch.from_numpy(source).float()[None], rate)[0].double().numpy()
    assert abs(len(ours) - 80000) <= 1
    error = ((ours - recorded)[400:-400] ** 2).mean() / (recorded**2).mean()
    exact = math.gcd(rate, 16000) >= 25  # else the rate is taken for one near it
    assert error < (1e-5 if exact else 1e-3), 10 * math.log10(error)
    if rate > 30000:  # what cannot be represented is removed
        assert resample(torch.from_numpy(tone(rate, hz=12000.0))[None], rate)[0, 200:-200].abs().max() < 1e-3


def test_a_file_in_blocks_is_the_file(tmp_path):
    path = tmp_path / "noise.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (44100 * 5, 2)), 44100)
    blocks = list(read_blocks(path, block_s=0.7))
    assert len(blocks) > 5 and max(block.shape[1] for block in blocks) < 16000
    torch.testing.assert_close(torch.cat(blocks, dim=1), read_audio(path)[0], atol=1e-6, rtol=0)


def test_16_bit_samples_are_exact(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.int16)
    soundfile.write(tmp_path / "exact.wav", samples, 16000)
    np.testing.assert_array_equal(read_audio(tmp_path / "exact.wav")[0][0].numpy() * 32768, samples)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ALAW", "ULAW", "IMA_ADPCM", "MS_ADPCM"])
def test_only_a_file_that_was_cut_is_truncated(tmp_path, subtype):
    def shortfall(path):
        with AudioReader(path) as reader:
            list(reader.blocks(sample_rate=None))
            return reader.shortfall

    whole, cut = tmp_path / "whole.wav", tmp_path / "cut.wav"
    soundfile.write(whole, tone(44100, 60), 44100, subtype=subtype)  # in a minute what a header rounds adds up
    assert shortfall(whole) == ""
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    if not subtype.endswith("ADPCM"):  # its header tells no exact length
        assert "declares 60.00 s" in shortfall(cut)


def test_find_audio_looks_deep_and_only_at_sound(tmp_path):
    for name in ("b/x.WAV", "a/deep/y.g722", "a/z.txt", "c.flac"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_audio(tmp_path)]
    assert found == ["a/deep/y.g722", "b/x.WAV", "c.flac"]


def test_unreadable_files_are_named(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no sound\n" * 100)
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 16000)
    reasons = {"nowhere": "no such file", "empty": "empty", "text": "", "nothing": "no sound"}
    for name, reason in reasons.items():
        with pytest.raises(AudioError, match=f"{name}.wav.*{reason}"):
            read_audio(tmp_path / f"{name}.wav")


def test_without_ffmpeg_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for name in ("speech.g722", "noise.wav"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 20)
        with pytest.raises(AudioError, match=f"{name}.*install"):
            read_audio(tmp_path / name)
