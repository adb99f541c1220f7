"""The picture of a recording as one self-contained page: its sound plays, and a cursor shows where it is."""

import io
from pathlib import Path

from torch import Tensor

from hear_jepa.explore.page import as_text, opus, write_page
from hear_jepa.explore.recording_picture import draw
from hear_jepa.files.resample import resample
from hear_jepa.model.embedder import Embedder

DPI = 130
PANELS = 3  # of the picture; their axes come first


def write(model: Embedder, audio: Tensor, out: str | Path, start_s: float = 0.0, title: str = "") -> None:
    """Write the page of [samples] at the model's rate, which start at second `start_s` of what `title` names."""
    figure, picture = draw(model, audio, start_s, title), io.BytesIO()
    figure.savefig(picture, dpi=DPI, format="png")  # and lays the axes out
    panels = []
    for axes in figure.axes[:PANELS]:
        place = axes.get_position()
        percent = [100 * value for value in (place.x0, 1 - place.y1, place.width, place.height)]
        panels.append({"place": percent, "from": axes.get_xlim()[0], "to": axes.get_xlim()[1]})
    panels[-1]["square"] = True  # time on both axes
    data = {
        "title": title,
        "start": start_s,
        "panels": panels,
        "picture": as_text(picture.getvalue()),
        "sound": as_text(opus(resample(audio[None], model.sample_rate)[0].numpy())),
    }
    write_page(out, "recording_page.html", data)
