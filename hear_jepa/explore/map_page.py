"""A map of embeddings as one self-contained web page: look, listen, and hear what the model takes for alike.

The page is `map_page.html` with the data in it: no server, no network, no library.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import numpy

from hear_jepa.errors import HearJepaError
from hear_jepa.explore.colours import COLOURS, OTHER
from hear_jepa.explore.excerpt import read_excerpt
from hear_jepa.explore.page import as_text, opus, write_page
from hear_jepa.explore.points import Point
from hear_jepa.files.resample import SAMPLE_RATE
from hear_jepa.files.sounds import is_url
from hear_jepa.progress import progress_bar

NEIGHBOURS = 10
EXCERPT_S = 2.0
LONGEST_READ_S = 60.0  # of a file, to find its loudest excerpt


def write(
    out: str | Path,
    title: str,
    points: Sequence[Point],
    places: numpy.ndarray,
    axes: tuple[str, str],
    nearest: tuple[numpy.ndarray, numpy.ndarray],
    colourings: Mapping[str, Sequence[str]],
    sound: Callable[[Point], bytes | None] | None = None,
) -> None:
    """Write the page.

    places: [n, 2]; nearest: indices and cosines [n, k] of each point's neighbours; colourings: name -> a group a point;
    sound: the Ogg file to embed for a point, None to embed none: then the page plays the files where they lie.
    """
    common = common_folder([point.path for point in points])
    data = {
        "title": title,
        "axes": axes,
        "colours": COLOURS,
        "other": OTHER,
        "names": [point.name.removeprefix(common) for point in points],
        "x": _rounded(places[:, 0]),
        "y": _rounded(places[:, 1]),
        "colourings": {name: _group(members) for name, members in colourings.items()},
        "neighbours": nearest[0].tolist(),
        "cosines": [[round(float(cosine), 2) for cosine in row] for row in nearest[1]],
        "files": None if sound else [url_of(point, Path(out).parent) for point in points],
        "sounds": _encoded(points, sound) if sound else None,
    }
    write_page(out, "map_page.html", data)


def common_folder(paths: Sequence[str]) -> str:
    """What all paths begin with, up to a separator: "birds/2024/"; "" for nothing."""
    shared = os.path.commonprefix(paths)
    return shared[: max(shared.rfind("/"), shared.rfind(os.sep)) + 1]


def url_of(point: Point, folder: str | Path) -> str:
    """What a page in `folder` plays a point's sound from: the file's relative path, and its seconds."""
    times = "" if point.whole else f"#t={point.start_s:.3f},{point.end_s:.3f}"
    if is_url(point.path):
        return point.path + times
    try:
        path = quote(Path(os.path.relpath(point.path, folder)).as_posix())
    except ValueError:  # on another drive
        path = Path(point.path).absolute().as_uri()
    return path + times


def excerpt(point: Point) -> bytes | None:
    """The loudest 2 s of a point's sound (of its first minute), Opus in an Ogg file; None where it cannot be read.

    Of the first of several channels, the mix of all.
    """
    end_s = min(point.start_s + LONGEST_READ_S, point.end_s)
    try:
        audio = read_excerpt(point.path, point.start_s, end_s, point.channel or None).numpy()
    except HearJepaError:
        return None
    length, hop = round(EXCERPT_S * SAMPLE_RATE), SAMPLE_RATE // 10
    energy = numpy.concatenate([[0.0], numpy.cumsum(audio.astype("f8") ** 2)])
    starts = numpy.arange(0, max(len(audio) - length, 0) + 1, hop)
    start = starts[numpy.argmax(energy[numpy.minimum(starts + length, len(audio))] - energy[starts])]
    audio = audio[start : start + length]
    peak = numpy.abs(audio).max(initial=0.0)
    return opus(audio * min(0.9 / max(peak, 1e-9), 100.0))


def _group(members: Sequence[str]) -> dict:
    """Distinct names, the most frequent first, and the number of each point's."""
    counts: dict[str, int] = {}
    for member in members:
        counts[member] = counts.get(member, 0) + 1
    names = sorted(counts, key=lambda name: (name == "", -counts[name], name))
    number = {name: index for index, name in enumerate(names)}
    return {
        "names": [name or "no label" for name in names],
        "counts": [counts[name] for name in names],
        "of": [number[member] for member in members],
    }


def _rounded(values: numpy.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _encoded(points: Sequence[Point], sound: Callable[[Point], bytes | None]) -> list[str | None]:
    """The sounds in base64, made by as many threads as there are processors."""
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        sounds = progress_bar(threads.map(sound, points), "excerpts", len(points), "sound")
        return [None if data is None else as_text(data) for data in sounds]
