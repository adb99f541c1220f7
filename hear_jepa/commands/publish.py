"""`hear-jepa publish CHECKPOINT FOLDER`: a checkpoint as a folder that the Hugging Face Hub takes.

    hear-jepa publish runs/mine/encoder.safetensors mine --licence cc-by-4.0 --repository me/mine
    hf upload me/mine mine

Then anybody has `hear_jepa.load_model("hf:me/mine")`.
"""

import argparse

from hear_jepa.api import checkpoint_file
from hear_jepa.publish import publish


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a checkpoint's path, or the name of a shipped one")
    parser.add_argument("out", metavar="FOLDER", help="the folder to write")
    parser.add_argument("--licence", default="", help="of the weights, where the checkpoint does not say: cc-by-4.0")
    parser.add_argument("--licence-text", metavar="FILE", help="the licence's text")
    parser.add_argument("--card", metavar="FILE", help="Markdown to put into the card: data, scores, limits")
    parser.add_argument("--repository", default="OWNER/NAME", help="where it will be, for the card's example")


def run(arguments: argparse.Namespace) -> int:
    licence, text, card = arguments.licence, arguments.licence_text, arguments.card
    with checkpoint_file(arguments.checkpoint) as path:
        out = publish(path, arguments.out, licence, text, card, arguments.repository)
    print(f"{out}: now `hf upload {arguments.repository} {out}`")
    return 0
