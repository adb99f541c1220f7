"""Claims about the log-mel:

* it is the definition: Hann window of 400, hop 160, power, 80 mels, natural log of (mel + eps), standardised; with
  other scales and floors it is torchaudio's; the fast Fourier transform gives the spectrum of nnAudio's convolution;
* beside a short window, rows of the two alternate, and a steady tone has the same level in both;
* frame i is centred on sample 160·i and hears 200 samples on either side; any range of frames is a slice of the whole;
* it stays float32 under autocast, and TF32 is off while it runs on CUDA, back afterwards.
"""

import math

import numpy as np
import pytest
import torch
import torchaudio

from hear_jepa.errors import OptionError
from hear_jepa.model.front_end import FrontEndConfig, LogMel, full_float32, parts_for


def test_it_is_the_definition(recordings):
    audio = recordings[0][:8000]
    log_mel = LogMel(FrontEndConfig(mean=-3.0, std=2.0))
    padded = np.pad(audio.double().numpy(), 200)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([padded[160 * i : 160 * i + 400] * window for i in range(50)])
    power = np.abs(np.fft.rfft(frames)) ** 2  # [50, 201]
    mel = power @ log_mel.power.mel.mel_basis.double().numpy().T
    expected = (np.log(mel + np.finfo(np.float32).eps) + 3.0) / 2.0
    np.testing.assert_allclose(log_mel(audio[None])[0].numpy(), expected.T, atol=2e-3)


@pytest.mark.parametrize("n_fft", [400, 1024, 2048])
def test_the_fast_fourier_transform_gives_nnaudios_spectrum(recordings, n_fft):
    log_mel = LogMel(FrontEndConfig(n_fft=n_fft))
    long = torch.cat(list(recordings))[:60000]  # more frames than are taken at once
    for audio in (torch.stack([long, long.flip(0)]), torch.cat([recordings[1], torch.zeros(20000)])[None]):
        expected = log_mel.power.mel(audio)
        torch.testing.assert_close(log_mel.power(audio), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("device_type, most", [("cpu", 256), ("cuda", 2**15)])
@pytest.mark.parametrize("clips, count", [(3, 300), (700, 208), (1, 70_000)])
def test_frames_are_taken_in_order_and_few_at_a_time(device_type, most, clips, count):
    frames = torch.arange(clips * count).view(clips, count, 1).expand(-1, -1, 2)
    parts = list(parts_for(device_type, frames))
    assert torch.cat(parts).equal(frames.flatten(0, 1))
    assert max(map(len, parts)) <= most
    assert len(parts) <= clips * count // most + (clips if device_type == "cpu" else 2)


@pytest.mark.parametrize("n_samples, n_frames", [(1, 1), (160, 1), (161, 2), (16000, 100), (33280, 208), (33281, 209)])
def test_one_frame_for_every_started_hop(n_samples, n_frames):
    assert LogMel()(torch.zeros(2, n_samples)).shape == (2, 80, n_frames)


def test_a_frame_hears_200_samples_on_either_side():
    log_mel, at = LogMel(), 8000
    click = torch.zeros(1, 16000)
    click[0, at] = 1.0
    change = (log_mel(click) - log_mel(torch.zeros(1, 16000))).abs().amax(1)[0]
    heard = change.nonzero().flatten().tolist()
    assert heard == [i for i in range(100) if abs(160 * i - at) < 200]
    assert change.argmax() == at // 160


def test_any_range_of_frames_is_a_slice_of_the_whole(recordings):
    log_mel, audio = LogMel(), torch.stack([recordings[1][:9000], recordings[2][:9000].flip(0)])
    padded = torch.nn.functional.pad(audio, (160 * 20, 160 * 30))
    whole = log_mel(padded)
    for first, count in [(-20, 5), (-20, 60), (-3, 7), (0, 57), (10, 1), (50, 36), (60, 20)]:
        frames = log_mel.frames(audio, first, count)
        torch.testing.assert_close(frames, whole[:, :, first + 20 : first + 20 + count], rtol=0, atol=1e-5)


def test_rows_of_two_windows_alternate_and_share_their_centre(recordings):
    both = LogMel(FrontEndConfig(n_fft=2048, n_fft_short=512, n_mels=160))
    long, short = (LogMel(FrontEndConfig(n_fft=n_fft)) for n_fft in (2048, 512))
    audio = recordings[0][None, :16000]
    together, std = both(audio), both.config.std
    assert together.shape == (1, 160, 100)
    torch.testing.assert_close(together[:, 1::2], long(audio), rtol=0, atol=1e-5)
    louder = short(audio * 4)  # a window of a quarter has a sixteenth of the power of a steady sound
    torch.testing.assert_close(together[:, 0::2], louder, rtol=0, atol=1e-4)
    tone = both(torch.sin(torch.arange(32000) * 2 * math.pi * 1000 / 16000)[None])[0, :, 50:150].mean(1) * std
    row = int(tone[1::2].argmax())
    assert both.row_centres()[2 * row] == both.row_centres()[2 * row + 1] == pytest.approx(1000, rel=0.05)
    assert abs(tone[2 * row] - tone[2 * row + 1]) < 0.5  # nepers of power
    click = torch.zeros(1, 16000)
    click[0, 8000] = 1.0
    change = (both(click) - both(torch.zeros(1, 16000))).abs()[0]
    for rows, reach in ((change[0::2], 256), (change[1::2], 1024)):
        heard = rows.amax(0).nonzero().flatten().tolist()
        assert heard == [i for i in range(100) if abs(160 * i - 8000) < reach]


@pytest.mark.parametrize("wrong", [{"n_fft_short": 400}, {"n_fft_short": 8}, {"n_fft_short": 200, "n_mels": 81}])
def test_a_short_window_that_does_not_fit_is_refused(wrong):
    with pytest.raises(OptionError, match="n_fft_short"):
        FrontEndConfig(**wrong)


def test_float32_under_autocast(recordings):
    log_mel, audio = LogMel(), recordings[0][None, :16000]
    with torch.autocast("cpu", torch.bfloat16):
        found = log_mel(audio)
    assert found.dtype == torch.float32
    assert torch.equal(found, log_mel(audio))


def test_tf32_is_off_on_cuda_and_back_afterwards():
    before = torch.backends.cudnn.allow_tf32
    with full_float32("cpu"):
        assert torch.backends.cudnn.allow_tf32 == before
    with full_float32("cuda"):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_bands_of_another_scale_and_a_clamped_floor_are_torchaudio_s(minute):
    """The front end of Dasheng and ATST-Frame: decibels are ten times a logarithm to base ten."""
    config = FrontEndConfig(
        n_fft=1024, n_mels=64, f_min=60.0, f_max=7800.0, mean=0.0, std=math.log(10) / 10,
        mel_scale="htk", log_floor=1e-10, log_floor_by="clamping",
    )  # fmt: skip
    audio = torch.cat([torch.zeros(2000), minute[:16000]])[None]
    theirs = torchaudio.transforms.MelSpectrogram(
        16000, f_min=60, f_max=7800, hop_length=160, n_fft=1024, n_mels=64, center=False
    )
    expected = torchaudio.transforms.AmplitudeToDB(top_db=None)(theirs(audio))
    assert (expected[..., 0] == -100).all()
    torch.testing.assert_close(LogMel(config).valid(audio), expected, rtol=0, atol=2e-3)
