"""`hear-jepa show FILE`: a picture of what the model hears in one recording.

hear-jepa show bird.flac --out bird.png
"""

import argparse
from pathlib import Path

from hear_jepa.api import load_model
from hear_jepa.explore.recording_picture import LONGEST_S, draw, read_excerpt
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
    audio = read_excerpt(arguments.file, arguments.start, arguments.seconds)
    figure = draw(load_model(arguments.model), audio, arguments.start, Path(arguments.file).name)
    print(save_figure(figure, arguments.out or Path(arguments.file).with_suffix(".png").name))
    return 0
