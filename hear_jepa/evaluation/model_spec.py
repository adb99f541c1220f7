"""Which model to evaluate: `MODULE[:WEIGHTS][,OPTION=VALUE…]` -> a loaded HEAR module with an identity of its own.

MODULE is anything that follows the HEAR API, or one of the two baselines, `logmel-stats` and `untrained`. WEIGHTS is a
path, or a name that the module knows. For instance `hear_jepa`, `hear_jepa:weights/tiny.safetensors`,
`hear_jepa:tiny,hop_ms=80`, `hear_jepa:hop_ms=80`, `hearbaseline.torchcrepe`.
"""

import hashlib
import importlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from hear_jepa import __version__
from hear_jepa.device import choose_device
from hear_jepa.disk import file_sha256
from hear_jepa.errors import OptionError
from hear_jepa.evaluation.baselines import BASELINES


@dataclass(frozen=True)
class ModelSpec:
    """What the user typed, taken apart; `weights` is "" where the module has its own."""

    text: str
    module: str
    weights: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def parse_spec(text: str) -> ModelSpec:
    """`MODULE[:WEIGHTS][,OPTION=VALUE…]` -> ModelSpec; OptionError for a text of another form."""
    name, colon, rest = text.partition(":")
    if not colon:
        name, _, rest = text.partition(",")
    parts = [part for part in re.split(r",(?![^\[]*\])", rest) if part]  # the commas of layers=[6,12] stay
    weights = parts.pop(0) if parts and "=" not in parts[0] else ""
    options = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not key or not equals or not value:
            raise OptionError(f"model {text!r}: {part!r} is not OPTION=VALUE; write MODULE:WEIGHTS,OPTION=VALUE")
        options[key] = _value(value)
    if not name:
        raise OptionError(f"model {text!r} names no module; write MODULE[:WEIGHTS][,OPTION=VALUE]")
    return ModelSpec(text, BASELINES.get(name, name), weights, options)


def _value(text: str) -> Any:
    """A number, true, false or null where it reads as one, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True)
class LoadedModel:
    """A HEAR module with its model loaded."""

    spec: ModelSpec
    module: ModuleType
    model: Any
    device: torch.device
    sha256: str

    @property
    def sample_rate(self) -> int:
        return int(self.model.sample_rate)

    @property
    def key(self) -> str:
        """Tells this model from every other: module, weights (by SHA-256) and options."""
        identity = json.dumps([self.spec.module, self.sha256, self.spec.options, __version__], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

    def scene(self, audio: Tensor) -> Tensor:
        """[B, samples] -> [B, D], on the CPU."""
        with torch.inference_mode():
            return self.module.get_scene_embeddings(audio.to(self.device), self.model).float().cpu()

    def timestamps(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """[B, samples] -> ([B, T, D], [B, T] in ms), on the CPU."""
        with torch.inference_mode():
            embeddings, times = self.module.get_timestamp_embeddings(audio.to(self.device), self.model)
        return embeddings.float().cpu(), times.float().cpu()


def load_spec(spec: ModelSpec | str, device: str = "auto") -> LoadedModel:
    """Import the module and load its model; OptionError says what could not be imported or loaded."""
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a HEAR module beside the user's work, as `python -m heareval…` finds it
    try:
        module = importlib.import_module(spec.module)
    except ImportError as error:
        raise OptionError(
            f"model {spec.text!r}: cannot import {error.name or spec.module} ({error}); install it, check the "
            f"spelling, or use one of the built-in {', '.join(BASELINES)}"
        ) from error
    model = module.load_model(spec.weights, **spec.options) if spec.weights else module.load_model(**spec.options)
    chosen = choose_device(device)
    return LoadedModel(spec, module, model.to(chosen).eval(), chosen, weights_identity(spec.weights, model))


def loaded_module(module: ModuleType, model: nn.Module, name: str) -> LoadedModel:
    """A model that is already in memory, for instance one being trained, behind the same interface."""
    tensors = list(model.state_dict().values())
    device = tensors[0].device if tensors else torch.device("cpu")
    return LoadedModel(ModelSpec(name, name), module, model, device, weights_identity("", model))


def weights_identity(weights: str, model: nn.Module) -> str:
    """SHA-256 of the weights file, of the tensors that were loaded, and of the settings that the model was given."""
    digest = hashlib.sha256("\n".join(_settings(model)).encode())
    if weights and Path(weights).is_file():
        digest.update(file_sha256(weights).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _settings(model: nn.Module) -> Iterator[str]:
    """What the tensors do not tell: numbers, texts and configurations that are attributes of the model's modules."""
    for path, module in model.named_modules():
        for name, value in sorted(vars(module).items()):
            if not name.startswith("_") and name != "training" and _is_setting(value):
                yield f"{path}.{name} = {value!r}"


def _is_setting(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, (bool, int, float, str)) or is_dataclass(value)
