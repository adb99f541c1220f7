"""A collection's map: where each sound lies, what it is called, which sounds are nearest to it."""

import os
from importlib.util import find_spec
from pathlib import Path

from hear_jepa.explore import map_page, map_picture
from hear_jepa.explore.excerpt import is_there
from hear_jepa.explore.labels import LabelTable
from hear_jepa.explore.points import Points, load_points
from hear_jepa.explore.projection import clusters, project
from hear_jepa.explore.similarity import Standardiser, neighbours
from hear_jepa.figures import save_figure
from hear_jepa.files.sounds import is_url

FEWEST = 3  # embeddings that make a map
CLUSTERS = 8


def draw_picture(
    embeddings: str | Path, out: str | Path, labels: str | Path | None = None, method: str = "pca"
) -> None:
    """Write a PNG, its colours the labels, or each file's folder. Raises OptionError."""
    found = load_points(embeddings, FEWEST)
    places, axes = project(Standardiser.of(found.embeddings)(found.embeddings), method)
    names = _labels(found, labels) or _folders(found)
    title = f"{len(found.points)} sounds, {Path(embeddings).name}"
    save_figure(map_picture.draw(places, names, axes, title), out)


def write_page(
    embeddings: str | Path,
    out: str | Path,
    labels: str | Path | None = None,
    method: str = "pca",
    n_clusters: int | None = None,
    embed_audio: bool = False,
) -> int:
    """Write the page; return how many of its sounds it cannot play: not there, or in an archive. Raises OptionError."""
    found = load_points(embeddings, FEWEST)
    standardise = Standardiser.of(found.embeddings)
    standard = standardise(found.embeddings)
    places, axes = project(standard, method)
    colourings = {"label": _labels(found, labels)} if labels else {}
    colourings["folder"] = _folders(found)
    if n_clusters is None and find_spec("sklearn"):
        n_clusters = CLUSTERS
    if n_clusters:
        colourings["cluster"] = [f"cluster {number + 1}" for number in clusters(standard, n_clusters)]
    if len(colourings) > 1 and len(set(colourings["folder"])) == 1:
        del colourings["folder"]
    map_page.write(
        out,
        f"{len(found.points)} sounds, {Path(embeddings).name}",
        found.points,
        places,
        axes,
        neighbours(standardise.directions(found.embeddings), map_page.NEIGHBOURS),
        colourings,
        map_page.excerpt if embed_audio else None,
    )
    plays = is_there if embed_audio else os.path.isfile
    return sum(not is_url(point.path) and not plays(point.path) for point in found.points)


def _labels(found: Points, labels: str | Path | None) -> list[str]:
    return LabelTable(labels).of_points(found.points) if labels else []


def _folders(found: Points) -> list[str]:
    return [Path(point.path).parent.name for point in found.points]
