"""Files -> embeddings: decoded by workers while the model computes, and encoded in batches that many files share.

Each worker decodes one file at a time, a few seconds at once, and queues the windows of its spectrogram. The caller's
thread encodes them, those of one length together, whichever file they come from. What is in memory is bounded by
`batch_s` and the number of workers, not by the length or the number of the files.
"""

import logging
import math
import os
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy
import torch
from torch import Tensor

from hear_jepa.checks import LOUDEST, check_waveform
from hear_jepa.errors import AudioError, OptionError
from hear_jepa.files.audio import AudioReader, resample
from hear_jepa.files.live import TimestampOrder, WindowStream
from hear_jepa.model.embedder import Embedder, WindowBatcher, check_finite
from hear_jepa.model.grid import Window
from hear_jepa.model.pooling import Pool

KINDS = ("scene", "timestamps")
CHANNELS = ("mix", "separate")
TRUNCATED = ("warn", "fail")
BATCH_S = 32.0
WORKERS = 2
BLOCK_S = 8.0  # of sound decoded at once …
BLOCK_VALUES = 2**21  # … and never more samples than this: 8 MiB, whatever rate and channels a header claims
SILENCE = 1e-5  # peak (-100 dB, a third of a 16-bit step) under which a file counts as silent
QUEUED = 32  # events a worker may be ahead: about a batch, so that decoding goes on while one is encoded
POLL_S = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Piece:
    """New embeddings [n, size], float32, of one channel of a file, which follow those of its earlier pieces."""

    path: Path
    channel: int
    embeddings: numpy.ndarray


@dataclass(frozen=True)
class FileEnd:
    """A file is finished: all its pieces were given, or `error` says why it has none that count."""

    path: Path
    error: str | None = None
    n_channels: int = 0
    duration_s: float = 0.0
    n_samples: int = 0  # of one channel, at the model's rate
    warning: str = ""  # what is odd about it


@dataclass
class Embedded:
    """A file and its embeddings, one array a channel; none, but a reason, for a file that could not be embedded.

    `embeddings`: float32 [size] (scene) or [n, size] (timestamps), whose centres, in ms, are `timestamps_ms` [n].
    """

    path: Path
    embeddings: list[numpy.ndarray] = field(default_factory=list)
    timestamps_ms: numpy.ndarray | None = None
    duration_s: float = 0.0
    error: str | None = None
    warning: str = ""


def embed_files(embedder: Embedder, paths: Iterable[str | Path], kind: str = "scene", **options) -> Iterator[Embedded]:
    """Yield every file as soon as it is done, failed ones too; options as for `embed_pieces`."""
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    pieces: dict[Path, dict[int, list[numpy.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for event in embed_pieces(embedder, paths, kind, **options):
        if isinstance(event, Piece):
            pieces[event.path][event.channel].append(event.embeddings)
            continue
        channels = pieces.pop(event.path, {})
        if event.error is not None:
            yield Embedded(event.path, error=event.error)
            continue
        joined = [numpy.concatenate(channels[channel]) for channel in range(event.n_channels)]
        centres = None
        if kind == "scene":
            joined = [rows[0] for rows in joined]
        else:
            centres = embedder.grid.centres_ms(event.n_samples, embedder.hop_ms, 0, len(joined[0])).numpy()
        yield Embedded(event.path, joined, centres, event.duration_s, warning=event.warning)


def embed_waveform(
    embedder: Embedder, waveform: Tensor, sample_rate: int, kind: str = "scene"
) -> Tensor | tuple[Tensor, Tensor]:
    """Mix [channels, samples] to mono, resample, embed: see `Embedder.embed`. NumPy arrays will do.

    Raises `AudioError` for audio that cannot be embedded, `OptionError` for an unknown kind.
    """
    if kind not in KINDS:
        raise OptionError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if not sample_rate > 0:
        raise AudioError(f"the sample rate must be more than 0 Hz, not {sample_rate}")
    channels = check_waveform(torch.as_tensor(waveform))
    audio = resample(channels.float().mean(0, keepdim=True).cpu(), sample_rate, embedder.sample_rate)
    if kind == "scene":
        return embedder.scenes(audio)[0]
    embeddings, timestamps = embedder.timestamps(audio)
    return embeddings[0], timestamps[0]


def embed_pieces(
    embedder: Embedder,
    paths: Iterable[str | Path],
    kind: str = "scene",
    channels: str = "mix",
    batch_s: float = BATCH_S,
    workers: int = WORKERS,
    truncated: str = "warn",
    headerless: bool = False,
) -> Iterator[Piece | FileEnd]:
    """Embed files, a `FileEnd` after the pieces of each; the pieces of several files come interleaved.

    paths: each is embedded once, however often it is named;
    kind: "scene" (one piece of one row a channel) or "timestamps", every `embedder.hop_ms`;
    channels: "mix" them to one, or embed each separately; batch_s: seconds of sound encoded at once;
    workers: threads that decode; truncated: "warn" of a file that is shorter than its header says, or "fail" it;
    headerless: see `AudioReader`. A file that cannot be read, is empty, silent, or holds NaN, or whose embeddings are
    not finite, ends with an error and stops nothing. Raises OptionError for a bad option.
    """
    if kind not in KINDS:
        raise OptionError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if channels not in CHANNELS:
        raise OptionError(f"channels must be one of {', '.join(CHANNELS)}, not {channels!r}")
    if not batch_s > 0:
        raise OptionError(f"the seconds of a batch must be more than 0, not {batch_s}")
    if workers < 1:
        raise OptionError(f"there must be at least one worker, not {workers}")
    if truncated not in TRUNCATED:
        raise OptionError(f"truncated must be one of {', '.join(TRUNCATED)}, not {truncated!r}")
    collector = partial(_Scene, embedder.pooling) if kind == "scene" else _Timestamps
    encoder = _Encoder(embedder, batch_s, collector)
    reading = _Reading(embedder, embedder.hop_of(kind), channels == "separate", truncated == "fail", headerless)
    with _decoded(reading, paths, workers) as events:
        for event in events:
            yield from encoder.add(event)
    yield from encoder.flush()


@dataclass(frozen=True)
class _Windows:
    """Some windows of one channel of a file, and their log-mels."""

    path: Path
    channel: int
    windows: list[tuple[Window, Tensor]]


@dataclass(frozen=True)
class _Reading:
    """How files are decoded and cut into windows."""

    embedder: Embedder
    hop_ms: int
    separate: bool
    fail_truncated: bool
    headerless: bool


@contextmanager
def _decoded(reading: _Reading, paths: Iterable[str | Path], workers: int) -> Iterator[Iterator[_Windows | FileEnd]]:
    """Decode in threads; the events of one file come in order. Leaving the context ends the threads."""
    todo, lock, stop = iter(dict.fromkeys(map(Path, paths))), threading.Lock(), threading.Event()
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
                    path = next(todo, None)
                if path is None:
                    return put(None)
                for event in _decode(reading, path):
                    put(event)
        except _Stopped:
            return

    def received() -> Iterator[_Windows | FileEnd]:
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
def _decode(reading: _Reading, path: Path) -> Iterator[_Windows | FileEnd]:
    """The windows of every channel of a file, then its end."""
    embedder = reading.embedder
    try:
        with AudioReader(path, reading.headerless) as reader:
            n_channels = reader.channels if reading.separate else 1
            streams = [WindowStream(embedder, reading.hop_ms) for _ in range(n_channels)]
            block_s = min(BLOCK_S, BLOCK_VALUES / (reader.rate * reader.channels))
            peak = 0.0
            for block in reader.blocks(block_s, embedder.sample_rate, mono=not reading.separate):
                start, length = streams[0].n_samples / embedder.sample_rate, block.shape[1] / embedder.sample_rate
                peak = max(peak, _peak(block, f"between {start:.1f} and {start + length:.1f} s"))
                for channel, stream in enumerate(streams):
                    yield _Windows(path, channel, stream.feed(block[channel]))
            if peak < SILENCE:
                raise AudioError("silent: no sample is above -100 dB")
            shortfall = reader.shortfall
            if shortfall and reading.fail_truncated:
                raise AudioError(f"truncated: {shortfall}")
            for channel, stream in enumerate(streams):
                yield _Windows(path, channel, stream.finish())
        n_samples = streams[0].n_samples
        yield FileEnd(path, None, n_channels, n_samples / embedder.sample_rate, n_samples, shortfall)
    except Exception as error:  # one bad file never stops the run, whatever its decoder throws
        if not isinstance(error, AudioError):
            logger.debug("decoding %s", path, exc_info=True)
        reason = str(error) if isinstance(error, AudioError) else f"{type(error).__name__}: {error}"
        yield FileEnd(path, reason.removeprefix(f"{path}: "))


def _peak(block: Tensor, where: str) -> float:
    """The loudest sample of a block. Raises AudioError where that is nothing that can be embedded."""
    peak = block.abs().max().item() if block.numel() else 0.0  # NaN if any sample is
    if not math.isfinite(peak):
        raise AudioError(f"NaN or infinite samples {where}")
    if peak > LOUDEST:
        raise AudioError(f"samples of {peak:.0e} {where}; sound lies in -1 … 1")
    return peak


class _Scene:
    """The pooled columns of one channel."""

    def __init__(self, pooling: str):
        self._pool = Pool(pooling)

    def add(self, window: Window, columns: Tensor) -> numpy.ndarray | None:
        self._pool.add(columns)
        return None

    def end(self) -> numpy.ndarray | None:
        return self._pool.embedding()[None].numpy()


class _Timestamps:
    """The columns of one channel in order of time, given on at once."""

    def __init__(self):
        self._order = TimestampOrder()

    def add(self, window: Window, columns: Tensor) -> numpy.ndarray | None:
        embeddings = self._order.add(window, columns)
        return None if embeddings is None else embeddings.numpy()

    def end(self) -> numpy.ndarray | None:
        return None


@dataclass
class _OpenFile:
    """A file between its first window and its end."""

    channels: dict[int, _Scene | _Timestamps] = field(default_factory=dict)
    waiting: int = 0  # windows not yet encoded
    end: FileEnd | None = None
    error: str | None = None


class _Encoder:
    """Has windows encoded, and hands each file its own; a file whose embeddings are not finite has failed."""

    def __init__(self, embedder: Embedder, batch_s: float, collector: Callable[[], "_Scene | _Timestamps"]):
        batch_columns = batch_s * 1000 / embedder.grid.column_ms
        self._batcher: WindowBatcher[tuple[Path, int]] = WindowBatcher(embedder, batch_columns)
        self._collector = collector
        self._files: dict[Path, _OpenFile] = defaultdict(_OpenFile)

    @torch.no_grad()
    def add(self, event: _Windows | FileEnd) -> Iterator[Piece | FileEnd]:
        file = self._files[event.path]
        if isinstance(event, FileEnd):
            file.end = event
            yield from self._close_if_done(event.path)
            return
        file.channels.setdefault(event.channel, self._collector())
        file.waiting += len(event.windows)
        for window, spectrogram in event.windows:
            yield from self._collect(self._batcher.add((event.path, event.channel), window, spectrogram))

    @torch.no_grad()
    def flush(self) -> Iterator[Piece | FileEnd]:
        """Encode what is left."""
        yield from self._collect(self._batcher.flush())

    def _collect(self, encoded: Iterator[tuple[tuple[Path, int], Window, Tensor]]) -> Iterator[Piece | FileEnd]:
        for (path, channel), window, columns in encoded:
            file = self._files[path]
            file.waiting -= 1
            try:
                embeddings = file.channels[channel].add(window, check_finite(columns[None])[0].cpu())
            except AudioError:
                file.error = "its embeddings are not finite: samples too large for float32, give audio in [-1, 1]"
                embeddings = None
            if embeddings is not None:
                yield Piece(path, channel, embeddings)
            yield from self._close_if_done(path)

    def _close_if_done(self, path: Path) -> Iterator[Piece | FileEnd]:
        file = self._files[path]
        if file.end is None or file.waiting:
            return
        del self._files[path]
        if file.error is not None:
            yield FileEnd(path, file.error)
            return
        if file.end.error is None:
            for channel, collector in file.channels.items():
                embeddings = collector.end()
                if embeddings is not None:
                    yield Piece(path, channel, embeddings)
        yield file.end
