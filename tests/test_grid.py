"""Claims about how sound is cut, integer arithmetic on durations, for every grid below:

* timestamps are exact centres at every hop: evenly spaced, the first within a hop of the start, the last within a hop
  of the end and never past it, from one sample to 60 s; without drift over an hour;
* every timestamp is given exactly once, by the column whose centre it is;
* windows never exceed the trained duration, start at fixed places, and only the last of a phase reaches backwards;
* no column is encoded whose middle is past the end, or before the start, of the recording;
* numbers that contradict each other, or cannot be served exactly, are refused by name.
"""

import pytest
import torch

from hear_jepa.errors import OptionError
from hear_jepa.model.grid import Grid

GRIDS = [
    Grid(),
    Grid(patch_frames=4, columns=52),
    Grid(patch_mels=80, patch_frames=2, columns=104),
    Grid(patch_mels=8),
    Grid(n_mels=128, patch_frames=5, columns=40),
    Grid(sample_rate=32000, hop_length=320),
    Grid(sample_rate=48000, hop_length=144, patch_frames=1, columns=7),  # frames of 3 ms, an odd number
]
CASES = [(grid, hop_ms) for grid in GRIDS for hop_ms in grid.hops_ms]
DURATIONS_MS = (0, 1, 2, 3, 5, 10, 11, 25, 74, 75, 76, 159, 160, 1000, 1070, 2079, 2080, 2081, 4000, 60000)


def lengths(grid: Grid) -> list[int]:
    """Samples: durations, and one more or less."""
    return sorted({grid.sample_rate * ms // 1000 + extra for ms in DURATIONS_MS for extra in (-1, 0, 1)} - {-1, 0})


def centre_ms(grid: Grid, start_frame: int) -> float:
    """Mean of the times of a column's frames: what a timestamp is by definition."""
    frames = range(start_frame, start_frame + grid.patch_frames)
    return sum(frame * grid.hop_length * 1000 / grid.sample_rate for frame in frames) / grid.patch_frames


def test_hops_are_whole_frames_of_which_a_column_is_a_whole_number():
    assert Grid().hops_ms == (10, 20, 40, 80, 160)
    assert Grid(patch_frames=2).hops_ms == (10, 20)
    with pytest.raises(OptionError, match="hop_ms must be one of 10, 20, 40, 80, 160, not 30"):
        Grid().check_hop(30)


@pytest.mark.parametrize(("grid", "hop_ms"), CASES)
def test_timestamps_are_centres_from_start_to_end(grid, hop_ms):
    for n_samples in lengths(grid):
        duration = 1000 * n_samples / grid.sample_rate
        centres = grid.timestamps_ms(n_samples, hop_ms).double()
        assert 0 <= centres[0] <= hop_ms, n_samples
        assert duration - hop_ms <= centres[-1] <= duration, n_samples
        if len(centres) > 1 or centres[0] != duration / 2:
            expected = centre_ms(grid, grid.first_frame(n_samples, hop_ms)) + hop_ms * torch.arange(len(centres))
            torch.testing.assert_close(centres, expected.double(), rtol=0, atol=1e-6, msg=str(n_samples))
        joined = [grid.centres_ms(n_samples, hop_ms, n, 1) for n in range(min(len(centres), 50))]
        assert torch.cat(joined).equal(centres[:50]), n_samples


@pytest.mark.parametrize(("grid", "hop_ms"), CASES)
def test_no_drift_over_an_hour(grid, hop_ms):
    centres = grid.timestamps_ms(3600 * grid.sample_rate, hop_ms)
    assert centres.dtype == torch.float32
    assert 3_600_000 - hop_ms <= centres[-1] <= 3_600_000
    assert (centres.double().diff() == hop_ms).all()


@pytest.mark.parametrize(("grid", "hop_ms"), CASES)
def test_each_timestamp_is_given_once_by_the_column_centred_on_it(grid, hop_ms):
    for n_samples in lengths(grid):
        centres = grid.timestamps_ms(n_samples, hop_ms).tolist()
        if centres == [500 * n_samples / grid.sample_rate]:
            continue  # too short for a column's centre: the next test
        given = {}
        for window in grid.plan(n_samples, hop_ms):
            indices = range(len(centres))[window.timestamps]
            assert len(indices) == window.n_columns - window.first_new
            for number, index in enumerate(indices, start=window.first_new):
                assert index not in given
                given[index] = centre_ms(grid, window.start_frame + grid.patch_frames * number)
        assert [given[index] for index in range(len(centres))] == pytest.approx(centres), n_samples
        assert all(0 <= centre <= 1000 * n_samples / grid.sample_rate for centre in given.values())


def test_less_than_half_a_frame_has_one_timestamp_in_its_middle():
    for n_samples in (1, 16, 79):
        for hop_ms in Grid().hops_ms:
            assert Grid().timestamps_ms(n_samples, hop_ms).tolist() == [n_samples / 32]
            assert Grid().centres_ms(n_samples, hop_ms, 0, 1).tolist() == [n_samples / 32]
            assert [window.n_columns for window in Grid().plan(n_samples, hop_ms)] == [1]


@pytest.mark.parametrize(("grid", "hop_ms"), CASES)
def test_windows_are_fixed_from_the_start_and_the_last_has_full_context(grid, hop_ms):
    for n_samples in lengths(grid):
        phases = {}
        for window in grid.plan(n_samples, hop_ms):
            phases.setdefault(window.first_timestamp % window.stride, []).append(window)
            assert window.n_frames == window.n_columns * grid.patch_frames <= grid.window_frames
        assert len(phases) == min(grid.phases(hop_ms), grid.n_timestamps(n_samples, hop_ms))
        for windows in phases.values():
            origin = windows[0].start_frame
            for number, window in enumerate(windows):
                first_new = window.start_frame + grid.patch_frames * window.first_new
                assert first_new == origin + grid.window_frames * number
                assert window.n_columns == grid.columns or len(windows) == 1
                assert window.first_new == 0 or window is windows[-1]


def test_a_longer_recording_keeps_the_windows_of_a_shorter_one():
    short, long = (Grid().plan(16 * ms, 40) for ms in (7000, 9000))
    assert all(window in long for window in short if window.first_new == 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hop_length": 250}, "hop_length is 250"),
        ({"sample_rate": 22050}, "sample_rate of 22050"),
        ({"n_mels": 81}, "n_mels is 81"),
        ({"patch_frames": 0}, "patch_frames is 0"),
        ({"columns": 1.5}, "columns is 1.5"),
        ({"sample_rate": -1}, "sample_rate is -1"),
    ],
)
def test_a_grid_that_cannot_be_served_is_refused(change, message):
    with pytest.raises(OptionError, match=message):
        Grid(**change)
