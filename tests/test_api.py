"""Claims about the HEAR functions and `load_model`:

* attributes and returns are as the HEAR API wants them; a model loads by default, by name and by path;
* each fault of the audio, a name, or an option has its own message, which names the value and the remedy;
* an untrained checkpoint warns; a trained one is silent; what is imported to serve holds nothing of training.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hear_jepa import get_scene_embeddings, get_timestamp_embeddings, load_model
from hear_jepa.api import shipped_models
from hear_jepa.cli import COMMANDS
from hear_jepa.errors import AudioError, CheckpointError, OptionError
from hear_jepa.model.checkpoint import save_checkpoint

EMBED = [get_scene_embeddings, get_timestamp_embeddings]


@pytest.mark.filterwarnings("ignore:the weights of")
def test_the_shipped_default_is_tiny(minute):
    default, named = load_model(), load_model("tiny")
    assert "tiny" in shipped_models() and default.sample_rate == 16000
    assert default.timestamp_embedding_size == len(default.layers) * 5 * 192
    assert default.scene_embedding_size == 2 * default.timestamp_embedding_size  # mean and standard deviation
    assert load_model(whiten=True).scene_embedding_size == 2048
    audio = minute[:64000].view(2, 32000)
    scenes = get_scene_embeddings(audio, default)
    assert scenes.shape == (2, default.scene_embedding_size) and scenes.dtype == torch.float32
    assert torch.equal(scenes, get_scene_embeddings(audio, named))
    embeddings, times_ms = get_timestamp_embeddings(audio, default)
    assert embeddings.shape == (2, 50, default.timestamp_embedding_size) and times_ms.shape == (2, 50)
    assert embeddings.dtype == times_ms.dtype == torch.float32
    assert times_ms[1].tolist() == [35 + 40 * i for i in range(50)]
    assert 0.01 < scenes.std() < 100  # probes that do not standardise need order one


def test_a_path_serves_the_weights_it_names(weights, model, minute, recwarn, capfd):
    for name in (Path(weights), weights):
        loaded = load_model(name)
        assert torch.equal(get_scene_embeddings(minute[None, :9999], loaded), model(minute[None, :9999]))
    assert not recwarn.list and capfd.readouterr() == ("", "")
    assert not any(parameter.requires_grad for parameter in loaded.parameters()) and not loaded.training


def test_options_reach_the_model(weights, minute):
    model = load_model(weights, hop_ms=80, layers=[1, 3], precision="bfloat16", batch_windows=3)
    assert (model.hop_ms, model.layers, model.precision, model.batch_windows) == (80, (1, 3), "bfloat16", 3)
    embeddings, times_ms = get_timestamp_embeddings(minute[None, :16000], model)
    assert times_ms[0].diff().unique().tolist() == [80] and embeddings.shape[2] == 2 * 480


def test_untrained_weights_warn(tmp_path, checkpoint):
    save_checkpoint(tmp_path / "new.safetensors", replace(checkpoint, provenance={"untrained": True}))
    with pytest.warns(UserWarning, match="new.safetensors are untrained"):
        load_model(tmp_path / "new.safetensors")


FAULTS = [
    ([0.0] * 16000, "audio is a list"),
    (torch.zeros(16000), r"\(16000,\), one clip without a batch axis"),
    (torch.zeros(2, 2, 16000), r"\(2, 2, 16000\), 2 channels: mix it to mono"),
    (torch.zeros(2, 1, 16000), r"\(2, 1, 16000\), with a channel axis"),
    (torch.zeros(1, 1, 2, 160), "audio has 4 axes"),
    (torch.zeros(2, 16000, dtype=torch.int16), "audio is torch.int16.*divide by 32768"),
    (torch.zeros(2, 16000, dtype=torch.bool), "audio is torch.bool"),
    (torch.zeros(2, 16000, dtype=torch.complex64), "audio is torch.complex64"),
    (torch.zeros(0, 16000), r"\(0, 16000\), an empty batch"),
    (torch.zeros(2, 0), r"\(2, 0\), no samples"),
    (torch.tensor([[0.0, 0.0], [0.0, float("nan")]]), "NaN or infinite samples in clip 1 of 2"),
    (torch.tensor([[float("inf"), 0.0], [0.0, 0.0], [0.0, -float("inf")]]), "in clip 0, 2 of 3"),
    (torch.full((1, 400), 1e25), r"samples of 1e\+25"),
]


@pytest.mark.parametrize("embed", EMBED)
def test_each_fault_of_the_audio_has_its_message(model, embed):
    for audio, message in FAULTS:
        with pytest.raises(AudioError, match=message):
            embed(audio, model)


@pytest.mark.parametrize("embed", EMBED)
def test_other_floats_are_converted(model, minute, embed):
    for dtype in (torch.float64, torch.float16):
        audio = minute[None, :8000].to(dtype)
        found, expected = (embed(x, model) for x in (audio, audio.float()))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


OPTIONS = [
    ({"hop": 40}, "unknown option hop: the options are hop_ms, layers, precision, batch_windows, scene_hop_ms"),
    ({"hop_ms": 50}, "one of 10, 20, 40, 80, 160, not 50"),
    ({"hop_ms": "40"}, "not '40'"),
    ({"hop_ms": True}, "not True"),
    ({"scene_hop_ms": 30}, "scene_hop_ms must be one of 10, 20, 40, 80, 160, not 30"),
    ({"layers": 4}, r"in 0 … 3 or -3 … -1, one or a list, not 4"),
    ({"layers": []}, r"not \[\]"),
    ({"layers": [-4]}, r"not \[-4\]"),
    ({"layers": "last"}, "not 'last'"),
    ({"layers": 1.5}, "not 1.5"),
    ({"precision": "float16"}, "precision is 'float16': choose from float32, bfloat16"),
    ({"pooling": "max"}, "pooling is 'max': choose from mean, mean.std"),
    ({"batch_windows": 0}, "at least 1, not 0"),
    ({"batch_windows": 2.0}, "whole number"),
]


def test_options_are_checked(weights):
    for options, message in OPTIONS:
        with pytest.raises(OptionError, match=message):
            load_model(weights, **options)


def test_unknown_names_and_paths(tmp_path):
    with pytest.raises(OptionError, match="no model 'huge': give a path, or one of .*tiny"):
        load_model("huge")
    with pytest.raises(CheckpointError, match="there is no checkpoint .*absent.safetensors"):
        load_model(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_model(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_audio_on_another_device_is_moved(model, minute, weights):
    on_cuda = load_model(weights).cuda()
    audio = minute[None, :40000]
    for given in (audio, audio.cuda()):
        found = get_scene_embeddings(given, on_cuda)
        assert found.device.type == "cuda"
        torch.testing.assert_close(found.cpu(), get_scene_embeddings(audio, model), rtol=0, atol=1e-3)


def test_casts_that_cannot_embed_say_what_to_use(weights, minute):
    model, audio = load_model(weights), minute[None, :9000]
    before = get_scene_embeddings(audio, model)
    casts = [lambda: model.half(), lambda: model.bfloat16(), lambda: model.double()]
    for cast in [*casts, lambda: model.to(torch.float16), lambda: model.to("meta")]:
        with pytest.raises(OptionError, match="precision='bfloat16'|cpu, cuda or mps"):
            cast()
        assert torch.equal(get_scene_embeddings(audio, model.float().to("cpu")), before)


def test_the_default_dtype_does_not_matter(weights, minute):
    audio = minute[None, :20000]
    expected = load_model(weights).embed(audio, 44100), *get_timestamp_embeddings(audio, load_model(weights))
    try:
        torch.set_default_dtype(torch.float64)
        found = load_model(weights).embed(audio, 44100), *get_timestamp_embeddings(audio, load_model(weights))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_serving_and_a_command_import_only_what_they_run():
    code = "import sys, hear_jepa; from hear_jepa.cli import main; hear_jepa.load_model; main(['info'])"
    code += "; print(*sys.modules, file=sys.stderr)"
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    modules, unwanted = (
        set(found.stderr.split()),
        "scipy sklearn matplotlib pandas tensorflow tyro webdataset tensorboard",
    )
    others = {module for command, (module, _) in COMMANDS.items() if command != "info"}
    assert {"hear_jepa.api", "hear_jepa.commands.info"} <= modules
    assert not modules & {*unwanted.split(), *others, "hear_jepa.train", "hear_jepa.evaluation"}
