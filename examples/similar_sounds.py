"""Which recordings in a folder sound most like this one?

    python examples/similar_sounds.py query.wav my/sounds/
    python examples/similar_sounds.py query.wav my/sounds/ --top 3 --model tiny

The folder is embedded once, into FOLDER.npz beside it; delete that file when the sounds change.
"""

import argparse
import sys
from pathlib import Path

import numpy

import hear_jepa
from hear_jepa.cli import main as hear_jepa_command
from hear_jepa.files.formats import load_embeddings


def search(query: numpy.ndarray, embeddings: numpy.ndarray) -> numpy.ndarray:
    """Cosine [n] of a query [size] to each embedding [n, size], after what all have in common is taken off."""
    mean, deviation = embeddings.mean(0), embeddings.std(0) + 1e-6
    standard, query = (embeddings - mean) / deviation, (query - mean) / deviation
    return standard @ query / (numpy.linalg.norm(standard, axis=1) * numpy.linalg.norm(query) + 1e-12)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--top", type=int, default=10)
    parser.add_argument("--model", default="")
    options = parser.parse_args(argv)

    embedded = options.folder.resolve().with_suffix(".npz")  # beside the folder
    if not embedded.exists():
        hear_jepa_command(["embed", str(options.folder), "--out", str(embedded), "--model", options.model])
    library = load_embeddings(embedded)

    (query,) = hear_jepa.load_model(options.model).embed_files([options.query])
    if query.error:
        print(f"{options.query}: {query.error}", file=sys.stderr)
        return 1
    scores = search(query.embeddings[0], library.embeddings)
    for number in numpy.argsort(-scores)[: options.top]:
        print(f"{scores[number]:6.3f}  {library.paths[number]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
