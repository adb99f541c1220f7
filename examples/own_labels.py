"""Train a linear classifier on your own labelled sounds, and label others.

    python examples/own_labels.py labels.csv new/sounds/

labels.csv has the columns path and label; paths are relative to the CSV file. Needs scikit-learn:
pip install 'hear-jepa[eval]'
"""

import argparse
import csv
import sys
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hear_jepa
from hear_jepa.files.find import find_sources


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("sounds", nargs="+", help="files, folders or patterns to label")
    parser.add_argument("--model", default="")
    options = parser.parse_args(argv)
    model = hear_jepa.load_model(options.model)

    with open(options.labels, newline="", encoding="utf-8") as file:
        label_of = {options.labels.parent / row["path"]: row["label"] for row in csv.DictReader(file)}
    features, labels = [], []
    for sound in model.embed_files(label_of):
        if sound.error:
            print(f"left out: {sound.path}: {sound.error}", file=sys.stderr)
        else:
            features.append(sound.embeddings[0])
            labels.append(label_of[sound.path])

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    accuracy = cross_val_score(classifier, features, labels, cv=min(5, min(map(labels.count, labels)))).mean()
    print(f"# accuracy {accuracy:.1%} in cross-validation on {len(labels)} labelled sounds", file=sys.stderr)
    classifier.fit(features, labels)
    for sound in model.embed_files(find_sources(options.sounds).files):
        print(f"{sound.path},{sound.error or classifier.predict(sound.embeddings)[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
