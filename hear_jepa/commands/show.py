"""`hear-jepa show FILE`: a picture of what the model hears in one recording.

hear-jepa show bird.flac --out bird.png
"""

import argparse
from pathlib import Path

from hear_jepa.api import load_model
from hear_jepa.errors import OptionError
from hear_jepa.explore.excerpt import read_excerpt
from hear_jepa.explore.recording_picture import LONGEST_S, draw
from hear_jepa.figures import save_figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `hear-jepa show`."""
    parser.add_argument("file", help="a sound file")
    parser.add_argument("--out", help="the PNG to write (default: the file's name and .png, in the current folder)")
    parser.add_argument("--model", default="", help="a checkpoint's path, or the name of a shipped one")
    parser.add_argument("--start", type=float, default=0.0, help="second to start from")
    parser.add_argument("--seconds", type=float, default=LONGEST_S, help=f"how much to draw, at most {LONGEST_S:.0f}")


def run(arguments: argparse.Namespace) -> int:
    """Draw, and say where to."""
    if not 0 < arguments.seconds <= LONGEST_S:
        raise OptionError(f"--seconds must be in 0 … {LONGEST_S:.0f}, not {arguments.seconds}")
    model = load_model(arguments.model)
    end_s = arguments.start + arguments.seconds
    audio = read_excerpt(arguments.file, arguments.start, end_s, sample_rate=model.sample_rate)
    figure = draw(model, audio, arguments.start, Path(arguments.file).name)
    print(save_figure(figure, arguments.out or Path(arguments.file).with_suffix(".png").name))
    return 0
