"""Run outside the clone, in an environment that holds only the wheel and what it requires: does it embed?"""

import importlib.util
import sys
from importlib.metadata import distribution
from pathlib import Path

import torch

import hear_jepa
from hear_jepa.cli import main

assert Path(hear_jepa.__file__).is_relative_to(sys.prefix), f"{hear_jepa.__file__} is not the wheel's"
assert importlib.util.find_spec("sklearn") is None, "the environment holds more than serving requires"
names = {str(path) for path in distribution("hear-jepa").files}
needed = {
    "hear_jepa/evaluation/published.json",
    "hear_jepa/evaluation/heareval_path/sitecustomize.py",
    "hear_jepa/train/corpus/debian.json",
    "hear_jepa/weights/README.md",
}
assert needed <= names, needed - names
packages = {str(path.parent) for path in distribution("hear-jepa").files if path.suffix == ".py"}
assert {"hear_jepa", "hear_jepa/evaluation", "hear_jepa/train", "hear_jepa/weights"} <= packages, packages
model = hear_jepa.load_model()
scenes = hear_jepa.get_scene_embeddings(torch.randn(1, 16000) / 10, model)
assert scenes.shape == (1, model.scene_embedding_size) and scenes.isfinite().all()
assert main(["info"]) == 0
