"""Waveform -> standardised log-mel spectrogram, on the device of the model, with nnAudio's mel bands."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hear_jepa.errors import OptionError
from hear_jepa.options import check_fields, one_of, within

MEL_FLOOR = torch.finfo(torch.float32).eps
MAGNITUDE_FLOOR = 1e-9  # under the root
FRAMES_AT_ONCE = 256  # on a CPU: they stay in its cache
FRAMES_AT_ONCE_ON_A_GPU = 2**15  # by a window of 2048 about a gigabyte, spectrum and powers included
_CUDNN_FLAGS = threading.Lock()  # they are global: one thread must not restore them while another relies on them


@dataclass(frozen=True)
class FrontEndOptions:
    """The log-mel that the encoder sees; its mean and deviation are measured on the corpus."""

    sample_rate: int = within(16000, 1000, 768_000)
    """Sample rate of the audio in Hz."""
    n_fft: int = within(400, 16, 8192)
    """Window of the Fourier transform in samples (the paper: 400, 25 ms at 16 kHz). A longer one resolves pitch."""
    n_fft_short: int = within(0, 0, 4096)
    """A second, shorter window, which resolves time; 0: none. Every band then stands twice, by the short window and by
    n_fft, one above the other, so that every patch holds both; n_mels counts both."""
    hop_length: int = within(160, 1, 8192)
    """Samples from frame to frame."""
    n_mels: int = within(80, 1, 1024)
    """Rows of the log-mel: mel bands."""
    f_min: float = within(50.0, 0, 384_000)
    """Lowest frequency of the bands in Hz."""
    f_max: float = within(8000.0, 1, 384_000)
    """Highest frequency of the bands in Hz."""

    def front_end(self, mean: float, std: float) -> "FrontEndConfig":
        """These settings with the corpus statistics."""
        return FrontEndConfig(**asdict(self), mean=mean, std=std)

    def __post_init__(self):
        check_fields(self)
        if not self.f_min < self.f_max <= self.sample_rate / 2:
            raise OptionError(
                f"f_max is {self.f_max}: it must be above f_min, {self.f_min}, and at most half the sample_rate"
            )
        if self.n_fft_short and not (16 <= self.n_fft_short < self.n_fft and self.n_mels % 2 == 0):
            raise OptionError(
                f"n_fft_short is {self.n_fft_short}: it must be 0, or 16 or more and less than n_fft, {self.n_fft}; "
                f"and n_mels must be even then, not {self.n_mels}"
            )

    @property
    def bands(self) -> int:
        """Mel bands by each window."""
        return self.n_mels // 2 if self.n_fft_short else self.n_mels


@dataclass(frozen=True)
class FrontEndConfig(FrontEndOptions):
    """Settings of the log-mel (paper, section 3.1); `mean` and `std` are those of the training corpus, in nepers."""

    mean: float = within(-7.0633, -1e4, 1e4)
    std: float = within(4.1971, 1e-6, 1e4)
    mel_scale: str = one_of("slaney", ("slaney", "htk"))  # bands of one area each; of one height, on another scale
    log_floor: float = within(MEL_FLOOR, 1e-30, 1)  # keeps the logarithm of silence finite
    log_floor_by: str = one_of("adding", ("adding", "clamping"))  # it to the power, or the power to it
    spectrum: str = one_of("power", ("power", "magnitude"))  # of which the bands are sums

    def n_frames(self, n_samples: int) -> int:
        """Frames whose centres lie inside `n_samples` of audio; at least one."""
        return max(1, math.ceil(n_samples / self.hop_length))

    def n_samples(self, n_frames: int) -> int:
        """Samples that `LogMel.valid` needs to compute `n_frames` frames."""
        return (n_frames - 1) * self.hop_length + self.n_fft


class MelPower(nn.Module):
    """Power in the mel bands by one window of the Fourier transform: nnAudio's."""

    mel: Any  # nnAudio's module
    window: Tensor

    def __init__(self, config: FrontEndConfig, n_fft: int):
        from nnAudio.features.mel import MelSpectrogram  # a second, for scipy: not of every `import hear_jepa`

        super().__init__()
        self.mel = MelSpectrogram(
            sr=config.sample_rate,
            n_fft=n_fft,
            n_mels=config.bands,
            hop_length=config.hop_length,
            fmin=config.f_min,
            fmax=config.f_max,
            htk=config.mel_scale == "htk",
            norm=None if config.mel_scale == "htk" else 1,  # pyright: ignore[reportArgumentType]
            power=2.0,
            center=False,  # the context of the first and the last frame is ours to give: `LogMel.frames`
            verbose=False,
        )
        self.sample_rate = config.sample_rate
        self.hop_length, self.of_magnitude = config.hop_length, config.spectrum == "magnitude"
        self.register_buffer("window", torch.hann_window(n_fft, dtype=torch.float32), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """[B, (frames - 1) · hop + n_fft] -> [B, bands, frames]."""
        if audio.device.type in ("cpu", "cuda") and not torch.compiler.is_compiling():
            return self.by_fft(audio)
        return self.by_convolution(audio)

    def by_convolution(self, audio: Tensor) -> Tensor:
        """By nnAudio's own, which exporters and other devices take."""
        power = self.of_spectrum(self.mel.stft(audio, output_format="Magnitude").square())  # [B, bins, frames]
        # As nnAudio's matrix product, whose shape the exporters would tie to the number of clips.
        return F.conv1d(power, self.mel.mel_basis[:, :, None])

    def by_fft(self, audio: Tensor) -> Tensor:
        """The same by a fast Fourier transform: nnAudio's convolution takes several times as long."""
        frames = audio.unfold(-1, self.window.numel(), self.hop_length)  # [B, frames, n_fft]
        bands = []
        for some in parts_for(audio.device.type, frames):
            spectrum = torch.fft.rfft(some * self.window)
            power = self.of_spectrum(spectrum.real.square() + spectrum.imag.square())
            bands.append(power @ self.mel.mel_basis.T)
        return torch.cat(bands).unflatten(0, frames.shape[:2]).mT

    def of_spectrum(self, power: Tensor) -> Tensor:
        """What the bands are sums of: the power, or the magnitude."""
        if not self.of_magnitude:
            return power
        # Not `power + floor`: the exporter to ONNX takes what is added below 1e-8 for nothing.
        return (power / MAGNITUDE_FLOOR + 1).sqrt() * MAGNITUDE_FLOOR**0.5

    def centres(self) -> Tensor:
        """Centre of gravity of every band, in Hz."""
        filters = self.mel.mel_basis.detach().cpu()
        hz = torch.linspace(0, self.sample_rate / 2, filters.shape[1])
        return (filters @ hz) / filters.sum(1).clamp(min=1e-12)


class LogMel(nn.Module):
    """Natural logarithm of the mel power spectrogram, less the corpus mean, over the corpus deviation.

    Frame `i` is centred on sample `i · hop_length`. Beyond its two ends the audio goes on as silence (zeros), so a
    frame depends on the samples around it and never on where a recording was cut. Always computed in float32, also
    under autocast. With a short window beside the long one, the rows of the two alternate.
    """

    def __init__(self, config: FrontEndConfig | None = None):
        super().__init__()
        self.config = config = config or FrontEndConfig()
        self.power = MelPower(config, config.n_fft)
        self.short_power = MelPower(config, config.n_fft_short) if config.n_fft_short else None

    def forward(self, audio: Tensor) -> Tensor:
        """[B, samples] -> [B, mels, frames], one frame for every started hop."""
        return self.frames(audio, 0, self.config.n_frames(audio.shape[-1]))

    def frames(self, audio: Tensor, first: int, count: int) -> Tensor:
        """Frames `first … first + count - 1` of [B, samples], also before the start and past the end (silence)."""
        start = first * self.config.hop_length - self.config.n_fft // 2
        stop = start + self.config.n_samples(count)
        inside = audio[:, max(start, 0) : max(stop, 0)]
        left = min(max(-start, 0), stop - start)
        return self.valid(F.pad(inside, (left, stop - start - left - inside.shape[-1])))

    def valid(self, audio: Tensor) -> Tensor:
        """[B, (frames - 1) · hop + n_fft] -> [B, mels, frames], with no padding at all."""
        config, floor = self.config, self.config.log_floor
        with full_float32(audio.device.type):
            audio = audio.float()
            bands = self.power(audio)
            if self.short_power is not None:
                before = config.n_fft // 2 - config.n_fft_short // 2  # both windows have their centre in one place
                after = config.n_fft - config.n_fft_short - before
                # Padded by less than nothing: of a slice the exporter would take the number of clips for a constant.
                short = self.short_power(F.pad(audio, (-before, -after)))
                # A steady sound has the same power in both.
                short = short * (config.n_fft / config.n_fft_short) ** (1 if config.spectrum == "magnitude" else 2)
                bands = torch.stack([short, bands], dim=2).flatten(1, 2)
            power = bands + floor if config.log_floor_by == "adding" else bands.clamp(min=floor)
            return (power.log() - config.mean) / config.std

    def row_centres(self) -> Tensor:
        """Centre of every row of the log-mel, in Hz [mels]."""
        centres = self.power.centres()
        return centres if self.short_power is None else centres.repeat_interleave(2)


def parts_for(device_type: str, frames: Tensor) -> Iterator[Tensor]:
    """[B, frames, n_fft] -> parts [n, n_fft] in order: of one clip each for a CPU, of several for a GPU."""
    if device_type == "cpu":
        yield from (part for clip in frames for part in clip.split(FRAMES_AT_ONCE))
    else:
        most = FRAMES_AT_ONCE_ON_A_GPU
        clips = frames.split(max(1, most // frames.shape[1]))
        yield from (part for some in clips for part in some.flatten(0, 1).split(most))


@contextmanager
def full_float32(device_type: str) -> Iterator[None]:
    """Turn off autocast and TF32 convolutions: CUDA's default, whose 10-bit mantissa would show in quiet bands."""
    with torch.autocast(device_type, enabled=False):
        if device_type == "cuda":
            cudnn = torch.backends.cudnn
            kept: dict[str, Any] = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
            with _CUDNN_FLAGS, cudnn.flags(**kept, allow_tf32=False):
                yield
        else:
            yield
