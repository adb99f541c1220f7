"""Exported models.

* ONNX (run by onnxruntime) and torch.export files give the model's scenes and timestamps to 1e-4 on real audio, for one
  clip and for several, from 80 ms on: within a window, on its border, over several windows.
* So does a model with all that foreign checkpoints bring: rotary positions of both axes, gated layers, more norms,
  bands of magnitudes on another scale.
* The exported arithmetic equals the model's at every hop, with several layers, and with a class token.
"""

from dataclasses import replace

import pytest
import torch
from conftest import SMALL, random_checkpoint

from hear_jepa import Embedder
from hear_jepa.commands.export import SHAPES, ExportedEmbedder, export_model
from hear_jepa.model.front_end import FrontEndConfig

LENGTHS = [1280, 3761, 16000, 33280, 33281, 66560, 100000]
exports = pytest.mark.skipif(not hasattr(SHAPES, "backed_size_oblivious"), reason="this torch is too old to export")


@pytest.fixture(scope="module")
def tiny():
    """Small enough to be exported in seconds."""
    return Embedder(random_checkpoint(replace(SMALL, width=48, depth=1)), hop_ms=80)


@pytest.fixture(scope="module")
def foreign():
    """What a foreign checkpoint may bring, small."""
    positions = {"positions": "rotary-both", "n_freq_patches": 4, "n_time_patches": 40, "patch_frames": 4}
    blocks = {"gated_mlp": True, "qk_norm": True, "patch_norm": True, "class_token": True}
    bands = {"mel_scale": "htk", "spectrum": "magnitude", "log_floor": 1e-5, "log_floor_by": "clamping"}
    front_end = FrontEndConfig(
        sample_rate=24000, n_fft=1024, n_fft_short=512, hop_length=240, n_mels=64, f_max=12000.0, **bands
    )
    config = replace(SMALL, width=48, depth=2, **positions, **blocks)
    return Embedder(random_checkpoint(config, front_end=front_end), hop_ms=20, scene_hop_ms=40)


def expected(model, audio, kind):
    if kind == "scene":
        return (model.scenes(audio),)
    embeddings, timestamps = model.timestamps(audio)
    return embeddings, timestamps[0]


def check(model, minute, exported, kind, atol=1e-4):
    for n_samples in LENGTHS:
        for n_clips in (1, 3):
            audio = torch.stack([minute[9000 * clip :][:n_samples] for clip in range(n_clips)])
            for found, wanted in zip(exported(audio), expected(model, audio, kind), strict=True):
                torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["scene", "timestamps"])
@pytest.mark.parametrize("hop_ms", [10, 40, 160])
def test_the_arithmetic_is_that_of_the_model(minute, kind, hop_ms):
    config = replace(SMALL, class_token=True)
    model = Embedder(random_checkpoint(config), hop_ms=hop_ms, layers=[0, 3], scene_hop_ms=hop_ms)
    graph = ExportedEmbedder(model, kind)

    def exported(audio):
        with torch.no_grad():
            found = graph(audio)
        return (found,) if kind == "scene" else found

    check(model, minute, exported, kind)


@pytest.mark.parametrize(
    ("model", "kind", "atol"),
    [("tiny", "scene", 1e-4), ("foreign", "timestamps", 1e-3)],  # magnitudes near silence lose digits in float32
)
@exports
def test_onnxruntime_gives_what_the_model_gives(tmp_path, request, minute, model, kind, atol):
    model = request.getfixturevalue(model)
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_model(model, tmp_path / "model.onnx", "onnx", kind)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])

    def exported(audio):
        return [torch.from_numpy(output) for output in session.run(None, {"audio": audio.numpy()})]

    check(model, minute, exported, kind, atol)


@exports
def test_torch_export_gives_what_the_model_gives(tmp_path, tiny, minute):
    export_model(tiny, tmp_path / "model.pt2", "torch", "timestamps")
    program = torch.export.load(tmp_path / "model.pt2").module()
    check(tiny, minute, program, "timestamps")
