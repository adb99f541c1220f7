"""`hear-jepa map EMBEDDINGS`: embedded sounds on a plane, as a page that plays them or as a picture.

    hear-jepa map embeddings.npz --html map.html
    hear-jepa map embeddings.npz --labels labels.csv --html map.html --embed-audio
    hear-jepa map embeddings.npz --labels labels.csv --out map.png

The labels are a CSV file with the columns `path` and `label`; a path matches a file by its end: `a.wav`, `dogs/a.wav`.
"""

import argparse
import sys
from pathlib import Path

from hear_jepa.explore.map import draw_picture, write_page
from hear_jepa.explore.projection import METHODS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("embeddings", help="what `hear-jepa embed` wrote")
    parser.add_argument("--html", help="the page to write: a click plays a sound and lists those most like it")
    parser.add_argument("--out", help="the PNG to write (default without --html: the embeddings' name and .map.png)")
    parser.add_argument("--labels", help="CSV file with the columns path and label (default: each file's folder)")
    parser.add_argument("--method", choices=METHODS, default="pca", help="pca, or umap where umap-learn is installed")
    parser.add_argument("--clusters", type=int, help="for the page to colour (default: 8, where scikit-learn is there)")
    parser.add_argument(
        "--embed-audio",
        action="store_true",
        help="put 2 s of each sound into the page, 8 kB a sound; without it the page plays the files where they lie",
    )


def run(arguments: argparse.Namespace) -> int:
    embeddings, labels, method = arguments.embeddings, arguments.labels, arguments.method
    if arguments.html:
        missing = write_page(embeddings, arguments.html, labels, method, arguments.clusters, arguments.embed_audio)
        if missing:
            print(
                f"{missing} sounds are in archives, or not where {embeddings} says, and will not play: "
                "run this in the folder where they were embedded, or give --embed-audio",
                file=sys.stderr,
            )
        print(arguments.html)
    if arguments.out or not arguments.html:
        out = Path(arguments.out or Path(embeddings).with_suffix(".map.png"))
        draw_picture(embeddings, out, labels, method)
        print(out)
    return 0
