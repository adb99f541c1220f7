"""Any sound file -> float32 tensors at the rate that the model wants; whole, or in blocks for long files.

libsndfile (soundfile) decodes what it knows; ffmpeg, where it is installed, decodes the rest (m4a, g722, wma, …).
"""

import logging
import math
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import soundfile
import torch

from hear_jepa.errors import AudioError, OptionError

SAMPLE_RATE = 16000
NEEDS_FFMPEG = "needs ffmpeg"  # in the message of every file that installing it may open
# Kept from libsndfile, which takes some headerless ones for MP3.
FFMPEG_SUFFIXES = frozenset(
    [
        ".g722",
        ".gsm",
        ".3gp",
        ".m4a",
        ".m4b",
        ".mp4",
        ".aac",
        ".wma",
        ".amr",
        ".ape",
        ".wv",
        ".tta",
        ".mka",
        ".webm",
        ".ac3",
    ]
    + [".it", ".mod", ".s3m", ".xm"]
)
SOUNDFILE_SUFFIXES = frozenset(
    [".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".snd", ".w64", ".caf", ".rf64", ".voc"]
)
# Nothing in such a file says what it is: searching a folder for sound to embed takes them only when asked.
HEADERLESS = {".g722": "g722", ".gsm": "gsm"}  # suffix: ffmpeg's name
# What ffmpeg may take a file for: containers of sound; no playlist, which would open other files, and no text.
FFMPEG_FORMATS = "aac,ac3,eac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,flac,flv,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,ogg"
FFMPEG_FORMATS += ",rm,tak,tta,voc,w64,wav,wv,libopenmpt,libmodplug"
LOWEST_RATE, HIGHEST_RATE = 100, 800_000  # Hz; a header beyond would ask for days of sound, or gigabytes of filters
TRUNCATED_S = 0.002  # of sound that a header may declare too much before the file counts as truncated
LARGEST_DENOMINATOR = 1000
LOWPASS_WIDTH = 16
UNKNOWN_SIZE = 0x7FFFF000  # and above: what recorders write that do not know the length yet
COUNTED_FORMATS = ("FLAC",)  # whose number of samples libsndfile takes from the header as it is


logger = logging.getLogger(__name__)


def find_audio(folder: str | Path) -> list[Path]:
    """Return every file below `folder` whose suffix is that of a sound, in an order that no file system changes.

    Folders that cannot be read and broken links are logged as warnings.
    """
    found = []
    for path, problem in walk_audio(folder):
        if problem:
            logger.warning("left out %s: %s", path, problem)
        else:
            found.append(path)
    return found


def walk_audio(folder: str | Path) -> list[tuple[Path, str]]:
    """Every sound below `folder`, with "", and every folder or link that cannot be followed, with the reason; sorted.

    A folder that links lead to more than once is searched once.
    """
    found: list[tuple[Path, str]] = []
    seen: set[tuple[int, int]] = set()  # device and inode of the folders searched

    def walk(folder: Path) -> None:
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                return
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            found.append((folder, f"the folder cannot be read ({error.strerror})"))
            return
        for entry in entries:  # what is really here before what links lead to
            path, suffix = folder / entry.name, os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                walk(path)
            elif suffix in SOUNDFILE_SUFFIXES | FFMPEG_SUFFIXES or (entry.is_symlink() and not suffix):
                if entry.is_symlink() and not path.exists():
                    found.append((path, broken_link(path)))
                elif suffix and entry.is_file():
                    found.append((path, ""))

    walk(Path(folder))
    return sorted(found, key=lambda item: item[0].as_posix())


def broken_link(path: Path) -> str:
    """The reason why a link that leads nowhere cannot be read."""
    return f"a broken link to {os.readlink(path)}"


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
def _resampler(old: int, new: int) -> Any:
    """torchaudio's resampler, imported only here: a torchaudio that does not fit the torch beside it refuses to be."""
    try:
        from torchaudio.transforms import Resample
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise OptionError(
            f"torchaudio, which resamples {old}:{new}, cannot be imported beside torch {torch.__version__} ({reason}): "
            "install the torchaudio made for it, or give audio at the model's own rate"
        ) from error
    return Resample(old, new, lowpass_filter_width=LOWPASS_WIDTH)


def declared_duration_s(path: Path) -> float | None:
    """Seconds of sound that the header of a WAV or AIFF file declares; None for other files and unknown lengths."""
    with open(path, "rb") as file:
        kind, _, form = struct.unpack("4s4s4s", file.read(12).ljust(12, b"\0"))
        if kind in (b"RIFF", b"RF64") and form == b"WAVE":
            return _wav_duration_s(file)
        if kind == b"FORM" and form in (b"AIFF", b"AIFC"):
            return _aiff_duration_s(file)
    return None


def _wav_duration_s(file: BinaryIO) -> float | None:
    bytes_per_s, long_size = 0, None
    for name, size in _chunks(file, "<"):
        if name == b"ds64":
            long_size = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
        elif name == b"fmt ":
            bytes_per_s = struct.unpack("<8xI", file.read(12).ljust(12, b"\0"))[0]
        elif name == b"data":
            if size >= UNKNOWN_SIZE:  # a recorder that wrote to a pipe, or the true size of a long file in its ds64
                size = long_size
            return size / bytes_per_s if size and bytes_per_s else None
    return None


def _aiff_duration_s(file: BinaryIO) -> float | None:
    for name, _ in _chunks(file, ">"):
        if name == b"COMM":
            samples, exponent, mantissa = struct.unpack(">2xI2xHQ", file.read(18).ljust(18, b"\0"))
            rate = mantissa * 2.0 ** ((exponent & 0x7FFF) - 16383 - 63)
            return samples / rate if samples < UNKNOWN_SIZE and rate > 0 else None
    return None


def _chunks(file: BinaryIO, order: str) -> Iterator[tuple[bytes, int]]:
    """Name and size of the chunks of an IFF file, the file at the start of each one's content."""
    start = file.tell()
    while len(header := file.read(8)) == 8:
        name, size = struct.unpack(f"{order}4sI", header)
        start += 8
        yield name, size
        start += size + size % 2
        file.seek(start)


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
