"""A confusion matrix as a picture."""

from collections.abc import Sequence

import numpy

from hear_jepa.figures import new_figure

MOST_NUMBERS = 15  # labels up to which the counts are written into the cells


def draw(confusion: numpy.ndarray, labels: Sequence[str], title: str):
    """A matplotlib figure of [true, predicted] counts: each row's shares as shades, the counts as numbers."""
    side = float(numpy.clip(2.5 + 0.45 * len(labels), 4, 14))
    figure = new_figure(side + 1, side)
    axes = figure.subplots()
    shares = confusion / numpy.maximum(confusion.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="share of the true label", fraction=0.046)
    places = range(len(labels))
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.set_xticks(places, labels, rotation=45, ha="right")
    axes.set_yticks(places, labels)
    if len(labels) <= MOST_NUMBERS:
        for true, predicted in zip(*confusion.nonzero(), strict=True):
            colour = "white" if shares[true, predicted] > 0.5 else "black"
            axes.text(predicted, true, str(confusion[true, predicted]), ha="center", va="center", color=colour)
    return figure
