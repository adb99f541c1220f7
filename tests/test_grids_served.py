"""Claims that hold for every patch shape, rate, Fourier window and number of bands that a checkpoint may name:

* a clip alone and the same clip in a batch embed alike; a stream gives what the whole recording gives;
* any length embeds, from one sample on, also audio shorter than a patch; silence embeds finitely;
* timestamps and embeddings have the sizes that the model tells, and scenes are their pooled columns;
* a click moves the embedding at its own time, and not elsewhere;
* what is exported computes what the model computes.
"""

from dataclasses import replace

import pytest
import torch
from conftest import random_checkpoint

from hear_jepa import Embedder
from hear_jepa.commands.export import ExportedEmbedder
from hear_jepa.families import pupujepa
from hear_jepa.model.checkpoint import ServedConfig, load_checkpoint, save_checkpoint
from hear_jepa.model.front_end import FrontEndConfig
from hear_jepa.model.vit import ViTConfig

SMALL = ViTConfig(width=32, depth=2, heads=2)
EXACT = {"rtol": 0, "atol": 1e-5}
GRIDS = {
    "16x16": (SMALL, FrontEndConfig()),
    "16x4": (replace(SMALL, patch_frames=4, n_time_patches=52), FrontEndConfig(n_fft=1024)),
    "80x4": (replace(SMALL, patch_mels=80, patch_frames=4, n_freq_patches=1, n_time_patches=52), FrontEndConfig()),
    "80x2": (replace(SMALL, patch_mels=80, patch_frames=2, n_freq_patches=1, n_time_patches=40), FrontEndConfig()),
    "64x4, decibels": (
        replace(SMALL, patch_mels=64, patch_frames=4, n_freq_patches=1, n_time_patches=250),
        FrontEndConfig(n_fft=512, n_mels=64, f_min=0.0, mel_scale="htk", log_floor=1e-10, log_floor_by="clamping"),
    ),
    "16x16, windows of 6 s, class token": (replace(SMALL, n_time_patches=38, class_token=True), FrontEndConfig()),
    "32 kHz, 80 bands": (
        SMALL,
        FrontEndConfig(sample_rate=32000, n_fft=800, hop_length=320, f_max=16000.0),
    ),
    "8x16": (
        replace(SMALL, patch_mels=8, n_freq_patches=8, positions="rotary-time"),
        FrontEndConfig(n_mels=64, n_fft=2048),
    ),
    "two windows": (
        replace(SMALL, patch_mels=32, n_freq_patches=4, positions="rotary-time"),
        FrontEndConfig(n_mels=128, n_fft=2048, n_fft_short=512),
    ),
    "16x4, 24 kHz, rotary in both": (
        replace(
            SMALL,
            patch_frames=4,
            n_freq_patches=8,
            n_time_patches=64,
            positions="rotary-both",
            gated_mlp=True,
            qk_norm=True,
            patch_norm=True,
        ),
        pupujepa.FRONT_END,
    ),
    "32 kHz": (
        replace(SMALL, n_freq_patches=8, positions="rotary-time"),
        FrontEndConfig(sample_rate=32000, hop_length=320, n_mels=128, n_fft=1024, f_max=16000.0),
    ),
}


@pytest.fixture(params=GRIDS)
def model(request, tmp_path):
    encoder, front_end = GRIDS[request.param]
    column_ms = encoder.patch_frames * 10
    served = ServedConfig(layers=(1, 2), scene_hop_ms=column_ms, pooling="mean+std")
    checkpoint = random_checkpoint(encoder, front_end=front_end, served=served)
    save_checkpoint(tmp_path / "model.safetensors", checkpoint)
    return Embedder(load_checkpoint(tmp_path / "model.safetensors"))


def test_alone_in_a_batch_and_as_a_stream(model, minute):
    audio = minute[: 6 * model.sample_rate].view(2, -1)
    embeddings, centres = model.timestamps(audio)
    alone, _ = model.timestamps(audio[1:])
    torch.testing.assert_close(embeddings[1:], alone, **EXACT)
    pieces = list(model.embed_stream(audio[1].split(7000)))
    torch.testing.assert_close(torch.cat([piece for piece, _ in pieces]), alone[0], **EXACT)
    assert torch.cat([times for _, times in pieces]).float().equal(centres[1])
    assert (centres.diff() == model.hop_ms).all() and model.hop_ms <= 50


def test_any_length_and_silence(model, minute):
    for n_samples in (1, 100, 700, 2000, 5 * model.sample_rate):
        embeddings, centres = model.timestamps(minute[None, :n_samples])
        scene = model.scenes(minute[None, :n_samples])
        assert embeddings.shape == (1, centres.shape[1], model.timestamp_embedding_size)
        assert scene.shape == (1, model.scene_embedding_size)
        columns = model.columns(minute[None, :n_samples])
        pooled = torch.cat([columns.mean(1), columns.std(1, correction=0)], dim=1)
        torch.testing.assert_close(scene, pooled, **EXACT)
    assert model.scenes(torch.zeros(1, 3000)).isfinite().all()


def test_a_click_moves_the_embedding_at_its_time(model):
    torch.manual_seed(0)
    quiet = 1e-3 * torch.randn(1, 3 * model.sample_rate)
    clicked = quiet.clone()
    clicked[0, 2 * model.sample_rate + 8 : 2 * model.sample_rate + 40] += 0.9
    before, centres = model.timestamps(quiet)
    change = (model.timestamps(clicked)[0] - before)[0].norm(dim=1)
    touched = centres[0][change > 0.5 * change.max()]
    reach = (model.grid.column_ms + 1000 * model.log_mel.config.n_fft / model.sample_rate) / 2
    assert (touched - 2000).abs().max() <= reach + model.hop_ms


@torch.no_grad()
def test_the_exported_arithmetic_is_that_of_the_model(model, minute):
    graph = ExportedEmbedder(model, "timestamps")
    for n_samples in (model.sample_rate, 4 * model.sample_rate + 1):
        audio = minute[: 2 * n_samples].view(2, -1)
        embeddings, times = graph(audio)
        expected, centres = model.timestamps(audio)
        torch.testing.assert_close(embeddings, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(times, centres[0])
