"""Audio embeddings by a Joint-Embedding Predictive Architecture, behind the HEAR 2021 API.

import torch, hear_jepa
model = hear_jepa.load_model()
audio = torch.randn(1, 16000)  # [n_sounds, n_samples] at 16 kHz
scenes = hear_jepa.get_scene_embeddings(audio, model)
embeddings, timestamps = hear_jepa.get_timestamp_embeddings(audio, model)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hear_jepa.api import get_scene_embeddings, get_timestamp_embeddings, load_model
    from hear_jepa.model.embedder import Embedder

__version__ = "0.1.0"

__all__ = ["Embedder", "__version__", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

_HOMES = {  # imported when asked for: the command line answers before torch is there
    "Embedder": "hear_jepa.model.embedder",
    "get_scene_embeddings": "hear_jepa.api",
    "get_timestamp_embeddings": "hear_jepa.api",
    "load_model": "hear_jepa.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
