"""Any sound file -> float32 tensors at the rate that the model wants; whole, or in blocks for long files.

libsndfile (soundfile) decodes what it knows; ffmpeg, where it is installed, decodes the rest (m4a, g722, wma, …).
"""

import math
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import soundfile
import torch

from hear_jepa.errors import AudioError
from hear_jepa.files.folders import FFMPEG_SUFFIXES, HEADERLESS, broken_link
from hear_jepa.files.headers import declared_duration_s
from hear_jepa.files.resample import SAMPLE_RATE, resample_blocks

NEEDS_FFMPEG = "needs ffmpeg"  # in the message of every file that installing it may open
# What ffmpeg may take a file for: containers of sound; no playlist, which would open other files, and no text.
FFMPEG_FORMATS = "aac,ac3,eac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,flac,flv,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,ogg"
FFMPEG_FORMATS += ",rm,tak,tta,voc,w64,wav,wv,libopenmpt,libmodplug"
LOWEST_RATE, HIGHEST_RATE = 100, 800_000  # Hz; a header beyond would ask for days of sound, or gigabytes of filters
TRUNCATED_S = 0.002  # of sound that a header may declare too much before the file counts as truncated
COUNTED_FORMATS = ("FLAC",)  # whose number of samples libsndfile takes from the header as it is


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
    """An open sound file with `rate` (Hz) and `channels`; a context manager.

    headerless: take also a file whose suffix alone says what it is (.au without its header: 8-bit µ-law at 8 kHz).
    """

    def __init__(self, path: str | Path, headerless: bool = False):
        self.path = Path(path)
        if not self.path.is_file():
            raise AudioError(f"{path}: {_why_no_file(self.path)}")
        if self.path.stat().st_size == 0:
            raise AudioError(f"{path}: the file is empty")
        self._source = _open(self.path, headerless)
        self.rate, self.channels = self._source.rate, self._source.channels
        self._decoded_samples = 0
        if not LOWEST_RATE <= self.rate <= HIGHEST_RATE:
            self._source.close()
            raise AudioError(f"{path}: its header claims {self.rate} Hz, not a sample rate of sound; it is damaged")

    def __enter__(self) -> "AudioReader":
        return self

    def __exit__(self, *exception) -> None:
        self._source.close()

    def blocks(
        self,
        block_s: float = 30.0,
        sample_rate: int | None = SAMPLE_RATE,
        mono: bool = False,
        excerpt: tuple[float, float] | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield the file, or an excerpt of it (seconds from, to), as float32 [channels, samples]; see `read_blocks`.

        Raises AudioError where the file ends before the excerpt starts.
        """
        at_once = max(1, round(block_s * self.rate))
        blocks = self._decoded(at_once, mono) if excerpt is None else self._excerpt(excerpt, at_once, mono)
        return resample_blocks(blocks, self.rate, sample_rate or self.rate)

    def _excerpt(self, excerpt: tuple[float, float], at_once: int, mono: bool) -> Iterator[torch.Tensor]:
        first = round(excerpt[0] * self.rate)
        last = math.inf if math.isinf(excerpt[1]) else round(excerpt[1] * self.rate)
        skipped = position = self._source.skip(first)
        for block in self._decoded(at_once, mono):
            start, position = position, position + block.shape[1]
            block = block[:, max(first - start, 0) : None if math.isinf(last) else max(last - start, 0)]
            if block.shape[1]:
                yield block
            if position >= last:
                return
        if position <= first:
            end_s = (skipped + self._decoded_samples) / self.rate
            raise AudioError(f"{self.path}: it ends at {end_s:.2f} s, before the excerpt from {excerpt[0]:g} s")

    @property
    def shortfall(self) -> str:
        """How much of the sound that the header declares was not there, once all is decoded; "" if nothing was."""
        declared_s = declared_duration_s(self.path)
        if declared_s is None and self._source.frames:
            declared_s = self._source.frames / self.rate
        decoded_s = self._decoded_samples / self.rate
        if declared_s is None or declared_s - decoded_s <= TRUNCATED_S:
            return ""
        return f"its header declares {declared_s:.2f} s, only {decoded_s:.2f} s are there"

    def _decoded(self, samples: int, mono: bool) -> Iterator[torch.Tensor]:
        while (block := self._source.read(samples)).shape[1]:
            self._decoded_samples += block.shape[1]
            yield block.mean(dim=0, keepdim=True) if mono else block
        if not self._decoded_samples and not self._source.skipped:
            raise AudioError(f"{self.path}: no sound could be decoded; the file is empty or damaged")


def _why_no_file(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return broken_link(path)
    if not path.is_dir():
        return "there is no such file"
    try:
        os.scandir(path).close()
    except OSError as error:
        return f"the folder cannot be read ({error.strerror})"
    return "a folder, not a file"


def _open(path: Path, headerless: bool) -> "_SoundfileSource | _FfmpegSource":
    if path.suffix.lower() not in FFMPEG_SUFFIXES:
        try:
            return _SoundfileSource(path, headerless)
        except (soundfile.LibsndfileError, _HeaderlessError) as error:
            if shutil.which("ffmpeg") is None:
                reason = getattr(error, "error_string", error)
                raise AudioError(
                    f"{path}: libsndfile cannot read it ({reason}); if it is sound, it {NEEDS_FFMPEG}: install it"
                ) from error
    return _FfmpegSource(path)


class _HeaderlessError(Exception):
    """Only the suffix of a file says what it is."""


class _SoundfileSource:
    """Decoding by libsndfile."""

    skipped = 0  # samples not decoded

    def __init__(self, path: Path, headerless: bool = False):
        self._path = path
        self._file = soundfile.SoundFile(os.fsencode(path))  # pyright: ignore[reportArgumentType]  # names need not be UTF-8
        if self._file.format == "RAW" and not headerless:
            self._file.close()
            raise _HeaderlessError("it has no header")
        self.rate, self.channels = self._file.samplerate, self._file.channels
        self.frames = self._file.frames if self._file.format in COUNTED_FORMATS else None  # as the header declares

    def skip(self, samples: int) -> int:
        """Go to the sample, or the end; returns where that is."""
        self.skipped = self._file.seek(min(samples, self._file.frames)) if self._file.seekable() else 0
        return self.skipped

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

    skipped = 0
    frames = None  # its header declares none

    def __init__(self, path: Path):
        self._path = path
        ffmpeg = shutil.which("ffmpeg")
        if ffmpeg is None:
            raise AudioError(f"{path}: decoding {path.suffix} files {NEEDS_FFMPEG}; install it")
        named = HEADERLESS.get(path.suffix.lower())
        command = [ffmpeg, "-v", "error", "-nostdin", "-protocol_whitelist", "file,pipe"]
        command += ["-f", named] if named else ["-format_whitelist", FFMPEG_FORMATS]
        command += ["-i", f"file:{path.absolute()}", "-map", "0:a:0", "-f", "au", "-c:a", "pcm_f32be", "pipe:1"]
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 (a pipe that nobody reads blocks a talkative ffmpeg)
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._messages)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        header = self._pipe.read(24)
        if len(header) < 24:
            self._fail()
        _, offset, _, _, self.rate, self.channels = struct.unpack(">6I", header)
        self._pipe.read(offset - 24)

    def skip(self, samples: int) -> int:
        return 0  # decoded, and left out

    def read(self, samples: int) -> torch.Tensor:
        decoded = self._pipe.read(samples * self.channels * 4)
        if not decoded and self._process.wait() != 0:
            self._fail()
        words = numpy.frombuffer(decoded, dtype=">f4").astype(numpy.float32)
        return torch.from_numpy(words.reshape(-1, self.channels).T.copy())

    def close(self) -> None:
        self._process.kill()
        self._pipe.close()
        self._process.wait()
        self._messages.close()

    def _fail(self) -> None:
        self._process.wait()
        self._messages.seek(0)
        said = self._messages.read().decode(errors="surrogateescape").replace(f"file:{self._path.absolute()}: ", "")
        self.close()
        reason = (said.splitlines() or ["no sound in it"])[-1]
        raise AudioError(f"{self._path}: ffmpeg cannot read it ({reason})")
