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
from typing import Any

import numpy
import torch
from torch import Tensor

from hear_jepa.checks import LOUDEST, check_waveform
from hear_jepa.errors import AudioError, OptionError
from hear_jepa.files.audio import AudioReader
from hear_jepa.files.live import TimestampOrder, WindowStream
from hear_jepa.files.resample import resample
from hear_jepa.files.sounds import Sound
from hear_jepa.model.embedder import Embedder, WindowBatcher, check_finite
from hear_jepa.model.grid import Window
from hear_jepa.model.pooling import Pool

KINDS = ("scene", "timestamps")  # of a waveform
FILE_KINDS = (*KINDS, "windows")
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

    sound: Sound
    channel: int
    embeddings: numpy.ndarray


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


@dataclass
class Embedded:
    """A file and its embeddings, one array a channel; none, but a reason, for a file that could not be embedded.

    `embeddings`: float32 [size] of a scene; [n, size] of timestamps, whose centres, in ms, are `timestamps_ms` [n], and
    of windows, whose seconds from, to are `spans_s` [n, 2].
    """

    path: Path
    embeddings: list[numpy.ndarray] = field(default_factory=list)
    timestamps_ms: Any = None
    duration_s: float = 0.0
    error: str | None = None
    warning: str = ""
    spans_s: Any = None


def embed_files(
    embedder: Embedder, paths: Iterable[str | Path | Sound], kind: str = "scene", **options
) -> Iterator[Embedded]:
    """Yield every file as soon as it is done, failed ones too; options as for `embed_pieces`."""
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    pieces: dict[Sound, dict[int, list[numpy.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for event in embed_pieces(embedder, paths, kind, **options):
        if isinstance(event, Piece):
            pieces[event.sound][event.channel].append(event.embeddings)
            continue
        channels, path = pieces.pop(event.sound, {}), Path(event.sound.path)
        if event.error is not None:
            yield Embedded(path, error=event.error)
            continue
        joined = [numpy.concatenate(channels[channel]) for channel in range(event.n_channels)]
        file = Embedded(path, joined, duration_s=event.duration_s, warning=event.warning)
        start_s, count = event.sound.excerpt[0] if event.sound.excerpt else 0.0, len(joined[0])
        if kind == "scene":
            file.embeddings = [rows[0] for rows in joined]
        elif kind == "timestamps":
            centres = embedder.grid.centres_ms(event.n_samples, embedder.hop_ms, 0, count).numpy()
            file.timestamps_ms = centres + 1000 * start_s
        else:
            window_s, hop_s = options["window_s"], options.get("hop_s") or options["window_s"]
            file.spans_s = start_s + spans_s(count, window_s, hop_s, event.duration_s)
        yield file


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
    paths: Iterable[str | Path | Sound],
    kind: str = "scene",
    channels: str = "mix",
    batch_s: float = BATCH_S,
    workers: int = WORKERS,
    truncated: str = "warn",
    headerless: bool = False,
    window_s: float | None = None,
    hop_s: float | None = None,
) -> Iterator[Piece | FileEnd]:
    """Embed files, a `FileEnd` after the pieces of each; the pieces of several files come interleaved.

    paths: each is embedded once, however often it is named;
    kind: "scene" (one piece of one row a channel), "timestamps", every `embedder.hop_ms`, or "windows" of `window_s`
        seconds every `hop_s` (by default as long): the pooled columns whose centres lie in each;
    channels: "mix" them to one, or embed each separately; batch_s: seconds of sound encoded at once;
    workers: threads that decode; truncated: "warn" of a file that is shorter than its header says, or "fail" it;
    headerless: see `AudioReader`. A file that cannot be read, is empty, silent, or holds NaN, or whose embeddings are
    not finite, ends with an error and stops nothing. Raises OptionError for a bad option.
    """
    if kind not in FILE_KINDS:
        raise OptionError(f"kind must be one of {', '.join(FILE_KINDS)}, not {kind!r}")
    if channels not in CHANNELS:
        raise OptionError(f"channels must be one of {', '.join(CHANNELS)}, not {channels!r}")
    if not batch_s > 0:
        raise OptionError(f"the seconds of a batch must be more than 0, not {batch_s}")
    if workers < 1:
        raise OptionError(f"there must be at least one worker, not {workers}")
    if truncated not in TRUNCATED:
        raise OptionError(f"truncated must be one of {', '.join(TRUNCATED)}, not {truncated!r}")
    encoder = _Encoder(embedder, batch_s, _collector(embedder, kind, window_s, hop_s))
    reading = _Reading(embedder, embedder.hop_of(kind), channels == "separate", truncated == "fail", headerless)
    with _decoded(reading, paths, workers) as events:
        for event in events:
            yield from encoder.add(event)
    yield from encoder.flush()


@dataclass(frozen=True)
class _Windows:
    """Some windows of one channel of a file, and their log-mels."""

    sound: Sound
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
def _decoded(
    reading: _Reading, paths: Iterable[str | Path | Sound], workers: int
) -> Iterator[Iterator[_Windows | FileEnd]]:
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
def _decode(reading: _Reading, sound: Sound) -> Iterator[_Windows | FileEnd]:
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
                    yield _Windows(sound, channel, stream.feed(block[channel]))
            if peak < SILENCE:
                raise AudioError("silent: no sample is above -100 dB")
            shortfall = reader.shortfall if sound.excerpt is None else ""
            if shortfall and reading.fail_truncated:
                raise AudioError(f"truncated: {shortfall}")
            for channel, stream in enumerate(streams):
                yield _Windows(sound, channel, stream.finish())
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


class _Scene:
    """The pooled columns of one channel."""

    def __init__(self, pooling: str):
        self._pool = Pool(pooling)

    def add(self, window: Window, columns: Tensor) -> numpy.ndarray | None:
        self._pool.add(columns)
        return None

    def end(self, n_samples: int) -> numpy.ndarray | None:
        return self._pool.embedding()[None].numpy()


class _Timestamps:
    """The columns of one channel in order of time, given on at once."""

    def __init__(self):
        self._order = TimestampOrder()

    def add(self, window: Window, columns: Tensor) -> numpy.ndarray | None:
        embeddings = self._order.add(window, columns)
        return None if embeddings is None else embeddings.numpy()

    def end(self, n_samples: int) -> numpy.ndarray | None:
        return None


class _PooledWindows:
    """The columns of one channel pooled over stretches of time, each given on when it is complete."""

    def __init__(self, embedder: Embedder, window_ms: int, hop_ms: int):
        self._embedder, self._window_ms, self._hop_ms = embedder, window_ms, hop_ms
        self._order = TimestampOrder()
        self._pools: dict[int, Pool] = {}  # by number of the window: those that further columns may join
        self._n_complete = 0

    def add(self, window: Window, columns: Tensor) -> numpy.ndarray | None:
        first = self._order.count
        ordered = self._order.add(window, columns)
        if ordered is None:
            return None
        centres = self._embedder.grid.centres_ms(None, self._embedder.scene_hop_ms, first, len(ordered))
        number = max(0, math.floor((centres[0].item() - self._window_ms) / self._hop_ms) + 1)
        while number * self._hop_ms <= centres[-1].item():
            start = number * self._hop_ms
            inside = ordered[(centres >= start) & (centres < start + self._window_ms)]
            if len(inside):
                self._pools.setdefault(number, Pool(self._embedder.pooling)).add(inside)
            number += 1
        latest = centres[-1].item()
        return self._rows(lambda number: number * self._hop_ms + self._window_ms <= latest)

    def end(self, n_samples: int) -> numpy.ndarray | None:
        count = n_windows(1000 * n_samples / self._embedder.sample_rate, self._window_ms, self._hop_ms)
        return self._rows(lambda number: number < count)

    def _rows(self, complete: Callable[[int], bool]) -> numpy.ndarray | None:
        rows = []
        while self._n_complete in self._pools and complete(self._n_complete):
            rows.append(self._pools.pop(self._n_complete).embedding())
            self._n_complete += 1
        return torch.stack(rows).numpy() if rows else None


_Collector = _Scene | _Timestamps | _PooledWindows


def _collector(embedder: Embedder, kind: str, window_s: float | None, hop_s: float | None) -> Callable[[], _Collector]:
    """What makes the embeddings of a kind of the columns of one channel."""
    if kind == "scene":
        return partial(_Scene, embedder.pooling)
    if kind == "timestamps":
        return _Timestamps
    return partial(_PooledWindows, embedder, *check_windows(embedder, window_s, hop_s))


def check_windows(embedder: Embedder, window_s: float | None, hop_s: float | None = None) -> tuple[int, int]:
    """Length and distance of windows in ms. Raises OptionError unless both are whole, and a window holds columns."""
    hop_s = window_s if hop_s is None else hop_s
    shortest_s = max(embedder.grid.settled_samples / embedder.sample_rate, embedder.scene_hop_ms / 1000)
    if window_s is None or hop_s is None or not window_s >= shortest_s or not hop_s > 0:
        raise OptionError(
            f"windows need window_s of at least {shortest_s:g} and hop_s above 0, not {window_s}, {hop_s}"
        )
    milliseconds = [round(1000 * seconds) for seconds in (window_s, hop_s)]
    if any(abs(1000 * seconds - ms) > 1e-6 for seconds, ms in zip((window_s, hop_s), milliseconds, strict=True)):
        raise OptionError(f"window_s and hop_s must be whole milliseconds, not {window_s}, {hop_s}")
    return milliseconds[0], milliseconds[1]


def n_windows(duration_ms: float, window_ms: int, hop_ms: int) -> int:
    """Windows of a recording: all that fit into it, and one more where sound is left over after the last of them."""
    if duration_ms <= window_ms:
        return 1
    fitting = math.floor((duration_ms - window_ms) / hop_ms) + 1
    end = (fitting - 1) * hop_ms + window_ms
    return fitting + (end < duration_ms and fitting * hop_ms < duration_ms)


def spans_s(count: int, window_s: float, hop_s: float, duration_s: float) -> numpy.ndarray:
    """Seconds from, to [count, 2] of the first windows of a recording; the last ends with it."""
    starts = hop_s * numpy.arange(count)
    return numpy.stack([starts, numpy.minimum(starts + window_s, duration_s)], axis=1)


@dataclass
class _OpenFile:
    """A file between its first window and its end."""

    channels: dict[int, _Collector] = field(default_factory=dict)
    waiting: int = 0  # windows not yet encoded
    end: FileEnd | None = None
    error: str | None = None


class _Encoder:
    """Has windows encoded, and hands each file its own; a file whose embeddings are not finite has failed."""

    def __init__(self, embedder: Embedder, batch_s: float, collector: Callable[[], _Collector]):
        batch_columns = batch_s * 1000 / embedder.grid.column_ms
        self._batcher: WindowBatcher[tuple[Sound, int]] = WindowBatcher(embedder, batch_columns)
        self._collector = collector
        self._files: dict[Sound, _OpenFile] = defaultdict(_OpenFile)

    @torch.no_grad()
    def add(self, event: _Windows | FileEnd) -> Iterator[Piece | FileEnd]:
        file = self._files[event.sound]
        if isinstance(event, FileEnd):
            file.end = event
            yield from self._close_if_done(event.sound)
            return
        file.channels.setdefault(event.channel, self._collector())
        file.waiting += len(event.windows)
        for window, spectrogram in event.windows:
            yield from self._collect(self._batcher.add((event.sound, event.channel), window, spectrogram))

    @torch.no_grad()
    def flush(self) -> Iterator[Piece | FileEnd]:
        """Encode what is left."""
        yield from self._collect(self._batcher.flush())

    def _collect(self, encoded: Iterator[tuple[tuple[Sound, int], Window, Tensor]]) -> Iterator[Piece | FileEnd]:
        for (sound, channel), window, columns in encoded:
            file = self._files[sound]
            file.waiting -= 1
            try:
                embeddings = file.channels[channel].add(window, check_finite(columns[None])[0].cpu())
            except AudioError:
                file.error = "its embeddings are not finite: samples too large for float32, give audio in [-1, 1]"
                embeddings = None
            if embeddings is not None:
                yield Piece(sound, channel, embeddings)
            yield from self._close_if_done(sound)

    def _close_if_done(self, sound: Sound) -> Iterator[Piece | FileEnd]:
        file = self._files[sound]
        if file.end is None or file.waiting:
            return
        del self._files[sound]
        if file.error is not None:
            yield FileEnd(sound, file.error, stamp=file.end.stamp)
            return
        if file.end.error is None:
            for channel, collector in file.channels.items():
                embeddings = collector.end(file.end.n_samples)
                if embeddings is not None:
                    yield Piece(sound, channel, embeddings)
        yield file.end
