"""A recording that comes in pieces -> the windows, and the timestamps, that the whole would give, as soon as they can.

Memory is that of two windows, however long the recording: the spectrogram is kept only as far back as the last
window, which reaches backwards, may need it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from hear_jepa.api import check_audio
from hear_jepa.errors import AudioError
from hear_jepa.files.audio import SAMPLE_RATE, resample_blocks
from hear_jepa.model.embedder import Embedder
from hear_jepa.model.grid import (
    CENTRE_MS,
    COLUMN_MS,
    FRAME_MS,
    PATCH,
    SAMPLES_PER_MS,
    Window,
    first_centre_ms,
    plan,
    timestamps_ms,
)

FRAMES_AT_ONCE = 3000  # of log-mel: bounds the memory of one long piece
SETTLED = (CENTRE_MS + COLUMN_MS) * SAMPLES_PER_MS  # samples after which the first timestamp no longer changes


class WindowStream:
    """Cuts one recording into windows while it is being heard.

    The windows of `feed` and `finish` together are those of `windows.plan` for the whole recording, in order of time.
    Each comes with its log-mel [mels, frames], on the device of `embedder`.
    """

    def __init__(self, embedder: Embedder, hop_ms: int):
        self.n_samples = 0
        self._embedder = embedder
        self._hop_ms = hop_ms
        self._rows = COLUMN_MS // hop_ms
        self._first_frame = (first_centre_ms(SETTLED, hop_ms) - CENTRE_MS) // FRAME_MS
        self._audio: list[Tensor] = []  # from sample `hop_length · self._audio_frame` on
        self._audio_frame = 0
        self._spectrogram: Tensor | None = None  # frames `self._kept_frame … self._next_frame - 1`
        self._kept_frame = self._next_frame = self._first_frame
        self._given = 0  # windows so far, counted over rows first, then over time

    @torch.no_grad()
    def feed(self, audio: Tensor) -> list[tuple[Window, Tensor]]:
        """Hear more of it, [samples] at the model's rate; returns the full windows that this completes."""
        self._audio.append(audio)
        self.n_samples += len(audio)
        settings = self._embedder.log_mel.config
        complete = (self.n_samples - settings.n_fft // 2) // settings.hop_length + 1  # frames that are wholly heard
        windows = []
        while self.n_samples >= SETTLED and self._start(self._given) + self._full_frames <= complete:
            row, number = self._given % self._rows, self._given // self._rows
            first_timestamp = row + number * self._embedder.max_columns * self._rows
            window = Window(self._start(self._given), self._embedder.max_columns, 0, first_timestamp, self._rows)
            self._given += 1
            # Computed up to the last window in reach of this piece, for a few long passes in place of many short ones.
            self._compute(min(complete, window.start_frame + max(window.n_frames, FRAMES_AT_ONCE)))
            windows.append((window, self._frames(window)))
            self._forget(self._start(max(self._given - 2 * self._rows, 0)))
        return windows

    @torch.no_grad()
    def finish(self) -> list[tuple[Window, Tensor]]:
        """The recording has ended: returns the windows that its end leaves, none if there was no sound."""
        if self.n_samples == 0:
            return []
        rest = [
            w for w in plan(self.n_samples, self._hop_ms, self._embedder.max_columns) if self._number(w) >= self._given
        ]
        rest.sort(key=self._number)
        if not rest:
            return []
        if self._spectrogram is None:  # nothing computed yet: a recording shorter than a window starts where it likes
            self._kept_frame = self._next_frame = min(window.start_frame for window in rest)
        self._compute(max(window.start_frame + window.n_frames for window in rest))
        return [(window, self._frames(window)) for window in rest]

    @property
    def _full_frames(self) -> int:
        return self._embedder.max_columns * PATCH

    def _start(self, number: int) -> int:
        """First frame of the full window with this number."""
        row, number = number % self._rows, number // self._rows
        return self._first_frame + row * self._hop_ms // FRAME_MS + number * self._full_frames

    def _number(self, window: Window) -> int:
        row, column = window.first_timestamp % self._rows, window.first_timestamp // self._rows
        return column // self._embedder.max_columns * self._rows + row

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
        start = window.start_frame - self._kept_frame
        return self._spectrogram[:, start : start + window.n_frames]

    def _forget(self, before: int) -> None:
        """Let go of the frames that no later window can reach."""
        if before - self._kept_frame >= FRAMES_AT_ONCE // 2:
            self._spectrogram = self._spectrogram[:, before - self._kept_frame :].clone()
            self._kept_frame = before


class TimestampOrder:
    """Puts the columns of one recording's windows, which come row by row, into the order of time."""

    def __init__(self):
        self._waiting: dict[int, Tensor] = {}
        self.given = 0  # timestamps so far

    def add(self, window: Window, columns: Tensor) -> Tensor | None:
        """Take a window's new columns [n, size]; return the timestamps [m, size] that now follow the earlier ones."""
        timestamps = window.timestamps
        self._waiting.update(zip(range(timestamps.start, timestamps.stop, timestamps.step), columns, strict=True))
        ready = []
        while (embedding := self._waiting.pop(self.given, None)) is not None:
            ready.append(embedding)
            self.given += 1
        return torch.stack(ready) if ready else None


def embed_stream(
    embedder: Embedder, blocks: Iterable[Tensor], sample_rate: int = SAMPLE_RATE
) -> Iterator[tuple[Tensor, Tensor]]:
    """Timestamp embeddings of a mono recording given as consecutive blocks [samples] of any lengths.

    Yields (embeddings [n, size], centres [n] in ms), each as soon as the window that gives it is full: at most the
    trained duration (2.08 s) after the sound. Joined, they are what `get_timestamp_embeddings` gives for the whole
    (resampled by `hear_jepa.files.audio.resample`, where the rate is another). Raises `AudioError`.
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
    for window, columns in encode_together(embedder, windows):
        start = order.given
        embeddings = order.add(window, columns)
        if embeddings is not None:
            yield embeddings, centres_ms(n_samples, embedder.hop_ms, start, len(embeddings))


def centres_ms(n_samples: int | None, hop_ms: int, start: int, count: int) -> Tensor:
    """Centres [count] in ms, float64, of timestamps `start …` of a recording; None: one that has not ended yet."""
    if n_samples is not None and n_samples < SETTLED:
        return timestamps_ms(n_samples, hop_ms)[start : start + count].double()
    return (first_centre_ms(SETTLED, hop_ms) + hop_ms * torch.arange(start, start + count)).double()


def encode_together(embedder: Embedder, windows: list[tuple[Window, Tensor]]) -> Iterator[tuple[Window, Tensor]]:
    """Encode windows and their spectrograms, those of one length together; yields each with its new columns."""
    alike = defaultdict(list)
    for window, spectrogram in windows:
        alike[window.n_columns].append((window, spectrogram))
    for group in alike.values():
        for start in range(0, len(group), embedder.batch_windows):
            batch = group[start : start + embedder.batch_windows]
            columns = embedder.encode_windows(torch.stack([spectrogram for _, spectrogram in batch]))
            for (window, _), embedded in zip(batch, columns, strict=True):
                yield window, embedded[window.first_new :]
