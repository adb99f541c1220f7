"""Sound files -> the windows of their spectrograms, decoded by threads while the caller does something else."""

import logging
import math
import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hear_jepa.checks import LOUDEST
from hear_jepa.errors import AudioError
from hear_jepa.files.audio import AudioReader
from hear_jepa.files.live import WindowStream
from hear_jepa.files.sounds import Sound
from hear_jepa.model.embedder import Embedder
from hear_jepa.model.grid import Window

BLOCK_S = 8.0  # of sound decoded at once …
BLOCK_VALUES = 2**21  # … and never more samples than this: 8 MiB, whatever rate and channels a header claims
SILENCE = 1e-5  # peak (-100 dB, a third of a 16-bit step) under which a file counts as silent
QUEUED = 32  # events a worker may be ahead: about a batch, so that decoding goes on while one is encoded
POLL_S = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileEnd:
    """A file is finished: all its pieces were given, or `error` says why it has none that count."""

    sound: Sound
    error: str | None = None
    n_channels: int = 0
    duration_s: float = 0.0
    n_samples: int = 0  # of one channel, at the model's rate
    warning: str = ""  # what is odd about it
    stamp: tuple[int, int] = (-1, -1)  # see `Sound.stamp`, before it was read


@dataclass(frozen=True)
class Windows:
    """Some windows of one channel of a file, and their log-mels."""

    sound: Sound
    channel: int
    windows: list[tuple[Window, Tensor]]


@dataclass(frozen=True)
class Reading:
    """How files are decoded and cut into windows."""

    embedder: Embedder
    hop_ms: int
    separate: bool
    fail_truncated: bool
    headerless: bool


@contextmanager
def decoded(
    reading: Reading, paths: Iterable[str | Path | Sound], workers: int
) -> Iterator[Iterator[Windows | FileEnd]]:
    """Decode in threads; the events of one file come in order. Leaving the context ends the threads."""
    sounds = (path if isinstance(path, Sound) else Sound(Path(path)) for path in paths)
    todo, lock, stop = iter(dict.fromkeys(sounds)), threading.Lock(), threading.Event()
    events: queue.Queue = queue.Queue(maxsize=QUEUED * workers)

    def put(event) -> None:
        while not stop.is_set():
            try:
                return events.put(event, timeout=POLL_S)
            except queue.Full:
                continue
        raise _Stopped

    def work() -> None:
        try:
            while True:
                with lock:
                    sound = next(todo, None)
                if sound is None:
                    return put(None)
                for event in _decode(reading, sound):
                    put(event)
        except _Stopped:
            return

    def received() -> Iterator[Windows | FileEnd]:
        running = workers
        while running:
            event = events.get()
            if event is None:
                running -= 1
            else:
                yield event

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        yield received()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class _Stopped(Exception):
    """The caller has gone."""


@torch.no_grad()
def _decode(reading: Reading, sound: Sound) -> Iterator[Windows | FileEnd]:
    """The windows of every channel of a file, then its end."""
    embedder, stamp, path = reading.embedder, sound.stamp(), None
    try:
        with sound.local() as path, AudioReader(path, reading.headerless) as reader:
            n_channels = reader.channels if reading.separate else 1
            streams = [WindowStream(embedder, reading.hop_ms) for _ in range(n_channels)]
            block_s = min(BLOCK_S, BLOCK_VALUES / (reader.rate * reader.channels))
            peak = 0.0
            for block in reader.blocks(block_s, embedder.sample_rate, not reading.separate, sound.excerpt):
                start, length = streams[0].n_samples / embedder.sample_rate, block.shape[1] / embedder.sample_rate
                peak = max(peak, _peak(block, f"between {start:.1f} and {start + length:.1f} s"))
                for channel, stream in enumerate(streams):
                    yield Windows(sound, channel, stream.feed(block[channel]))
            if peak < SILENCE:
                raise AudioError("silent: no sample is above -100 dB")
            shortfall = reader.shortfall if sound.excerpt is None else ""
            if shortfall and reading.fail_truncated:
                raise AudioError(f"truncated: {shortfall}")
            for channel, stream in enumerate(streams):
                yield Windows(sound, channel, stream.finish())
        n_samples = streams[0].n_samples
        duration_s = n_samples / embedder.sample_rate
        yield FileEnd(sound, None, n_channels, duration_s, n_samples, shortfall, stamp)
    except Exception as error:  # one bad file never stops the run, whatever its decoder throws
        if not isinstance(error, AudioError):
            logger.debug("decoding %s", sound.path, exc_info=True)
        reason = str(error) if isinstance(error, AudioError) else f"{type(error).__name__}: {error}"
        yield FileEnd(sound, reason.removeprefix(f"{path}: ").removeprefix(f"{sound.path}: "), stamp=stamp)


def _peak(block: Tensor, where: str) -> float:
    """The loudest sample of a block. Raises AudioError where that is nothing that can be embedded."""
    peak = block.abs().max().item() if block.numel() else 0.0  # NaN if any sample is
    if not math.isfinite(peak):
        raise AudioError(f"NaN or infinite samples {where}")
    if peak > LOUDEST:
        raise AudioError(f"samples of {peak:.0e} {where}; sound lies in -1 … 1")
    return peak
