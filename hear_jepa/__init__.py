"""Audio embeddings by a Joint-Embedding Predictive Architecture, behind the HEAR 2021 API.

import torch, hear_jepa
model = hear_jepa.load_model()
audio = torch.randn(1, 16000)  # [n_sounds, n_samples] at 16 kHz
scenes = hear_jepa.get_scene_embeddings(audio, model)
embeddings, timestamps = hear_jepa.get_timestamp_embeddings(audio, model)
"""

from hear_jepa.api import get_scene_embeddings, get_timestamp_embeddings, load_model
from hear_jepa.model.embedder import Embedder

__version__ = "0.1.0"

__all__ = ["Embedder", "__version__", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]
