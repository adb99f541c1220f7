"""Claims about the plan of columns and windows, integer arithmetic on durations:

* timestamps are exact centres at every hop: evenly spaced, the first within a hop of the start, the last within a hop
  of the end and never past it, from 10 ms to 60 s; without drift over an hour;
* every timestamp is given exactly once, by the column whose centre it is;
* windows never exceed the trained duration, start on a fixed grid, and only the last of a row reaches backwards;
* no column is encoded whose middle is past the end, or before the start, of the recording.
"""

import pytest
import torch

from hear_jepa.model.grid import CENTRE_MS, FRAME_MS, HOPS_MS, first_centre_ms, n_timestamps, plan, timestamps_ms

COLUMNS = 13
SAMPLES = sorted(
    {16 * ms + extra for ms in (10, 11, 25, 74, 75, 76, 159, 160, 1000, 1070, 2079, 2080, 2081, 4000, 60000)
     for extra in (-1, 0, 1)} - {159}
)  # fmt: skip


def covered(n_samples: int, hop_ms: int) -> list[tuple[int, int]]:
    """(index of timestamp, centre of the column that gives it) of all windows."""
    pairs = []
    for window in plan(n_samples, hop_ms, COLUMNS):
        indices = range(n_timestamps(n_samples, hop_ms))[window.timestamps]
        assert len(indices) == window.n_columns - window.first_new
        for number, index in enumerate(indices, start=window.first_new):
            pairs.append((index, FRAME_MS * (window.start_frame + 16 * number) + CENTRE_MS))
    return sorted(pairs)


@pytest.mark.parametrize("hop_ms", HOPS_MS)
@pytest.mark.parametrize("n_samples", SAMPLES)
def test_timestamps_are_centres_from_start_to_end(n_samples, hop_ms):
    centres, duration = timestamps_ms(n_samples, hop_ms).double(), n_samples / 16
    assert 0 <= centres[0] <= hop_ms
    assert duration - hop_ms <= centres[-1] <= duration
    assert torch.equal(centres, centres[0] + hop_ms * torch.arange(len(centres)))
    assert centres[0] == first_centre_ms(n_samples, hop_ms)


@pytest.mark.parametrize("hop_ms", HOPS_MS)
def test_no_drift_over_an_hour(hop_ms):
    hour = 3600 * 16000
    centres = timestamps_ms(hour, hop_ms)
    expected = range(first_centre_ms(hour, hop_ms), 3_600_001, hop_ms)
    assert centres.dtype == torch.float32
    assert [int(centre) for centre in centres.tolist()] == list(expected) and (centres % 1 == 0).all()


@pytest.mark.parametrize("hop_ms", HOPS_MS)
@pytest.mark.parametrize("n_samples", [*SAMPLES, 3600 * 16000])
def test_each_timestamp_is_given_once_by_the_column_centred_on_it(n_samples, hop_ms):
    pairs = covered(n_samples, hop_ms)
    assert [index for index, _ in pairs] == list(range(n_timestamps(n_samples, hop_ms)))
    assert [float(centre) for _, centre in pairs] == timestamps_ms(n_samples, hop_ms).tolist()


def test_the_centre_of_a_column_is_the_mean_of_its_frames():
    assert sum(FRAME_MS * frame for frame in range(16)) / 16 == CENTRE_MS


@pytest.mark.parametrize("n_samples", [1, 16, 79])
def test_less_than_5_ms_has_one_timestamp_in_its_middle(n_samples):
    for hop_ms in HOPS_MS:
        assert timestamps_ms(n_samples, hop_ms).tolist() == [n_samples / 32]
        assert [window.n_columns for window in plan(n_samples, hop_ms, COLUMNS)] == [1]


@pytest.mark.parametrize("hop_ms", HOPS_MS)
@pytest.mark.parametrize("n_samples", SAMPLES)
def test_windows_are_fixed_from_the_start_and_the_last_has_full_context(n_samples, hop_ms):
    rows = {}
    for window in plan(n_samples, hop_ms, COLUMNS):
        rows.setdefault((window.start_frame + 16 * window.first_new) % 16, []).append(window)
    assert len(rows) == min(160 // hop_ms, n_timestamps(n_samples, hop_ms))
    for windows in rows.values():
        origin = windows[0].start_frame
        for number, window in enumerate(windows):
            assert window.start_frame + 16 * window.first_new == origin + 16 * COLUMNS * number
            assert window.n_columns == COLUMNS or len(windows) == 1
            assert window.first_new == 0 or window is windows[-1]


@pytest.mark.parametrize("hop_ms", HOPS_MS)
@pytest.mark.parametrize("n_samples", SAMPLES)
def test_no_column_is_mostly_padding(n_samples, hop_ms):
    for window in plan(n_samples, hop_ms, COLUMNS):
        first = FRAME_MS * window.start_frame + CENTRE_MS
        last = FRAME_MS * (window.start_frame + window.n_frames - 16) + CENTRE_MS
        assert first > 0 and 16 * last <= n_samples


def test_a_longer_recording_keeps_the_windows_of_a_shorter_one():
    short, long = (plan(16 * ms, 40, COLUMNS) for ms in (7000, 9000))
    assert all(window in long for window in short if window.first_new == 0)
