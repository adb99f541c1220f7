"""Any sound file -> float32 tensors at the rate that the model wants; whole, or in blocks for long files.

libsndfile (soundfile) decodes what it knows; ffmpeg, where it is installed, decodes the rest (m4a, g722, wma, …).
"""

import math
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy
import soundfile
import torch
import torchaudio

from hear_jepa.errors import AudioError

SAMPLE_RATE = 16000
NEEDS_FFMPEG = "needs ffmpeg"  # in the message of every file that installing it may open
# Kept from libsndfile, which takes some headerless ones for MP3.
FFMPEG_SUFFIXES = frozenset(
    [".g722", ".gsm", ".m4a", ".m4b", ".mp4", ".aac", ".wma", ".amr", ".ape", ".wv", ".tta", ".mka", ".webm", ".ac3"]
    + [".it", ".mod", ".s3m", ".xm"]
)
SOUNDFILE_SUFFIXES = frozenset(
    [".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".snd", ".w64", ".caf", ".rf64", ".voc"]
)
LOWEST_RATE, HIGHEST_RATE = 100, 800_000  # Hz; a header beyond would ask for days of sound, or gigabytes of filters
LARGEST_DENOMINATOR = 1000
LOWPASS_WIDTH = 16


def find_audio(folder: str | Path) -> list[Path]:
    """Return every file below `folder` whose suffix is that of a sound, in an order that no file system changes."""
    suffixes = SOUNDFILE_SUFFIXES | FFMPEG_SUFFIXES
    found = (path for path in Path(folder).rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(found, key=lambda path: path.as_posix())


def read_audio(path: str | Path, sample_rate: int | None = SAMPLE_RATE, mono: bool = False) -> tuple[torch.Tensor, int]:
    """Decode a whole file -> (float32 [channels, samples], rate in Hz); `sample_rate=None` keeps the file's own rate.

    Raises AudioError when the file is missing, damaged, empty, or of a format that nothing here decodes.
    """
    with AudioReader(path) as reader:
        blocks = list(reader.blocks(sample_rate=sample_rate, mono=mono))
        return torch.cat(blocks, dim=1), sample_rate or reader.rate


def read_blocks(
    path: str | Path, block_s: float = 30.0, sample_rate: int | None = SAMPLE_RATE, mono: bool = False
) -> Iterator[torch.Tensor]:
    """Decode a file of any length piece by piece: float32 [channels, samples], about `block_s` seconds each.

    The pieces joined are `read_audio`'s result: resampling leaves no seam. Raises AudioError as `read_audio` does.
    """
    with AudioReader(path) as reader:
        yield from reader.blocks(block_s, sample_rate, mono)


class AudioReader:
    """An open sound file with `rate` (Hz) and `channels`; a context manager."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise AudioError(f"{path}: no such file")
        if self.path.stat().st_size == 0:
            raise AudioError(f"{path}: the file is empty")
        self._source = _open(self.path)
        self.rate, self.channels = self._source.rate, self._source.channels
        if not LOWEST_RATE <= self.rate <= HIGHEST_RATE:
            self._source.close()
            raise AudioError(f"{path}: its header claims {self.rate} Hz, not a sample rate of sound; it is damaged")

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(self, *exception) -> None:
        self._source.close()

    def blocks(
        self, block_s: float = 30.0, sample_rate: int | None = SAMPLE_RATE, mono: bool = False
    ) -> Iterator[torch.Tensor]:
        """Yield the rest of the file as float32 [channels, samples]; see `read_blocks`."""
        blocks = self._decoded(max(1, round(block_s * self.rate)), mono)
        return resample_blocks(blocks, self.rate, sample_rate or self.rate)

    def _decoded(self, samples: int, mono: bool) -> Iterator[torch.Tensor]:
        heard = False
        while (block := self._source.read(samples)).shape[1]:
            heard = True
            yield block.mean(dim=0, keepdim=True) if mono else block
        if not heard:
            raise AudioError(f"{self.path}: no sound could be decoded; the file is empty or damaged")


def resample(audio: torch.Tensor, rate: int, sample_rate: int = SAMPLE_RATE) -> torch.Tensor:
    """Resample float32 [channels, samples] from `rate` to `sample_rate` Hz -> [channels, ceil(samples · ratio)]."""
    return torch.cat(list(resample_blocks([audio], rate, sample_rate)), dim=1)


def resample_blocks(blocks, rate: int, sample_rate: int) -> Iterator[torch.Tensor]:
    """Resample consecutive pieces [channels, samples] as one signal, holding a block and a little context in memory.

    Resampling commutes with shifts by `old` samples (which are `new` samples after it), so every piece is cut at
    such a multiple and computed with the filter's context on either side.
    """
    old, new = _ratio(rate, sample_rate)
    if old == new:
        yield from blocks
        return
    resampler = _resampler(old, new)
    context = old * math.ceil((resampler.width + 1) / old)
    trimmed = context // old * new
    pending = None  # [channels, context + not yet resampled]
    for block in blocks:
        pending = torch.nn.functional.pad(block, (context, 0)) if pending is None else torch.cat([pending, block], 1)
        ready = (pending.shape[1] - 2 * context) // old * old
        if ready > 0:
            piece = resampler(pending[:, : ready + 2 * context])
            yield piece[:, trimmed : trimmed + ready // old * new]
            pending = pending[:, ready:]
    if pending is not None and pending.shape[1] > context:
        yield resampler(pending)[:, trimmed:]


def _ratio(rate: int, sample_rate: int) -> tuple[int, int]:
    """Return (old, new), small, with old / new = rate / sample_rate, exactly wherever both stay small.

    The filter bank has `new` filters of about `old` taps: a rate co-prime to 16000 (44101 Hz) would need gigabytes
    and minutes. The nearest fraction that is affordable bends the pitch by less than 1e-5, 0.02 cents.
    """
    exact = Fraction(rate, sample_rate)
    if exact > 1:
        near = exact.limit_denominator(LARGEST_DENOMINATOR)
    else:
        near = 1 / (1 / exact).limit_denominator(LARGEST_DENOMINATOR)
    return near.numerator, near.denominator


@lru_cache(maxsize=16)
def _resampler(old: int, new: int) -> torchaudio.transforms.Resample:
    return torchaudio.transforms.Resample(old, new, lowpass_filter_width=LOWPASS_WIDTH)


def _open(path: Path) -> "_SoundfileSource | _FfmpegSource":
    if path.suffix.lower() not in FFMPEG_SUFFIXES:
        try:
            return _SoundfileSource(path)
        except soundfile.LibsndfileError as error:
            if shutil.which("ffmpeg") is None:
                raise AudioError(
                    f"{path}: libsndfile cannot read it ({error.error_string}); if it is sound, it {NEEDS_FFMPEG}: "
                    "install it"
                ) from error
    return _FfmpegSource(path)


class _SoundfileSource:
    """Decoding by libsndfile."""

    def __init__(self, path: Path):
        self._path = path
        self._file = soundfile.SoundFile(path)
        self.rate, self.channels = self._file.samplerate, self._file.channels

    def read(self, samples: int) -> torch.Tensor:
        try:
            decoded = self._file.read(samples, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise AudioError(f"{self._path}: damaged sound ({error.error_string}); replace or remove it") from error
        return torch.from_numpy(decoded).T.contiguous()

    def close(self) -> None:
        self._file.close()


class _FfmpegSource:
    """Decoding by an ffmpeg process that writes a Sun AU stream (its header holds rate and channels) to a pipe."""

    def __init__(self, path: Path):
        self._path = path
        ffmpeg = shutil.which("ffmpeg")
        if ffmpeg is None:
            raise AudioError(f"{path}: decoding {path.suffix} files {NEEDS_FFMPEG}; install it")
        command = [ffmpeg, "-v", "error", "-nostdin", "-i", str(path.absolute()), "-map", "0:a:0"]
        command += ["-f", "au", "-c:a", "pcm_f32be", "pipe:1"]
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (a pipe that nobody reads blocks a talkative ffmpeg)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._messages)
        header = self._process.stdout.read(24)
        if len(header) < 24:
            self._fail()
        _, offset, _, _, self.rate, self.channels = struct.unpack(">6I", header)
        self._process.stdout.read(offset - 24)

    def read(self, samples: int) -> torch.Tensor:
        decoded = self._process.stdout.read(samples * self.channels * 4)
        if not decoded and self._process.wait() != 0:
            self._fail()
        words = numpy.frombuffer(decoded, dtype=">f4").astype(numpy.float32)
        return torch.from_numpy(words.reshape(-1, self.channels).T.copy())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._messages.close()

    def _fail(self) -> None:
        self._process.wait()
        self._messages.seek(0)
        reason = self._messages.read().decode(errors="replace").replace(f"{self._path.absolute()}: ", "").splitlines()
        self.close()
        raise AudioError(f"{self._path}: ffmpeg cannot read it ({reason[-1] if reason else 'no sound in it'})")
