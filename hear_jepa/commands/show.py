"""`hear-jepa show FILE`: what the model hears in one recording, as a picture or as a page that plays it.

hear-jepa show bird.flac --out bird.png
hear-jepa show bird.flac --html bird.html
"""

import argparse
from pathlib import Path

from hear_jepa.api import load_model
from hear_jepa.errors import OptionError
from hear_jepa.explore import recording_page
from hear_jepa.explore.excerpt import read_excerpt
from hear_jepa.explore.recording_picture import LONGEST_S, draw
from hear_jepa.figures import save_figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a sound file")
    parser.add_argument("--out", help="the PNG to write (default without --html: the file's name and .png, here)")
    parser.add_argument("--html", help="the page to write: a cursor follows the sound, a click plays from there")
    parser.add_argument("--model", default="", help="a checkpoint's path, or the name of a shipped one")
    parser.add_argument("--start", type=float, default=0.0, help="second to start from")
    parser.add_argument("--seconds", type=float, default=LONGEST_S, help=f"how much to draw, at most {LONGEST_S:.0f}")


def run(arguments: argparse.Namespace) -> int:
    if not 0 < arguments.seconds <= LONGEST_S:
        raise OptionError(f"--seconds must be in 0 … {LONGEST_S:.0f}, not {arguments.seconds}")
    model = load_model(arguments.model)
    end_s = arguments.start + arguments.seconds
    audio = read_excerpt(arguments.file, arguments.start, end_s, sample_rate=model.sample_rate)
    name = Path(arguments.file).name
    if arguments.html:
        recording_page.write(model, audio, arguments.html, arguments.start, name)
        print(arguments.html)
    if arguments.out or not arguments.html:
        print(save_figure(draw(model, audio, arguments.start, name), arguments.out or Path(name).with_suffix(".png")))
    return 0
