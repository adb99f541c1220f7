"""Models are named by SPEC and told apart by weights and options; embeddings are computed once.

* A SPEC is taken apart as documented; what is no SPEC, or cannot be imported, is an OptionError that says so.
* Two weights files, two options, two modules have different keys; the same model loaded twice has one.
* Embeddings are those of each clip alone, in their order; a second look reads the cache, never that of other weights; a
  model of another rate hears the task resampled; what is not finite is an error that names model, task and clip.
* The baselines follow the HEAR API; `untrained` is random, the same every time, and served as its checkpoint.
"""

import types
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from evaluation_fixtures import FAKE_MODULE, write_event_task, write_scene_task

from hear_jepa import Embedder
from hear_jepa.errors import OptionError, TaskError
from hear_jepa.evaluation.baselines.logmel_stats import PAPER, LogMelStats
from hear_jepa.evaluation.baselines.untrained import untrained
from hear_jepa.evaluation.features import embed_split
from hear_jepa.evaluation.model_spec import ModelSpec, load_spec, loaded_module, parse_spec
from hear_jepa.evaluation.tasks import read_task
from hear_jepa.model.checkpoint import ServedConfig, save_checkpoint
from hear_jepa.model.front_end import FrontEndConfig


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A module of this test's own; returns its name."""
    name = f"fake_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(FAKE_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


SPECS = [
    ("hear_jepa", "hear_jepa", "", {}),
    ("hear_jepa:weights/tiny.safetensors", "hear_jepa", "weights/tiny.safetensors", {}),
    ("hear_jepa:tiny,hop_ms=80", "hear_jepa", "tiny", {"hop_ms": 80}),
    ("hear_jepa:hop_ms=80,layers=[6,12]", "hear_jepa", "", {"hop_ms": 80, "layers": [6, 12]}),
    ("hear_jepa,precision=bfloat16", "hear_jepa", "", {"precision": "bfloat16"}),
    ("hearbaseline.torchcrepe", "hearbaseline.torchcrepe", "", {}),
    ("logmel-stats", "hear_jepa.evaluation.baselines.logmel_stats", "", {}),
]


def test_specs():
    for text, *parts in SPECS:
        assert parse_spec(text) == ModelSpec(text, *parts)
    for text in ("", ":tiny", "hear_jepa:tiny,hop_ms", "hear_jepa:tiny,=80"):
        with pytest.raises(OptionError, match="MODULE"):
            parse_spec(text)
    with pytest.raises(OptionError, match="cannot import no_such_module"):
        load_spec("no_such_module:tiny")


def test_keys_tell_models_apart(fake, tmp_path, checkpoint):
    (tmp_path / "a.txt").write_text("1.0")
    (tmp_path / "b.txt").write_text("2.0")
    specs = [fake, f"{fake}:{tmp_path}/a.txt", f"{fake}:{tmp_path}/b.txt", f"{fake}:hop_ms=100", "logmel-stats"]
    assert len({load_spec(spec).key for spec in specs}) == len(specs)
    assert load_spec(specs[1]).key == load_spec(specs[1]).key
    (tmp_path / "a.txt").write_text("3.0")  # other weights under the same name
    assert load_spec(specs[1]).key not in {load_spec(spec).key for spec in specs[2:]}
    others = [ServedConfig(layers=(1,)), ServedConfig(scene_hop_ms=40), ServedConfig(pooling="mean+std")]
    checkpoints = [checkpoint, replace(checkpoint, front_end=FrontEndConfig(mean=0.0))]
    checkpoints += [replace(checkpoint, served=served) for served in others]
    models = [loaded_module(types.ModuleType("m"), Embedder(c), "m") for c in checkpoints]
    assert len({model.key for model in models}) == len(checkpoints)


def test_embeddings_are_those_of_each_clip_alone(fake, tmp_path):
    task, model = read_task(write_scene_task(tmp_path / "tones-v1")), load_spec(fake)
    features = embed_split(task, "train", model)
    assert len({clip.samples for clip in task.clips["train"]}) == 3  # batches by length
    for clip, row in zip(task.clips["train"], features.values, strict=True):
        audio = torch.from_numpy(soundfile.read(clip.path, dtype="float32")[0])
        np.testing.assert_allclose(row, model.scene(audio[None])[0], atol=1e-5)


def test_event_embeddings_keep_their_clips_and_times(fake, tmp_path):
    task, model = read_task(write_event_task(tmp_path / "tones-v1")), load_spec(fake)
    features = embed_split(task, "test", model)
    assert features.counts.tolist() == [41, 41, 41]
    audio = torch.from_numpy(soundfile.read(task.clips["test"][2].path, dtype="float32")[0])
    embeddings, times = model.timestamps(audio[None])
    np.testing.assert_allclose(features.values[82:], embeddings[0], atol=1e-5)
    np.testing.assert_array_equal(features.times_ms[82:], times[0])


def test_cache_is_read_and_never_by_other_weights(fake, tmp_path):
    task, log = read_task(write_scene_task(tmp_path / "tones-v1")), tmp_path / f"{fake}.log"
    first = embed_split(task, "test", load_spec(fake), tmp_path / "cache")
    embedded = log.read_text()
    again = embed_split(task, "test", load_spec(fake), tmp_path / "cache")
    assert log.read_text() == embedded
    np.testing.assert_array_equal(first.values, again.values)
    (tmp_path / "b.txt").write_text("2.0")
    other = embed_split(task, "test", load_spec(f"{fake}:{tmp_path}/b.txt"), tmp_path / "cache")
    np.testing.assert_allclose(other.values, 2 * first.values, rtol=1e-5)


def test_model_of_another_rate_hears_resampled_audio(tmp_path):
    task = read_task(write_scene_task(tmp_path / "tones-v1"))
    heard = []

    class Model(torch.nn.Module):
        sample_rate = 44100
        scene_embedding_size = 1

    def get_scene_embeddings(audio, model):
        heard.append(audio.shape[1])
        return audio.std(1, keepdim=True)

    module = types.SimpleNamespace(get_scene_embeddings=get_scene_embeddings)
    embed_split(task, "train", loaded_module(module, Model(), "wide"))
    assert sorted(set(heard)) == [round(44100 * seconds) for seconds in (0.3, 0.4, 0.5)]


BASELINE_SPECS = ["logmel-stats:hop_ms=80", "logmel-stats,front_end=paper,hop_ms=80", "untrained:hop_ms=80"]


@pytest.mark.parametrize("spec", BASELINE_SPECS)
def test_baselines_follow_the_api(spec):
    model = load_spec(spec)
    audio = torch.randn(2, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    scenes, (embeddings, times) = model.scene(audio), model.timestamps(audio)
    assert scenes.shape == (2, model.model.scene_embedding_size)
    assert embeddings.shape == (2, times.shape[1], model.model.timestamp_embedding_size)
    assert torch.all(times.diff(dim=1) == 80) and times.max() < 1000
    assert load_spec(spec).key == model.key


def test_logmel_stats_are_mean_and_deviation():
    model = LogMelStats(PAPER, window_ms=160, hop_ms=40)
    audio = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    log_mel = model.log_mel(audio)
    expected = torch.cat([log_mel.mean(2), log_mel.std(2, correction=0)], dim=1)
    torch.testing.assert_close(model.scene(audio), expected)
    embeddings, times = model.timestamps(audio)
    around = log_mel[..., 20 - 8 : 20 + 9]  # 160 ms around 200 ms
    expected = torch.cat([around.mean(2), around.std(2, correction=0)], dim=1)
    torch.testing.assert_close(embeddings[:, times[0].tolist().index(200.0)], expected)


def test_logmel_stats_take_the_front_end_of_the_model_or_the_papers(tmp_path, checkpoint):
    wide = replace(checkpoint, front_end=replace(checkpoint.front_end, n_fft=1024))
    save_checkpoint(tmp_path / "wide.safetensors", wide)
    own, paper = (
        load_spec(f"logmel-stats:{tmp_path}/wide.safetensors,front_end={name}") for name in ("model", "paper")
    )
    assert own.model.log_mel.config == wide.front_end
    assert (paper.model.log_mel.config.n_fft, paper.model.log_mel.config.n_mels) == (400, 80)
    with pytest.raises(OptionError, match="front_end is .*choose from model, paper"):
        load_spec("logmel-stats:front_end=other")


def test_untrained_is_served_as_the_checkpoint_is(checkpoint):
    served = replace(checkpoint, served=ServedConfig(layers=(1, 3), scene_hop_ms=40, pooling="mean+std"))
    random, again, other = untrained(served), untrained(served), untrained(served, seed=1)
    assert (random.encoder, random.front_end, random.served) == (served.encoder, served.front_end, served.served)
    name = "blocks.0.mlp.fc1.weight"
    assert torch.equal(random.weights[name], again.weights[name])
    assert not torch.equal(random.weights[name], other.weights[name])
    assert served.weights["blocks.0.mlp.fc1.bias"].any() and not random.weights["blocks.0.mlp.fc1.bias"].any()


def test_what_is_not_finite_is_an_error_with_the_names_of_model_task_and_clip(fake, tmp_path):
    task = read_task(write_scene_task(tmp_path / "tones-v1"))
    clip = task.clips["train"][5].path
    soundfile.write(clip, 1e30 * np.ones(task.clips["train"][5].samples), 16000, format="WAV", subtype="FLOAT")
    for spec in (fake, "hear_jepa", "untrained"):
        with pytest.raises(TaskError, match=f"{spec} on tones-v1.*{clip.name}"):
            embed_split(task, "train", load_spec(spec, "cpu"))
    soundfile.write(clip, np.full(task.clips["train"][5].samples, np.nan), 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(TaskError, match=f"{clip.name}: holds NaN"):
        embed_split(task, "train", load_spec(fake))
