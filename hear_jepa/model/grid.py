"""Which columns of a spectrogram are embedded, and in which windows: integer arithmetic only.

A column is 16 frames wide (160 ms). Frame `i` is centred on `10 · i` ms, so the column that starts at frame `f` is
centred on `10 · f + 75` ms. Timestamps closer than 160 ms come from several *rows* of columns, each shifted by a hop:

    hop 40 ms    row 0   |--- -4 ---|---- 12 ---|---- 28 ---| …      the frames at which columns start
                 row 1     |--- 0 ----|--- 16 ----|--- 32 ----| …
                 row 2       |--- 4 ----|--- 20 ----| …
                 row 3         |--- 8 ----|--- 24 ----| …

A row is cut into windows of the trained duration (13 columns) at columns 0, 13, 26, …. The last window of a longer row
reaches backwards, so that its context is as long as that of the others, and gives only its new columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

PATCH = 16

SAMPLES_PER_MS = 16
FRAME_MS = 10
COLUMN_MS = PATCH * FRAME_MS
CENTRE_MS = COLUMN_MS // 2 - FRAME_MS // 2  # of a column that starts at frame 0: half-way between frames 7 and 8
EARLIEST_CENTRE_MS = CENTRE_MS % FRAME_MS  # of any column whose centre is inside the recording
HOPS_MS = (10, 20, 40, 80, 160)  # whole frames, and whole rows in a column


@dataclass(frozen=True)
class Window:
    """Neighbouring columns of one row that are encoded together."""

    start_frame: int  # of its first column; negative: before the recording
    n_columns: int
    first_new: int  # the columns before this one are context: another window gives them
    first_timestamp: int  # index of the timestamp of column `first_new`
    stride: int  # from the timestamp of a column to that of the next one

    @property
    def n_frames(self) -> int:
        """Frames of the spectrogram that it covers."""
        return self.n_columns * PATCH

    @property
    def timestamps(self) -> slice:
        """The timestamps that its new columns give."""
        count = self.n_columns - self.first_new
        return slice(self.first_timestamp, self.first_timestamp + (count - 1) * self.stride + 1, self.stride)


def first_centre_ms(n_samples: int, hop_ms: int) -> int:
    """Centre of the first column: the latest of 75, 65, … 5 ms that is at most a hop, and inside the recording."""
    latest = min(hop_ms, n_samples // SAMPLES_PER_MS, CENTRE_MS)
    return max(latest - (latest - EARLIEST_CENTRE_MS) % FRAME_MS, EARLIEST_CENTRE_MS)


def n_timestamps(n_samples: int, hop_ms: int) -> int:
    """Columns whose centres lie inside the recording; at least one."""
    after_first_ms = n_samples // SAMPLES_PER_MS - first_centre_ms(n_samples, hop_ms)
    return max(after_first_ms // hop_ms, 0) + 1


def timestamps_ms(n_samples: int, hop_ms: int) -> Tensor:
    """Centres of the columns [n_timestamps], float32, milliseconds; exact up to 4 hours.

    A recording shorter than 5 ms, which holds no column's centre, has one timestamp, in its middle.
    """
    first = first_centre_ms(n_samples, hop_ms)
    if first * SAMPLES_PER_MS > n_samples:
        return torch.tensor([n_samples / SAMPLES_PER_MS / 2])
    return (first + hop_ms * torch.arange(n_timestamps(n_samples, hop_ms))).float()


def plan(n_samples: int, hop_ms: int, max_columns: int) -> list[Window]:
    """The windows that give every timestamp of a recording exactly once, row by row."""
    first_frame = (first_centre_ms(n_samples, hop_ms) - CENTRE_MS) // FRAME_MS
    count = n_timestamps(n_samples, hop_ms)
    rows = COLUMN_MS // hop_ms
    return [
        Window(
            start_frame=first_frame + row * hop_ms // FRAME_MS + start * PATCH,
            n_columns=stop - start,
            first_new=new - start,
            first_timestamp=row + new * rows,
            stride=rows,
        )
        for row in range(min(rows, count))
        for start, stop, new in _cut(-(-(count - row) // rows), max_columns)
    ]


def _cut(n_columns: int, max_columns: int) -> Iterator[tuple[int, int, int]]:
    """(first column, column after the last, first new column) of each window of a row."""
    for new in range(0, n_columns, max_columns):
        stop = min(new + max_columns, n_columns)
        yield max(stop - max_columns, 0), stop, new
