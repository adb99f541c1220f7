"""A map of embeddings as a picture."""

from collections.abc import Sequence

import numpy

from hear_jepa.commands.show import pyplot_or_advice

MOST_LABELS = 20  # that colours can tell apart; the rest share one


def draw(places: numpy.ndarray, labels: Sequence[str], axes_names: tuple[str, str], title: str):
    """A matplotlib figure: a dot a point [n, 2], a colour a label."""
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
