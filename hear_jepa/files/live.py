"""A recording that comes in pieces -> the windows, and the timestamps, that the whole would give, as soon as they can.

Memory is that of two windows, however long the recording: the spectrogram is kept only as far back as the last
window, which reaches backwards, may need it.
"""

import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hear_jepa.checks import check_audio
from hear_jepa.errors import AudioError
from hear_jepa.files.resample import SAMPLE_RATE, resample_blocks
from hear_jepa.model.embedder import Embedder, WindowBatcher, check_finite
from hear_jepa.model.grid import Window

FRAMES_AT_ONCE = 3000  # of log-mel: bounds the memory of one long piece


class WindowStream:
    """Cuts one recording into windows while it is being heard.

    The windows of `feed` and `finish` together are those of `Grid.plan` for the whole recording, in order of time.
    Each comes with its log-mel [mels, frames], on the device of `embedder`.
    """

    def __init__(self, embedder: Embedder, hop_ms: int):
        self.n_samples = 0
        self._embedder = embedder
        self._grid = embedder.grid
        self._hop_ms = hop_ms
        self._first_frame = self._grid.first_frame(self._grid.settled_samples, hop_ms)
        self._audio: list[Tensor] = []  # from sample `hop_length · self._audio_frame` on
        self._audio_frame = 0
        self._spectrogram: Tensor | None = None  # frames `self._kept_frame … self._next_frame - 1`
        self._kept_frame = self._next_frame = self._first_frame
        self._n_windows = 0  # full windows so far

    @torch.no_grad()
    def feed(self, audio: Tensor) -> list[tuple[Window, Tensor]]:
        """Hear more of it, [samples] at the model's rate; returns the full windows that this completes."""
        self._audio.append(audio)
        self.n_samples += len(audio)
        settings = self._embedder.log_mel.config
        complete = (self.n_samples - settings.n_fft // 2) // settings.hop_length + 1  # frames that are wholly heard
        windows = []
        while self.n_samples >= self._grid.settled_samples:
            window = self._full_window(self._n_windows)
            if window.start_frame + window.n_frames > complete:
                break
            self._n_windows += 1
            # Computed up to the last window in reach of this piece, for a few long passes in place of many short ones.
            self._compute(min(complete, window.start_frame + max(window.n_frames, FRAMES_AT_ONCE)))
            windows.append((window, self._frames(window)))
            behind = 2 * self._grid.phases(self._hop_ms)  # the last window of every phase reaches backwards
            self._forget(self._full_window(max(self._n_windows - behind, 0)).start_frame)
        return windows

    @torch.no_grad()
    def finish(self) -> list[tuple[Window, Tensor]]:
        """The recording has ended: returns the windows that its end leaves, none if there was no sound."""
        if self.n_samples == 0:
            return []
        planned = self._grid.plan(self.n_samples, self._hop_ms)
        rest = [window for window in planned if self._number(window) >= self._n_windows]
        rest.sort(key=self._number)
        if not rest:
            return []
        if self._spectrogram is None:  # nothing computed yet: a recording shorter than a window starts where it likes
            self._kept_frame = self._next_frame = min(window.start_frame for window in rest)
        self._compute(max(window.start_frame + window.n_frames for window in rest))
        return [(window, self._frames(window)) for window in rest]

    def _full_window(self, number: int) -> Window:
        return self._grid.full_window(self._first_frame, self._hop_ms, number)

    def _number(self, window: Window) -> int:
        """The number of the full window that would begin with the window's new columns."""
        column, phase = divmod(window.first_timestamp, window.stride)
        return column // self._grid.columns * window.stride + phase

    def _compute(self, stop: int) -> None:
        """Compute the frames before `stop` that are not there yet, silence after the end of what was heard."""
        if stop <= self._next_frame:
            return
        audio = self._audio[0] if len(self._audio) == 1 else torch.cat(self._audio)
        settings = self._embedder.log_mel.config
        new = self._embedder.spectrogram(audio, self._next_frame - self._audio_frame, stop - self._next_frame)
        self._spectrogram = new if self._spectrogram is None else torch.cat([self._spectrogram, new], dim=1)
        self._next_frame = stop
        first_needed = max(stop - (settings.n_fft // 2 // settings.hop_length + 1), self._audio_frame)
        audio = audio[(first_needed - self._audio_frame) * settings.hop_length :].clone()
        self._audio, self._audio_frame = [audio], first_needed

    def _frames(self, window: Window) -> Tensor:
        assert self._spectrogram is not None, "computed before"
        start = window.start_frame - self._kept_frame
        return self._spectrogram[:, start : start + window.n_frames]

    def _forget(self, before: int) -> None:
        """Let go of the frames that no later window can reach."""
        if self._spectrogram is not None and before - self._kept_frame >= FRAMES_AT_ONCE // 2:
            self._spectrogram = self._spectrogram[:, before - self._kept_frame :].clone()
            self._kept_frame = before


class TimestampOrder:
    """Puts the columns of one recording's windows, which come row by row, into the order of time."""

    def __init__(self):
        self._waiting: dict[int, Tensor] = {}
        self.count = 0  # timestamps so far

    def add(self, window: Window, columns: Tensor) -> Tensor | None:
        """Take a window's new columns [n, size]; return the timestamps [m, size] that now follow the earlier ones."""
        timestamps = window.timestamps
        self._waiting.update(zip(range(timestamps.start, timestamps.stop, timestamps.step), columns, strict=True))
        ready = []
        while (embedding := self._waiting.pop(self.count, None)) is not None:
            ready.append(embedding)
            self.count += 1
        return torch.stack(ready) if ready else None


def embed_stream(
    embedder: Embedder, blocks: Iterable[Tensor], sample_rate: int = SAMPLE_RATE
) -> Iterator[tuple[Tensor, Tensor]]:
    """Timestamp embeddings of a mono recording given as consecutive blocks [samples] of any lengths.

    Yields (embeddings [n, size], centres [n] in ms), each as soon as the window that gives it is full: at most its
    duration (`tiny`: 4.16 s) after the sound. Joined, they are what `get_timestamp_embeddings` gives for the whole
    (resampled by `hear_jepa.files.resample.resample`, where the rate is another). Raises `AudioError`.
    """
    stream, order = WindowStream(embedder, embedder.hop_ms), TimestampOrder()
    checked = (_check_block(block)[None] for block in blocks)
    for resampled in resample_blocks(checked, sample_rate, embedder.sample_rate):
        for piece in resampled[0].split(FRAMES_AT_ONCE * embedder.log_mel.config.hop_length):
            yield from _ordered(embedder, stream.feed(piece), order, None)
    yield from _ordered(embedder, stream.finish(), order, stream.n_samples)


def _check_block(block: Tensor) -> Tensor:
    if block.dim() != 1:
        raise AudioError(f"a block has shape {tuple(block.shape)}: give [samples], one channel")
    return check_audio(block[None])[0].cpu() if block.numel() else block.cpu()


def _ordered(
    embedder: Embedder, windows: list[tuple[Window, Tensor]], order: TimestampOrder, n_samples: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The timestamps of a few windows, as far as they follow those given before, and their centres."""
    batcher: WindowBatcher[None] = WindowBatcher(embedder)
    encoded = itertools.chain(*(batcher.add(None, *window) for window in windows), batcher.flush())
    for _, window, columns in encoded:
        start = order.count
        embeddings = order.add(window, columns)
        if embeddings is not None:
            centres = embedder.grid.centres_ms(n_samples, embedder.hop_ms, start, len(embeddings))
            yield check_finite(embeddings), centres
