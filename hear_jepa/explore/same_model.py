"""The model whose embeddings can be compared with some that are there already."""

from typing import Any

from hear_jepa.api import load_model
from hear_jepa.errors import OptionError
from hear_jepa.model.embedder import Embedder


def load_same_model(name: str, settings: dict[str, Any], made: str) -> Embedder:
    """Load the model `name` as it served when `made` was embedded with `settings`.

    Raises OptionError where its weights are others.
    """
    hop = {"hop_ms" if settings["kind"] == "timestamps" else "scene_hop_ms": settings["hop_ms"]}
    served = {name: settings[name] for name in ("layers", "pooling")}
    model = load_model(name, **served, **hop, whiten=settings.get("whitened", False))
    weights = model.weights_sha256(settings["kind"])
    if weights != settings["weights_sha256"]:
        raise OptionError(
            f"{made} is of another model: --model has weights {weights[:12]}, it was embedded with "
            f"{settings['weights_sha256'][:12]} (`hear-jepa info` prints them)"
        )
    return model
