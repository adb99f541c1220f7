"""The examples do what they say, and stay short:

* fine-tuning changes every served layer, beats the frozen probe on a task, and saves a checkpoint that loads;
* the adapters for other benches are accepted by those benches' own checkers, and give our embeddings. They need
  packages that are tested against where they are installed: mteb[audio], xares, perch-hoplite.
"""

import importlib.util
import sys
import types
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

import hear_jepa
from hear_jepa.model.checkpoint import load_checkpoint

EXAMPLES = Path(__file__).parent.parent / "examples"
LONGEST = {"fine_tune": 80}
ADAPTER_LINES = 25


def load(name):
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST.get(path.stem, ADAPTER_LINES)


def test_fine_tuning_beats_the_frozen_probe(tmp_path):
    task = Path(__file__).parent / "tasks" / "percussion_events-v1-small"
    frozen, tuned = load("fine_tune").main(str(task), str(tmp_path / "tuned.safetensors"), epochs=8)
    assert tuned > frozen + 0.01 and frozen > 0.5
    before, after = hear_jepa.load_model(), hear_jepa.load_model(tmp_path / "tuned.safetensors")
    assert_trained(before, after)
    tuned = load_checkpoint(tmp_path / "tuned.safetensors")
    assert tuned.whitening is None and "crops" not in tuned.provenance  # those of the old weights


def assert_trained(before, after):
    """Every parameter that takes part in the served layers has changed, and no other."""
    last, depth = max(before.layers), before.encoder.config.depth
    unused = tuple(f"blocks.{number}." for number in range(last, depth)) + (("norm.",) if last < depth else ())
    for (name, old), new in zip(before.encoder.named_parameters(), after.encoder.parameters(), strict=True):
        assert torch.equal(old, new) == name.startswith(unused or "none"), name


def test_x_ares_accepts_the_encoder(minute):
    checker = pytest.importorskip("xares.audio_encoder_checker", reason="needs xares")
    encoder = load("xares_encoder").HearJepaEncoder()
    assert checker.check_audio_encoder(encoder)
    audio = minute[:32000].reshape(2, -1)
    assert torch.equal(encoder(audio), hear_jepa.get_timestamp_embeddings(audio, encoder.model)[0])
    duration_ms = 1000 * audio.shape[1] / encoder.sampling_rate
    assert abs(encoder(audio).shape[1] - duration_ms / encoder.hop_size_in_ms) <= 1


def test_mteb_runs_its_mock_tasks():
    mteb = pytest.importorskip("mteb", reason="needs mteb[audio]")
    pytest.importorskip("torchcodec", reason="needs mteb[audio]")
    results = mteb.mock_run(load("mteb_encoder").HearJepa())
    ran = {name: result for name, result in results.items() if result is not None}
    assert results.all_passed, results.to_markdown()
    done = [name for name, result in ran.items() if type(result).__name__ == "TaskResult"]
    assert "MockAudioClassification" in done and len(done) >= 4, results.to_markdown()


def test_hoplite_embeds_a_folder(tmp_path, minute, monkeypatch):
    pytest.importorskip("perch_hoplite", reason="needs perch-hoplite")
    # Only its own TensorFlow models need this one, which imports TensorFlow.
    monkeypatch.setitem(sys.modules, "perch_hoplite.zoo.kaggle_hub", types.ModuleType("kaggle_hub"))
    from ml_collections import config_dict
    from perch_hoplite.agile import embed, source_info
    from perch_hoplite.db import in_mem_impl

    model = load("hoplite_model").HearJepa()
    soundfile.write(tmp_path / "a.wav", minute[:160000].numpy(), 16000, subtype="FLOAT")
    size = hear_jepa.load_model().scene_embedding_size
    sources = source_info.AudioSources((source_info.AudioSourceConfig("sounds", str(tmp_path), "*.wav"),))
    config = embed.ModelConfig("hear_jepa", size, config_dict.ConfigDict())
    database = in_mem_impl.InMemoryGraphSearchDB.create(embedding_dim=size, embedding_dtype=numpy.float32)
    embed.EmbedWorker(sources, config, database, model, audio_worker_threads=1).process_all()
    expected = hear_jepa.get_scene_embeddings(minute[:160000].reshape(2, -1), hear_jepa.load_model()).numpy()
    found = numpy.stack([database.get_embedding(number) for number in sorted(database.match_window_ids())])
    numpy.testing.assert_allclose(found, expected, atol=1e-3)
