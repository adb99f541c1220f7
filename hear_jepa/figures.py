"""matplotlib figures that are drawn to files, without a window system and without pyplot's global state."""

from pathlib import Path
from typing import Any

from hear_jepa.disk import atomic_path
from hear_jepa.errors import OptionError

NEEDS_MATPLOTLIB = "pictures need matplotlib: pip install matplotlib"


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib `Figure` of so many inches; raises OptionError, with what to install, where it is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise OptionError(NEEDS_MATPLOTLIB) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure, path: str | Path, dpi: int = 130) -> Path:
    """Write a figure atomically, in the format of the path's suffix; returns the path. Raises OptionError."""
    path = Path(path)
    if path.suffix.lower().removeprefix(".") not in figure.canvas.get_supported_filetypes():
        raise OptionError(f"no picture can be written to {path}: give a name that ends in .png, .pdf or .svg")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
    return path
