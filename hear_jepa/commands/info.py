"""`hear-jepa info MODEL`: what a weights file is made of, as JSON."""

import argparse
import json

from hear_jepa.api import checkpoint_file
from hear_jepa.model.checkpoint import describe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="", help="name or path of a checkpoint; nothing: the default")


def run(arguments: argparse.Namespace) -> int:
    with checkpoint_file(arguments.model) as path:
        print(json.dumps(describe(path), indent=2, ensure_ascii=False))
    return 0
