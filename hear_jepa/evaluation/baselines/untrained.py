"""A baseline, as a HEAR module: a checkpoint's architecture with random weights, served as the checkpoint is."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import hear_jepa
from hear_jepa.api import named_checkpoint
from hear_jepa.model.checkpoint import Checkpoint
from hear_jepa.model.embedder import Embedder
from hear_jepa.model.vit import ViT


def untrained(checkpoint: Checkpoint, seed: int = 0) -> Checkpoint:
    """The same architecture, front end, served layers and pooling, with the weights of an initialisation; no whitening,
    which is learnt from sound."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = ViT(checkpoint.encoder).state_dict()
    return replace(checkpoint, weights=weights, whitening=None, provenance={"untrained": True})


def load_model(model_file_path: str = "", seed: int = 0, **options: Any) -> Embedder:
    """HEAR API: `untrained` of a checkpoint. model_file_path and options are those of `hear_jepa.load_model`."""
    return Embedder(untrained(named_checkpoint(model_file_path), seed), **options)


def get_scene_embeddings(audio: Tensor, model: Embedder) -> Tensor:
    return hear_jepa.get_scene_embeddings(audio, model)


def get_timestamp_embeddings(audio: Tensor, model: Embedder) -> tuple[Tensor, Tensor]:
    return hear_jepa.get_timestamp_embeddings(audio, model)
