"""Which columns of a spectrogram are embedded, and in which windows: integer arithmetic only.

A column is as wide as a patch. With patches of 16 frames and a hop of 10 ms it is 160 ms of sound: frame `i` is centred
on `10 · i` ms, so the column that starts at frame `f` is centred on `10 · f + 75` ms. Timestamps closer than a column
come from several *phases* of columns, each shifted by a hop:

    hop 40 ms    phase 0   |--- -4 ---|---- 12 ---|---- 28 ---| …      the frames at which columns start
                 phase 1     |--- 0 ----|--- 16 ----|--- 32 ----| …
                 phase 2       |--- 4 ----|--- 20 ----| …
                 phase 3         |--- 8 ----|--- 24 ----| …

A phase is cut into windows of the trained duration (13 columns) at columns 0, 13, 26, …. The last window of a longer
phase reaches backwards, so that its context is as long as that of the others, and gives only its new columns.

Centres may lie between two frames, so positions are counted in half frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hear_jepa.errors import OptionError


@dataclass(frozen=True)
class Window:
    """Neighbouring columns of one phase that are encoded together."""

    start_frame: int  # of its first column; negative: before the recording
    n_columns: int
    n_frames: int  # that it covers
    first_new: int  # the columns before this one are context: another window gives them
    first_timestamp: int  # index of the timestamp of column `first_new`
    stride: int  # from the timestamp of a column to that of the next one

    @property
    def timestamps(self) -> slice:
        """The timestamps that its new columns give."""
        count = self.n_columns - self.first_new
        return slice(self.first_timestamp, self.first_timestamp + (count - 1) * self.stride + 1, self.stride)


@dataclass(frozen=True)
class Grid:
    """How sound is cut: rate and hop make frames, patches make rows and columns, columns make windows.

    Raises `OptionError`, with the field's name, for numbers that contradict each other or cannot be served exactly.
    """

    sample_rate: int = 16000  # Hz
    hop_length: int = 160  # samples from frame to frame
    n_mels: int = 80  # bands
    patch_mels: int = 16  # bands of a patch
    patch_frames: int = 16  # frames of a patch, and of a column
    columns: int = 13  # of a window: the trained duration

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise OptionError(f"{field.name} is {value!r}: it must be a whole number of at least 1")
        if self.n_mels % self.patch_mels:
            raise OptionError(f"n_mels is {self.n_mels}: it must be a multiple of patch_mels, {self.patch_mels}")
        if 1000 * self.hop_length % self.sample_rate:
            raise OptionError(
                f"hop_length is {self.hop_length}: at a sample_rate of {self.sample_rate} Hz a frame is not a whole "
                "number of milliseconds, and timestamps would drift"
            )

    # ---------------------------------------------------------------- sizes

    @property
    def frame_ms(self) -> int:
        return 1000 * self.hop_length // self.sample_rate

    @property
    def column_ms(self) -> int:
        return self.patch_frames * self.frame_ms

    @property
    def rows(self) -> int:
        return self.n_mels // self.patch_mels

    @property
    def patch_size(self) -> int:
        return self.patch_mels * self.patch_frames

    @property
    def window_frames(self) -> int:
        return self.columns * self.patch_frames

    @property
    def hops_ms(self) -> tuple[int, ...]:
        """Distances of timestamps that can be served: whole frames, of which a column is a whole number."""
        return tuple(d * self.frame_ms for d in range(1, self.patch_frames + 1) if self.patch_frames % d == 0)

    def check_hop(self, hop_ms: int, name: str = "hop_ms") -> int:
        """Raise `OptionError` unless columns can be `hop_ms` apart."""
        if isinstance(hop_ms, bool) or hop_ms not in self.hops_ms:
            raise OptionError(f"{name} must be one of {', '.join(map(str, self.hops_ms))}, not {hop_ms!r}")
        return int(hop_ms)

    # ---------------------------------------------------------------- timestamps

    def first_centre(self, n_samples: int, hop_ms: int) -> int:
        """Centre of the first column in half frames: the latest that a column starting at or before frame 0 can have,
        that is at most a hop, and inside the recording."""
        at_zero = self.patch_frames - 1  # of the column that starts at frame 0
        latest = min(2 * hop_ms // self.frame_ms, self._half_frames(n_samples), at_zero)
        earliest = at_zero % 2
        return max(latest - (latest - earliest) % 2, earliest)

    def n_timestamps(self, n_samples: int, hop_ms: int) -> int:
        """Columns whose centres lie inside the recording; at least one."""
        after_first = self._half_frames(n_samples) - self.first_centre(n_samples, hop_ms)
        return max(after_first * self.frame_ms // (2 * hop_ms), 0) + 1

    def timestamps_ms(self, n_samples: int, hop_ms: int) -> Tensor:
        """Centres of the columns [n_timestamps], float32, milliseconds; exact up to 4 hours.

        A recording too short to hold any column's centre has one timestamp, in its middle.
        """
        return self.centres_ms(n_samples, hop_ms, 0, self.n_timestamps(n_samples, hop_ms)).float()

    def centres_ms(self, n_samples: int | None, hop_ms: int, start: int, count: int) -> Tensor:
        """Centres [count] in ms, float64, of timestamps `start …` of a recording; None: one that has not ended yet."""
        n_samples = self.settled_samples if n_samples is None else n_samples
        first = self.first_centre(n_samples, hop_ms)
        if first > self._half_frames(n_samples):
            return torch.tensor([n_samples * 500 / self.sample_rate], dtype=torch.float64)[start : start + count]
        return first * self.frame_ms / 2 + hop_ms * torch.arange(start, start + count, dtype=torch.float64)

    @property
    def settled_samples(self) -> int:
        """Samples after which the first timestamp no longer changes."""
        return 2 * self.patch_frames * self.hop_length

    def first_frame(self, n_samples: int, hop_ms: int) -> int:
        """Frame at which the first column starts, zero or negative."""
        return (self.first_centre(n_samples, hop_ms) - (self.patch_frames - 1)) // 2

    def _half_frames(self, n_samples: int) -> int:
        return 2 * n_samples // self.hop_length

    # ---------------------------------------------------------------- windows

    def phases(self, hop_ms: int) -> int:
        return self.column_ms // hop_ms

    def full_window(self, first_frame: int, hop_ms: int, number: int) -> Window:
        """Full window `number` of a recording that goes on: counted over phases first, then over time."""
        phases, frames = self.phases(hop_ms), hop_ms // self.frame_ms
        phase, number = number % phases, number // phases
        start = first_frame + phase * frames + number * self.window_frames
        return Window(start, self.columns, self.window_frames, 0, phase + number * self.columns * phases, phases)

    def plan(self, n_samples: int, hop_ms: int) -> list[Window]:
        """The windows that give every timestamp of a recording exactly once, phase by phase."""
        first_frame, count = self.first_frame(n_samples, hop_ms), self.n_timestamps(n_samples, hop_ms)
        phases = self.phases(hop_ms)
        return [
            Window(
                start_frame=first_frame + phase * hop_ms // self.frame_ms + start * self.patch_frames,
                n_columns=stop - start,
                n_frames=(stop - start) * self.patch_frames,
                first_new=new - start,
                first_timestamp=phase + new * phases,
                stride=phases,
            )
            for phase in range(min(phases, count))
            for start, stop, new in self._cut(-(-(count - phase) // phases))
        ]

    def _cut(self, n_columns: int) -> Iterator[tuple[int, int, int]]:
        """(first column, column after the last, first new column) of each window of a phase."""
        for new in range(0, n_columns, self.columns):
            stop = min(new + self.columns, n_columns)
            yield max(stop - self.columns, 0), stop, new
