"""A map of embeddings as a picture."""

from collections.abc import Sequence

import numpy

from hear_jepa.explore.colours import COLOURS, OTHER
from hear_jepa.figures import new_figure


def draw(places: numpy.ndarray, labels: Sequence[str], axes_names: tuple[str, str], title: str):
    """A matplotlib figure: a dot a point [n, 2], a colour a label."""
    figure = new_figure(9, 7)
    axes = figure.subplots()
    names = sorted(set(labels), key=lambda name: (name == "", -labels.count(name), name))
    shown = [name for name in names if name][: len(COLOURS)]
    rest = numpy.array([label not in shown for label in labels])
    size = float(numpy.clip(4000 / len(labels), 6, 40))
    if rest.any():
        axes.scatter(*places[rest].T, s=size, color=OTHER, linewidths=0, label="other")
    for number, name in enumerate(shown):
        here = numpy.array([label == name for label in labels])
        axes.scatter(*places[here].T, s=size, color=COLOURS[number], linewidths=0, alpha=0.8, label=name)
    axes.set(xlabel=axes_names[0], ylabel=axes_names[1], title=title)
    if len(shown) + rest.any() > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, markerscale=max(1, (40 / size) ** 0.5))
    return figure
