"""Claims about the weights file:

* what is saved is loaded: configuration, provenance, and weights bit for bit (or rounded to float16 where asked);
* the file is one safetensors file that other tools read; its SHA-256 is told; writing is atomic and replaces;
* truncated, altered, pickled, foreign, of an unknown version, of another architecture: each refused with its message;
* no pickle is ever run.
"""

import hashlib
import json
import os
import pickle
from dataclasses import replace

import pytest
import torch
from conftest import random_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hear_jepa.errors import CheckpointError
from hear_jepa.model.checkpoint import ServedConfig, describe, file_sha256, load_checkpoint, save_checkpoint
from hear_jepa.model.front_end import FrontEndConfig


@pytest.fixture
def saved(tmp_path):
    checkpoint = random_checkpoint(
        front_end=FrontEndConfig(mean=-5.5, std=3.25),
        served=ServedConfig("target", (1, 3)),
        provenance={"hours": 25.5, "corpus": "freely licensed — ü"},
    )
    path = tmp_path / "folder" / "model.safetensors"
    return checkpoint, path, save_checkpoint(path, checkpoint)


def rewrite(path, weights=None, **header):
    """The same file with other weights or header fields, checksum of the weights untouched."""
    with safe_open(path, "pt") as file:
        metadata = {**file.metadata(), **header}
    save_file(weights or load_file(path), path, metadata={key: value for key, value in metadata.items() if value})


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
    _, path, sha256 = saved
    told = json.loads(json.dumps(describe(path)))
    assert told["sha256"] == sha256 and told["front_end"]["mean"] == -5.5 and told["provenance"]["hours"] == 25.5
    assert told["encoder"]["width"] == 96 and told["served"]["layers"] == [1, 3]
    assert told["served"]["encoder"] == "target" and told["served"]["scene_hop_ms"] == 160
    assert told["parameters"] == sum(t.numel() for name, t in load_file(path).items() if name != "pos_embed")


def test_writing_replaces_and_leaves_nothing_else(saved):
    checkpoint, path, first = saved
    assert save_checkpoint(path, replace(checkpoint, provenance={"hours": 2})) != first
    assert load_checkpoint(path).provenance == {"hours": 2}
    assert os.listdir(path.parent) == ["model.safetensors"] and path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file(saved):
    checkpoint, path, sha256 = saved
    with pytest.raises(TypeError):
        save_checkpoint(path, replace(checkpoint, provenance={"hours": object()}))
    assert file_sha256(path) == sha256 and os.listdir(path.parent) == ["model.safetensors"]


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_a_truncated_file(saved, keep):
    path = saved[1]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated or damaged; fetch it again"):
        load_checkpoint(path)


def test_an_altered_weight(saved):
    path = saved[1]
    contents = bytearray(path.read_bytes())
    contents[-1000] ^= 1
    path.write_bytes(contents)
    with pytest.raises(CheckpointError, match="was altered"):
        load_checkpoint(path)


def test_an_unknown_version_and_a_foreign_file(saved):
    path = saved[1]
    rewrite(path, version="7")
    with pytest.raises(CheckpointError, match="format version '7', this package reads '1': upgrade"):
        load_checkpoint(path)
    rewrite(path, format="other")
    with pytest.raises(CheckpointError, match="not one of hear_jepa .*hear-jepa convert"):
        load_checkpoint(path)
    rewrite(path, format="hear_jepa", version="1", weights_sha256="")
    with pytest.raises(CheckpointError, match="its header lacks weights_sha256"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda config: config["encoder"].update(width=192), r"is \(.*, not \("),
        (lambda config: config["encoder"].update(depth=4), "is absent"),
        (lambda config: config["encoder"].update(rotary=True), "unknown rotary in ViTConfig"),
        (lambda config: config.pop("front_end"), "cannot be read .*front_end"),
        (lambda config: config["encoder"].update(heads=5), "describes no encoder .*heads 5"),
    ],
)
def test_a_configuration_that_does_not_fit(saved, change, message):
    path = saved[1]
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    change(config)
    changed = json.dumps(config)
    rewrite(path, config=changed)
    with pytest.raises(CheckpointError, match="altered: its configuration does not match"):
        load_checkpoint(path)
    with safe_open(path, "pt") as file:
        provenance = file.metadata()["provenance"]
    rewrite(path, config_sha256=hashlib.sha256(f"{changed}\n{provenance}".encode()).hexdigest())
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt", ".pth"])
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, suffix, write):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"model{suffix}"
    write({"weights": Bomb()}, path)
    with pytest.raises(CheckpointError, match="is a pickle .*hear-jepa convert"):
        load_checkpoint(path)
    assert os.listdir(tmp_path) == [path.name]
