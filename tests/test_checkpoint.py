"""Claims about the weights file:

* what is saved is loaded, to the bit or rounded to float16; one safetensors file, written whole or not at all;
* truncated, altered, pickled, foreign, of an unknown version, of another architecture, with weights that are no finite
  floats: each refused with its message, and no pickle is run; files of format version 1 load;
* of many hostile headers, every one is refused with a message or serves what it says: never anything else.
"""

import dataclasses
import json
import os
import pickle
import random
from dataclasses import replace

import pytest
import torch
from conftest import random_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hear_jepa.disk import file_sha256
from hear_jepa.errors import CheckpointError
from hear_jepa.model import checkpoint as checkpoint_module
from hear_jepa.model.checkpoint import ServedConfig, describe, load_checkpoint, save_checkpoint, weights_sha256
from hear_jepa.model.front_end import FrontEndConfig
from hear_jepa.model.vit import ViTConfig


@pytest.fixture
def saved(tmp_path):
    checkpoint = random_checkpoint(
        front_end=FrontEndConfig(mean=-5.5, std=3.25),
        served=ServedConfig("target", (1, 3), 40, "mean+std"),
        provenance={"hours": 25.5, "corpus": "freely licensed — ü"},
        licence="CC-BY-4.0",
    )
    path = tmp_path / "folder" / "model.safetensors"
    return checkpoint, path, save_checkpoint(path, checkpoint)


def rewrite(path, weights=None, **header):
    """The same file with other weights or header fields, its checksum as it was; a field of None goes."""
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), **header}
    weights = load_file(path) if weights is None else weights
    save_file(weights, path, metadata={key: value for key, value in metadata.items() if value is not None})


def forge(path, weights=None, **header):
    """The same with a checksum that fits."""
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), **header}
    weights = load_file(path) if weights is None else weights
    rewrite(path, weights, **header, sha256=checkpoint_module._checksum(metadata, weights))


def config_of(path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["config"])


def test_what_is_saved_is_loaded(saved):
    checkpoint, path, sha256 = saved
    loaded = load_checkpoint(path)
    assert replace(loaded, weights={}) == replace(checkpoint, weights={})
    assert loaded.weights.keys() == checkpoint.weights.keys()
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in checkpoint.weights.items())
    assert sha256 == file_sha256(path) and loaded.layers == (1, 3) and not loaded.untrained
    patches = torch.randn(1, 15, 256)
    assert torch.equal(loaded.build()(patches), checkpoint.build()(patches))


def test_float16_storage_loads_to_float32(tmp_path, checkpoint):
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, checkpoint, torch.float16)
    loaded = load_checkpoint(path)
    for name, tensor in checkpoint.weights.items():
        assert loaded.weights[name].dtype == torch.float32
        assert torch.equal(loaded.weights[name], tensor.half().float())
    save_checkpoint(tmp_path / "full.safetensors", checkpoint)
    assert path.stat().st_size < 0.55 * (tmp_path / "full.safetensors").stat().st_size


def test_describe_tells_all_but_the_weights(saved):
    checkpoint, path, sha256 = saved
    told = json.loads(json.dumps(describe(path)))
    assert told["sha256"] == sha256 and told["provenance"] == checkpoint.provenance and told["licence"] == "CC-BY-4.0"
    for part in ("encoder", "front_end", "served"):
        assert told[part] == json.loads(json.dumps(dataclasses.asdict(getattr(checkpoint, part))))
    assert told["parameters"] == sum(t.numel() for name, t in load_file(path).items() if name != "pos_embed")


def test_writing_replaces_and_a_failed_write_leaves_the_old_file(saved):
    checkpoint, path, first = saved
    second = save_checkpoint(path, replace(checkpoint, provenance={"hours": 2}))
    assert second != first and load_checkpoint(path).provenance == {"hours": 2}
    with pytest.raises(TypeError):
        save_checkpoint(path, replace(checkpoint, provenance={"hours": object()}))
    assert file_sha256(path) == second and path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["model.safetensors"]


def refused(path, message=None):
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_truncated_or_altered_file(saved):
    path = saved[1]
    contents = path.read_bytes()
    for keep in (0, 4, 100, 5000, -1):
        path.write_bytes(contents[:keep])
        refused(path, "truncated or damaged; fetch it again")
    path.write_bytes(contents[:-1000] + bytes([contents[-1000] ^ 1]) + contents[-999:])
    refused(path, "was altered")
    path.write_bytes(contents)
    config = config_of(path)
    config["front_end"]["mean"] = -7.0
    rewrite(path, config=json.dumps(config))
    refused(path, "was altered")


def test_an_unknown_version_and_a_foreign_file(saved):
    path = saved[1]
    rewrite(path, version="7")
    refused(path, "format version '7', this package reads 1, 2 and 3: upgrade")
    rewrite(path, format="other")
    refused(path, "not one of hear_jepa .*hear-jepa convert")
    rewrite(path, format="hear_jepa", version="2", sha256=None)
    refused(path, "its header lacks sha256")


CONTRADICTIONS = [  # part, what it is changed to, what is said
    ("encoder", {"width": 192}, r"pos_embed is \(65, 96\), not \(65, 192\)"),
    ("encoder", {"depth": 4}, "is absent"),
    ("encoder", {"rotary": True}, "unknown option rotary; there are class_token, depth"),
    ("encoder", {"heads": 5}, "heads is 5"),
    ("encoder", {"positions": "none"}, "positions is 'none'"),
    ("front_end", None, "cannot be used .*front_end"),
    ("front_end", {"n_mels": 128}, "n_mels is 128: the encoder has n_freq_patches = 5"),
    ("front_end", {"hop_length": 250}, "hop_length is 250"),
    ("front_end", {"sample_rate": 0}, "sample_rate is 0"),
    ("front_end", {"n_fft": 1}, "n_fft is 1"),
    ("front_end", {"std": 0.0}, "std is 0"),
    ("front_end", {"f_max": 9000.0}, "f_max is 9000"),
    ("served", {"layers": [4]}, "served layers are .4,"),
    ("served", {"scene_hop_ms": 30}, "scene_hop_ms must be one of"),
    ("served", {"pooling": "max"}, "pooling is 'max': choose from mean, mean.std"),
]


def test_a_configuration_that_does_not_fit(saved):
    path = saved[1]
    fits = config_of(path)
    for part, change, message in CONTRADICTIONS:
        config = {**fits, part: {**fits[part], **change}} if change else {k: v for k, v in fits.items() if k != part}
        rewrite(path, config=json.dumps(config))
        refused(path)
        forge(path, config=json.dumps(config))
        refused(path, message)


def test_hostile_headers(tmp_path):
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, random_checkpoint(ViTConfig(width=12, depth=1, heads=1)))
    sound, seed = config_of(path), 20261124
    rng = random.Random(seed)
    hostile = [0, 1, -1, 3, 2**31, 10**18, 1.5, -0.0, 1e-300, 1e30, float("nan"), float("inf"), True, None, "", "16"]
    hostile += [[], [1], {}, "9" * 50, [10**9], 500, 160, 32000, 64]
    served = 0
    for trial in range(500):
        config = json.loads(json.dumps(sound))
        for _ in range(rng.choice((1, 1, 2))):
            part = config[rng.choice(list(config))]
            part[rng.choice([*part, "unknown"])] = rng.choice(hostile)
        forge(path, config=json.dumps(config))
        try:
            loaded = load_checkpoint(path)
        except CheckpointError as error:
            assert str(path) in str(error) and len(str(error)) < 1000, f"seed {seed}, trial {trial}"
            continue
        served += 1
        found = {part: dataclasses.asdict(getattr(loaded, part)) for part in config}
        assert json.loads(json.dumps(found)) == config, f"seed {seed}, trial {trial}"
        assert loaded.grid.frame_ms * loaded.front_end.sample_rate == 1000 * loaded.front_end.hop_length
    assert 0 < served < 100  # a few changes, such as another mean, are not wrong


def test_weights_that_are_no_finite_floats(saved):
    path = saved[1]
    sound = load_file(path)
    for value in (float("nan"), float("inf"), -float("inf")):
        weights = {name: tensor.clone() for name, tensor in sound.items()}
        weights["blocks.1.mlp.fc1.weight"][3, 5] = value
        forge(path, weights)
        refused(path, "blocks.1.mlp.fc1.weight holds NaN or infinite weights")
    forge(path, {name: tensor.long() for name, tensor in sound.items()})
    refused(path, "is of type I64")


def test_a_file_of_version_1_loads(saved):
    checkpoint, path, _ = saved
    weights, config = load_file(path), config_of(path)
    for name in ("patch_mels", "patch_frames", "positions"):
        del config["encoder"][name]
    del config["served"]["pooling"]
    header = {"format": "hear_jepa", "version": "1", "provenance": "{}", "config_sha256": "unused"}
    header |= {"config": json.dumps(config), "weights_sha256": weights_sha256(weights)}
    save_file(weights, path, metadata=header)
    loaded = load_checkpoint(path)
    assert (loaded.encoder, loaded.front_end) == (checkpoint.encoder, checkpoint.front_end)
    assert (loaded.served.pooling, loaded.licence) == ("mean", "unknown")
    save_file(weights, path, metadata=header | {"weights_sha256": "0" * 64})
    refused(path, "was altered")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model.safetensors", "model.ckpt", "model.pth"):
        for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
            write({"weights": Bomb()}, tmp_path / name)
            refused(tmp_path / name, "is a pickle .*hear-jepa convert")
    assert "exploded" not in os.listdir(tmp_path)
