"""Files -> embeddings: decoded by workers while the model computes, and encoded in batches that many files share.

Each worker decodes one file at a time, a few seconds at once, and queues the windows of its spectrogram. The caller's
thread encodes them, those of one length together, whichever file they come from. What is in memory is bounded by
`batch_s` and the number of workers, not by the length or the number of the files.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from hear_jepa.checks import check_waveform
from hear_jepa.errors import AudioError, OptionError
from hear_jepa.files.collect import Collector, collector_of, spans_s
from hear_jepa.files.decode import FileEnd, Reading, Windows, decoded
from hear_jepa.files.records import start_of
from hear_jepa.files.resample import resample
from hear_jepa.files.sounds import Sound
from hear_jepa.model.embedder import Embedder, WindowBatcher
from hear_jepa.model.grid import Window

KINDS = ("scene", "timestamps")  # of a waveform
FILE_KINDS = (*KINDS, "windows")
CHANNELS = ("mix", "separate")
TRUNCATED = ("warn", "fail")
BATCH_S = 32.0
WORKERS = 2


@dataclass(frozen=True)
class Piece:
    """New embeddings [n, size], float32, of one channel of a file, which follow those of its earlier pieces."""

    sound: Sound
    channel: int
    embeddings: numpy.ndarray


@dataclass
class Embedded:
    """A file and its embeddings, one array a channel; none, but a reason, for a file that could not be embedded.

    `embeddings`: float32 [size] of a scene; [n, size] of timestamps, whose centres, in ms, are `timestamps_ms` [n], and
    of windows, whose seconds from, to are `spans_s` [n, 2]. `excerpt`: the seconds from, to that were asked for, None
    for the whole file.
    """

    path: Path
    embeddings: list[numpy.ndarray] = field(default_factory=list)
    timestamps_ms: Any = None
    duration_s: float = 0.0
    error: str | None = None
    warning: str = ""
    spans_s: Any = None
    excerpt: tuple[float, float] | None = None


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
            yield Embedded(path, error=event.error, excerpt=event.sound.excerpt)
            continue
        joined = [numpy.concatenate(channels[channel]) for channel in range(event.n_channels)]
        excerpt = event.sound.excerpt
        file = Embedded(path, joined, duration_s=event.duration_s, warning=event.warning, excerpt=excerpt)
        start_s, count = start_of(excerpt), len(joined[0])
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
    encoder = _Encoder(embedder, batch_s, collector_of(embedder, kind, window_s, hop_s))
    reading = Reading(embedder, embedder.hop_of(kind), channels == "separate", truncated == "fail", headerless)
    with decoded(reading, paths, workers) as events:
        for event in events:
            yield from encoder.add(event)
    yield from encoder.flush()


class _Channel:
    """Hands the windows of one channel to its collector in their order, in which they are not encoded.

    So what is summed does not depend, to the last bit, on the files that share its batches.
    """

    def __init__(self, collector: Collector):
        self.collector = collector
        self.n_windows = 0  # that came to be encoded
        self._n_collected = 0
        self._encoded: dict[int, tuple[Window, Tensor]] = {}  # by number: those that follow one not yet encoded

    def collect(self, number: int, window: Window, columns: Tensor) -> Iterator[numpy.ndarray]:
        self._encoded[number] = window, columns
        while (following := self._encoded.pop(self._n_collected, None)) is not None:
            self._n_collected += 1
            embeddings = self.collector.add(*following)
            if embeddings is not None:
                yield embeddings


@dataclass
class _OpenFile:
    """A file between its first window and its end."""

    channels: dict[int, _Channel] = field(default_factory=dict)
    waiting: int = 0  # windows not yet encoded
    end: FileEnd | None = None
    error: str | None = None


class _Encoder:
    """Has windows encoded, and hands each file its own; a file whose embeddings are not finite has failed."""

    def __init__(self, embedder: Embedder, batch_s: float, collector: Callable[[], Collector]):
        batch_columns = batch_s * 1000 / embedder.grid.column_ms
        self._batcher: WindowBatcher[tuple[Sound, int, int]] = WindowBatcher(embedder, batch_columns)
        self._collector = collector
        self._files: dict[Sound, _OpenFile] = defaultdict(_OpenFile)

    @torch.no_grad()
    def add(self, event: Windows | FileEnd) -> Iterator[Piece | FileEnd]:
        file = self._files[event.sound]
        if isinstance(event, FileEnd):
            file.end = event
            yield from self._close_if_done(event.sound)
            return
        if event.channel not in file.channels:
            file.channels[event.channel] = _Channel(self._collector())
        channel = file.channels[event.channel]
        file.waiting += len(event.windows)
        for window, spectrogram in event.windows:
            key = event.sound, event.channel, channel.n_windows
            channel.n_windows += 1
            yield from self._collect(self._batcher.add(key, window, spectrogram))

    @torch.no_grad()
    def flush(self) -> Iterator[Piece | FileEnd]:
        """Encode what is left."""
        yield from self._collect(self._batcher.flush())

    def _collect(self, encoded: Iterator[tuple[tuple[Sound, int, int], Window, Tensor]]) -> Iterator[Piece | FileEnd]:
        for (sound, channel, number), window, columns in encoded:
            file = self._files[sound]
            file.waiting -= 1
            if not torch.isfinite(columns).all():
                file.error = "its embeddings are not finite: samples too large for float32, give audio in [-1, 1]"
            for embeddings in file.channels[channel].collect(number, window, columns.cpu()):
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
            for number, channel in file.channels.items():
                embeddings = channel.collector.end(file.end.n_samples)
                if embeddings is not None:
                    yield Piece(sound, number, embeddings)
        yield file.end
