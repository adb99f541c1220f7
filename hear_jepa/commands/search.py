"""`hear-jepa search INDEX QUERY`: where in embedded sounds does it sound like this?

    hear-jepa search embeddings.npz query.wav
    hear-jepa search timestamps.parquet long.flac --start 12.5 --end 14 -k 20 > hits.csv

Prints CSV: the cosine, path and channel, and the seconds where the stretch begins and ends.
"""

import argparse
import csv
import sys

from hear_jepa.explore.points import COLUMNS, row_of
from hear_jepa.explore.search import search


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("index", help="what `hear-jepa embed` wrote, in any format and kind")
    parser.add_argument("query", help="a sound file")
    parser.add_argument("-k", type=int, default=10, help="how many to list (default: 10)")
    parser.add_argument("--model", default="", help="the model that the index was embedded with: a name or a path")
    parser.add_argument("--start", type=float, default=0.0, help="second of the query's file to start from")
    parser.add_argument("--end", type=float, help="second to stop at (default: its end)")


def run(arguments: argparse.Namespace) -> int:
    hits = search(arguments.index, arguments.query, arguments.k, arguments.model, arguments.start, arguments.end)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["cosine", *COLUMNS])
    for hit in hits:
        table.writerow([f"{hit.cosine:.3f}", *row_of(hit.point)])
    return 0
