"""A floor, as a HEAR module: our encoder with random weights, what its architecture gives before any training."""

import torch
from torch import Tensor

import hear_jepa
from hear_jepa.checkpoint import Checkpoint
from hear_jepa.embedder import Embedder
from hear_jepa.errors import OptionError
from hear_jepa.vit import SIZES, ViT, ViTConfig

SEED = 0


def load_model(model_file_path: str = "", size: str = "tiny", **options: object) -> Embedder:
    """HEAR API; `size` is that of an encoder (tiny, small, base), the options are those of `hear_jepa.load_model`."""
    del model_file_path
    if size not in SIZES:
        raise OptionError(f"untrained: there is no size {size!r}; choose one of {', '.join(SIZES)}")
    width, depth, heads = SIZES[size]
    config = ViTConfig(width=width, depth=depth, heads=heads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        weights = ViT(config).state_dict()
    return Embedder(Checkpoint(encoder=config, weights=weights, provenance={"untrained": True}), **options)


def get_scene_embeddings(audio: Tensor, model: Embedder) -> Tensor:
    """HEAR API: [n_sounds, n_samples] -> [n_sounds, D]."""
    return hear_jepa.get_scene_embeddings(audio, model)


def get_timestamp_embeddings(audio: Tensor, model: Embedder) -> tuple[Tensor, Tensor]:
    """HEAR API: [n_sounds, n_samples] -> ([n_sounds, T, D], [n_sounds, T] in ms)."""
    return hear_jepa.get_timestamp_embeddings(audio, model)
