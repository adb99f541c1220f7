"""A linear head: embeddings -> a probability for each of some labels. Its file is safetensors, without pickle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hear_jepa.disk import atomic_path
from hear_jepa.errors import OptionError

FORMAT = "hear_jepa_head"
VERSION = "1"


@dataclass(frozen=True)
class Head:
    """`weights` [labels, size] and `biases` [labels] on embeddings as `hear-jepa embed` writes them.

    `settings`: how the embeddings were made; `score`: how well it did in cross-validation, JSON-ready.
    """

    labels: tuple[str, ...]
    weights: numpy.ndarray
    biases: numpy.ndarray
    settings: dict[str, Any]
    score: dict[str, Any]

    def probabilities(self, embeddings: numpy.ndarray) -> numpy.ndarray:
        """[n, size] -> [n, labels], which sum to 1."""
        logits = embeddings @ self.weights.T + self.biases
        logits = numpy.exp(logits - logits.max(1, keepdims=True))
        return logits / logits.sum(1, keepdims=True)

    def save(self, path: str | Path) -> None:
        """Write it, whole or not at all."""
        values = {"labels": list(self.labels), "settings": self.settings, "score": self.score}
        header = {"format": FORMAT, "version": VERSION, "head": json.dumps(values)}
        arrays = {"weights": self.weights, "biases": self.biases}
        arrays = {
            name: numpy.ascontiguousarray(array, "f4") for name, array in arrays.items()
        }  # else saved out of order
        with atomic_path(path) as temporary:
            save_file(arrays, temporary, metadata=header)


def load_head(path: str | Path) -> Head:
    """Read what `Head.save` wrote. Raises OptionError for anything else."""
    advice = "write one with `hear-jepa classify train`"
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT or header.get("version") != VERSION:
                raise OptionError(f"{path} is no head of this version of hear-jepa: {advice}")
            values = json.loads(header["head"])
            weights, biases = file.get_tensor("weights"), file.get_tensor("biases")
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise OptionError(f"{path} cannot be read as a head ({error}): {advice}") from error
    head = Head(tuple(values["labels"]), weights, biases, values["settings"], values["score"])
    if weights.shape != (len(head.labels), head.settings["embedding_size"]) or biases.shape != weights.shape[:1]:
        raise OptionError(f"{path} is damaged: weights {weights.shape} for {len(head.labels)} labels; {advice}")
    return head
