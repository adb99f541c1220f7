"""`hear-jepa classify`: train a linear head on labelled sounds, and label others with it.

    hear-jepa embed recordings/ --out embeddings.npz
    hear-jepa classify train labels.csv embeddings.npz --out birds.safetensors
    hear-jepa classify apply birds.safetensors new/ --out scores.csv

labels.csv has the columns `path` and `label`; for labels of a part of a file, on embeddings of windows or timestamps,
`start_s` and `end_s` too. A path matches a file by its end: `a.wav`, `dogs/a.wav`.
"""

import argparse
import csv
import sys
from contextlib import nullcontext

from hear_jepa.disk import atomic_path
from hear_jepa.explore.classify import Trained, apply, train
from hear_jepa.explore.confusion_picture import draw
from hear_jepa.explore.head import Head, load_head
from hear_jepa.explore.points import COLUMNS, row_of
from hear_jepa.figures import save_figure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    training = actions.add_parser("train", help="labels and embeddings -> a head and its score")
    training.add_argument("labels", help="CSV file with the columns path and label")
    training.add_argument("embeddings", help="what `hear-jepa embed` wrote")
    training.add_argument("--out", required=True, help="the head to write, NAME.safetensors")
    training.add_argument("--picture", help="the confusion matrix to draw, a PNG")
    applying = actions.add_parser("apply", help="a head and sounds -> a label, its score and times")
    applying.add_argument("head", help="what `hear-jepa classify train` wrote")
    applying.add_argument("sounds", nargs="+", metavar="PATH", help="a file, a folder, a quoted pattern, a .txt list")
    applying.add_argument("--out", help="the CSV to write (default: print it)")
    applying.add_argument("--all-labels", action="store_true", help="a column for the score of each label, too")
    applying.add_argument("--model", default="", help="the model of the examples: a name or a path")


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "train":
        trained = train(arguments.labels, arguments.embeddings)
        trained.head.save(arguments.out)
        _report(trained)
        if arguments.picture:
            title = f"{trained.head.score['accuracy']:.1%} right in cross-validation"
            print(save_figure(draw(trained.confusion, trained.head.labels, title), arguments.picture))
        print(arguments.out)
        return 0
    head = load_head(arguments.head)
    with atomic_path(arguments.out) if arguments.out else nullcontext() as path:
        if path is None:
            return _write_scores(sys.stdout, head, arguments)
        with open(path, "w", newline="", encoding="utf-8") as file:
            return _write_scores(file, head, arguments)


def _report(trained: Trained) -> None:
    """The score, and that of each label, on stdout."""
    score, labels = trained.head.score, trained.head.labels
    print(
        f"{score['accuracy']:.1%} of {score['examples']} examples of {score['files']} files right in cross-validation; "
        f"{score['balanced_accuracy']:.1%} on the mean over labels"
    )
    width = max(map(len, labels))
    for name, row, right in zip(labels, trained.confusion, trained.confusion.diagonal(), strict=True):
        wrong = [f"{labels[other]} {row[other]}" for other in (-row).argsort() if row[other] and labels[other] != name]
        print(f"  {name:<{width}}  {right:>5} of {row.sum():<5} {', '.join(wrong[:3])}".rstrip())


def _write_scores(file, head: Head, arguments: argparse.Namespace) -> int:
    """A row a stretch; what failed goes to stderr. Returns the exit code."""
    table = csv.writer(file, lineterminator="\n")
    every = head.labels if arguments.all_labels else ()
    table.writerow([*COLUMNS, "label", "score", *every])
    failed = False
    for scored in apply(head, arguments.sounds, arguments.model):
        if scored.probabilities is None:
            failed = True
            print(f"left out: {scored.point.path}: {scored.error}", file=sys.stderr)
            continue
        best = int(scored.probabilities.argmax())
        scores = [f"{probability:.3f}" for probability in scored.probabilities]
        table.writerow([*row_of(scored.point), head.labels[best], scores[best], *(scores if every else ())])
    return 1 if failed else 0
