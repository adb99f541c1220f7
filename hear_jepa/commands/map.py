"""`hear-jepa map EMBEDDINGS`: a 2-D map of embedded files, coloured by their labels.

    hear-jepa map embeddings.npz --labels labels.csv --out map.png

The labels are a CSV file with the columns `path` and `label`; a path matches a file by its end: `a.wav`, `dogs/a.wav`.
"""

import argparse
import csv
from pathlib import Path

import numpy

from hear_jepa.commands.show import pyplot_or_advice
from hear_jepa.errors import OptionError
from hear_jepa.files.formats import load_embeddings

METHODS = ("pca", "umap")
MOST_LABELS = 20  # that colours can tell apart; the rest share one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `hear-jepa map`."""
    parser.add_argument("embeddings", help="what `hear-jepa embed` wrote")
    parser.add_argument("--labels", help="CSV file with the columns path and label (default: each file's folder)")
    parser.add_argument("--method", choices=METHODS, default="pca", help="pca, or umap where umap-learn is installed")
    parser.add_argument("--out", help="the PNG to write (default: the embeddings' name and .map.png)")


def run(arguments: argparse.Namespace) -> int:
    """Draw, and say where to."""
    pyplot_or_advice()
    found = load_embeddings(arguments.embeddings)
    if len(found.paths) < 3:
        raise OptionError(f"{arguments.embeddings} holds {len(found.paths)} embedded files: a map needs 3 or more")
    if found.timestamps_ms is not None:  # a file is the mean of its timestamps
        found.embeddings = numpy.stack([embeddings.mean(0) for embeddings in found.embeddings])
    labels = (
        read_labels(arguments.labels, found.paths) if arguments.labels else [Path(p).parent.name for p in found.paths]
    )
    places, axes = project(found.embeddings, arguments.method)
    out = Path(arguments.out or Path(arguments.embeddings).with_suffix(".map.png"))
    draw(places, labels, axes, f"{len(labels)} files, {Path(arguments.embeddings).name}").savefig(out, dpi=130)
    print(out)
    return 0


def read_labels(path: str | Path, files: list[str]) -> list[str]:
    """The label of each file, "" for one without. Raises OptionError for a table that fits none of them."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = {Path(row["path"]).parts: row["label"] for row in csv.DictReader(file)}
    except (OSError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise OptionError(
            f"{path} is no table of labels ({error}): give a CSV file with columns path and label"
        ) from error
    longest = max(map(len, table), default=0)

    def label(name: str) -> str:
        parts = Path(name).parts
        ends = (parts[-length:] for length in range(min(longest, len(parts)), 0, -1))
        return next((table[end] for end in ends if end in table), "")

    labels = [label(name) for name in files]
    if not any(labels):
        raise OptionError(f"no path in {path} is one of the embedded files, such as {files[0]}")
    return labels


def project(embeddings: numpy.ndarray, method: str) -> tuple[numpy.ndarray, tuple[str, str]]:
    """[n, size] -> places [n, 2] and the names of the two axes; dimensions are standardised first."""
    deviation = embeddings.std(0)
    standard = (embeddings - embeddings.mean(0)) / numpy.where(deviation > 0, deviation, 1)
    if method == "umap":
        try:
            import umap
        except ImportError as error:
            raise OptionError("UMAP needs umap-learn: pip install umap-learn, or take --method pca") from error
        neighbours = min(15, len(standard) - 1)
        return umap.UMAP(n_neighbors=neighbours, random_state=0).fit_transform(standard), ("UMAP 1", "UMAP 2")
    u, s, _ = numpy.linalg.svd(standard, full_matrices=False)
    share = s**2 / max((s**2).sum(), 1e-12)
    return u[:, :2] * s[:2], tuple(f"principal component {k + 1} ({share[k]:.0%} of the variance)" for k in range(2))


def draw(places: numpy.ndarray, labels: list[str], axes_names: tuple[str, str], title: str):
    """A matplotlib figure: a dot a file, a colour a label."""
    pyplot = pyplot_or_advice()
    figure, axes = pyplot.subplots(figsize=(9, 7), layout="constrained")
    names = sorted(set(labels), key=lambda name: (name == "", -labels.count(name), name))
    shown = [name for name in names if name][:MOST_LABELS]
    colours = pyplot.get_cmap("tab10" if len(shown) <= 10 else "tab20")
    rest = numpy.array([label not in shown for label in labels])
    size = float(numpy.clip(4000 / len(labels), 6, 40))
    if rest.any():
        axes.scatter(*places[rest].T, s=size, color="0.75", linewidths=0, label="other")
    for number, name in enumerate(shown):
        here = numpy.array([label == name for label in labels])
        axes.scatter(*places[here].T, s=size, color=colours(number), linewidths=0, alpha=0.8, label=name)
    axes.set(xlabel=axes_names[0], ylabel=axes_names[1], title=title)
    if len(shown) + rest.any() > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=max(1, (40 / size) ** 0.5))
    return figure
