"""A baseline, as a HEAR module: our encoder with random weights, what its architecture gives before any training."""

from dataclasses import replace

import torch
from torch import Tensor

import hear_jepa
from hear_jepa.api import checkpoint_file
from hear_jepa.model.checkpoint import load_checkpoint
from hear_jepa.model.embedder import Embedder
from hear_jepa.model.vit import ViT

SEED = 0


def load_model(model_file_path: str = "", **options: object) -> Embedder:
    """HEAR API: the architecture, front end and served layers of a checkpoint, its weights drawn anew.

    model_file_path and options are those of `hear_jepa.load_model`.
    """
    with checkpoint_file(model_file_path) as path:
        trained = load_checkpoint(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        weights = ViT(trained.encoder).state_dict()
    return Embedder(replace(trained, weights=weights, provenance={"untrained": True}), **options)


def get_scene_embeddings(audio: Tensor, model: Embedder) -> Tensor:
    """HEAR API: [n_sounds, n_samples] -> [n_sounds, D]."""
    return hear_jepa.get_scene_embeddings(audio, model)


def get_timestamp_embeddings(audio: Tensor, model: Embedder) -> tuple[Tensor, Tensor]:
    """HEAR API: [n_sounds, n_samples] -> ([n_sounds, T, D], [n_sounds, T] in ms)."""
    return hear_jepa.get_timestamp_embeddings(audio, model)
