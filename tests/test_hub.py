"""Checkpoints on the Hugging Face Hub, with a cache as the Hub lays it out and no network:

* what `publish` writes is a model: weights that embed as before, a card whose metadata the Hub's own parser takes, a
  licence; `load_model("hf:…")` finds it by default name, revision, branch and file;
* nothing but safetensors is asked for; what is not there, or no name, is said in one line with what to do;
* without a licence nothing is published, and what stands there is not replaced.
"""

import os
from dataclasses import replace

import pytest
import torch

from hear_jepa import load_model
from hear_jepa.cli import main
from hear_jepa.errors import CheckpointError, OptionError
from hear_jepa.hub import hub_file
from hear_jepa.model.checkpoint import load_checkpoint, save_checkpoint
from hear_jepa.model.pooling import Whitening
from hear_jepa.publish import publish

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Where the Hub's cache is; offline."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def place(cache, folder, commit, branch=None, name="me/model"):
    """A folder as a snapshot in the cache: blobs, and links to them."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for path in folder.rglob("*"):
        if path.is_file():
            blob, link = root / "blobs" / f"{commit[:4]}{path.name}", snapshot / path.relative_to(folder)
            blob.parent.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(path.read_bytes())
            link.symlink_to(os.path.relpath(blob, link.parent))
    if branch:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / branch).write_text(commit)


@pytest.fixture
def half(tmp_path, checkpoint):
    save_checkpoint(tmp_path / "mine.safetensors", checkpoint, torch.float16)
    return tmp_path / "mine.safetensors"


def test_what_is_published_loads_and_embeds_as_before(hub, half, tmp_path, minute, capsys):
    folder = tmp_path / "out"
    (tmp_path / "card.md").write_text("## Data\n\nTwo hours of rain.", encoding="utf-8")
    options = ["--licence", "CC-BY-4.0", "--card", str(tmp_path / "card.md"), "--repository", "me/model"]
    assert main(["publish", str(half), str(folder), *options]) == 0
    assert "hf upload me/model" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["LICENSE", "README.md", "model.safetensors"]
    assert load_checkpoint(folder / "model.safetensors").licence == "CC-BY-4.0"
    assert abs((folder / "model.safetensors").stat().st_size - half.stat().st_size) < 200  # still 16 bits
    place(hub, folder, COMMIT, "main")
    (folder / "model.safetensors").rename(folder / "older.safetensors")
    place(hub, folder, OTHER, "draft")
    audio = minute[None, :48000]
    expected = load_model(half).scenes(audio)
    names = ["hf:me/model", f"hf:me/model@{COMMIT}", "hf:me/model@main/model.safetensors"]
    for name in [*names, "hf:me/model@draft/older.safetensors", f"hf:me/model@{OTHER}/older.safetensors"]:
        assert torch.equal(load_model(name).scenes(audio), expected), name
    with pytest.raises(CheckpointError, match="cannot be had.*check the name"):
        load_model("hf:me/model@draft")  # holds no model.safetensors


def test_a_whitening_of_32_bits_is_published_as_it_is(half, checkpoint, tmp_path):
    size = checkpoint.grid.rows * checkpoint.encoder.width
    whitening = Whitening(torch.randn(2 * size), torch.randn(2, size, 3))
    served = replace(checkpoint.served, pooling="mean+std")
    rounded = replace(load_checkpoint(half), whitening=whitening, served=served)
    save_checkpoint(tmp_path / "whitened.safetensors", rounded)
    folder = publish(tmp_path / "whitened.safetensors", tmp_path / "out", "MIT")
    assert load_checkpoint(folder / "model.safetensors").whitening.maps.equal(whitening.maps)


def test_the_cards_metadata_is_what_the_hub_reads(half, tmp_path):
    hugging = pytest.importorskip("huggingface_hub")
    for number, (licence, expected) in enumerate([("MIT", ("mit", None)), ("My own, v1", ("other", "my-own-v1"))]):
        folder = publish(half, tmp_path / str(number), licence, repository="me/model")
        card = hugging.ModelCard.load(folder / "README.md")
        assert (card.data.license, getattr(card.data, "license_name", None)) == expected
        assert card.data.pipeline_tag == "feature-extraction" and "audio" in card.data.tags
        assert 'load_model("hf:me/model")' in card.text and licence in (folder / "LICENSE").read_text()


def test_what_is_no_name_and_no_safetensors_is_refused():
    for name in ("hf:", "hf:me", "hf:me/", "hf:me/model@", "hf:me/model@a@b", "hf:/me/model"):
        with pytest.raises(OptionError, match="hf:owner/name"):
            hub_file(name)
    for file in ("model.pt", "pytorch_model.bin", "code.py"):
        with pytest.raises(OptionError, match="only .safetensors"):
            load_model(f"hf:me/model/{file}")


def test_nothing_is_published_without_a_licence_or_over_something(half, checkpoint, tmp_path, capsys):
    assert main(["publish", str(half), str(tmp_path / "out")]) == 2
    assert "--licence" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["publish", str(half), str(tmp_path / "out"), "--licence", "mit", "--repository", "mine"]) == 2
    assert "OWNER/NAME" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    assert main(["publish", str(half), str(tmp_path / "out"), "--licence", "mit"]) == 2
    save_checkpoint(tmp_path / "free.safetensors", replace(checkpoint, licence="cc0-1.0"))
    with pytest.raises(OptionError, match="cc0-1.0"):
        publish(tmp_path / "free.safetensors", tmp_path / "new", "mit")
    published = publish(tmp_path / "free.safetensors", tmp_path / "new")
    assert (published / "model.safetensors").read_bytes() == (tmp_path / "free.safetensors").read_bytes()
