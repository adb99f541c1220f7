"""Claims about foreign checkpoints:

* a file in the paper's layout and one in M2D's, made here tensor by tensor, convert, and embed as the definition says:
  recomputed below with plain tensor operations in *their* token order, from the waveform to the mean over time;
* either encoder of a jepa file can be had; what is left out is told; nothing else is dropped: unknown and missing
  tensors, other patch sizes and unclear numbers of heads are refused;
* a pickle that needs code is refused and not run, a damaged file has its message.
"""

import math
import os

import numpy as np
import pytest
import torch

from hear_jepa import get_scene_embeddings, load_model
from hear_jepa.cli import main
from hear_jepa.commands.convert import convert
from hear_jepa.errors import CheckpointError, OptionError
from hear_jepa.model.front_end import LogMel

WIDTH, HEADS, DEPTH = 192, 3, 2


def encoder_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator) * 0.06

    tensors = {"patch_embed.proj.weight": draw(WIDTH, 1, 16, 16), "patch_embed.proj.bias": draw(WIDTH)}
    for number in range(DEPTH):
        block = f"blocks.{number}"
        for norm in ("norm1", "norm2"):
            tensors |= {f"{block}.{norm}.weight": 1 + draw(WIDTH), f"{block}.{norm}.bias": draw(WIDTH)}
        for name, rows, columns in (
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            tensors |= {f"{block}.{name}.weight": draw(rows, columns), f"{block}.{name}.bias": draw(rows)}
    return tensors | {"norm.weight": 1 + draw(WIDTH), "norm.bias": draw(WIDTH)}


def positions(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 100))


def jepa_state() -> dict[str, torch.Tensor]:
    state = {"predictor.mask_token": torch.zeros(1, 1, 512), "predictor.blocks.0.norm1.weight": torch.ones(512)}
    for seed, prefix in enumerate(("encoder.", "target_encoder.")):
        tensors = encoder_tensors(seed) | {"pos_embed": positions(seed, 1, 5, 13, WIDTH)}
        state |= {prefix + name: tensor for name, tensor in tensors.items()}
    return state


def m2d_state() -> dict[str, torch.Tensor]:
    return encoder_tensors(5) | {
        "cls_token": positions(6, 1, 1, WIDTH),
        "pos_embed": positions(5, 1, 1 + 5 * 13, WIDTH),
        "decoder_pos_embed": torch.zeros(1, 66, 512),
        "decoder_blocks.0.norm1.weight": torch.ones(512),
        "mask_token": torch.zeros(1, 1, 512),
        "target_blocks.0.norm1.weight": torch.ones(WIDTH),
    }


def layer_norm(x, weight, bias, eps):
    mean, variance = x.mean(-1, keepdim=True), ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def by_definition(audio, tensors, pos_embed, class_token, eps, mean, std):
    """Scene embedding of 1-D audio of whole windows, in frequency-major token order and float64."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    padded = np.pad(audio.double().numpy(), 200)
    power = np.abs(np.fft.rfft([padded[i : i + 400] * window for i in range(0, len(audio), 160)])) ** 2
    mel = torch.from_numpy(power) @ LogMel().mel.mel_basis.double().T  # [frames, 80]
    spectrogram = (((mel + torch.finfo(torch.float32).eps).log() - mean) / std).T
    columns = []
    for start in range(0, spectrogram.shape[1], 208):
        patches = [
            (spectrogram[16 * f : 16 * f + 16, start + 16 * t : start + 16 * t + 16] * kernel).sum()
            for f in range(5)
            for t in range(13)
            for kernel in w["patch_embed.proj.weight"][:, 0]
        ]
        x = torch.stack(patches).view(65, WIDTH) + w["patch_embed.proj.bias"] + pos_embed.double()
        if class_token is not None:
            x = torch.cat([class_token.double(), x])
        for number in range(DEPTH):
            b = {name.split(".", 2)[2]: tensor for name, tensor in w.items() if name.startswith(f"blocks.{number}.")}
            h = layer_norm(x, b["norm1.weight"], b["norm1.bias"], eps) @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
            q, k, v = h.view(len(x), 3, HEADS, WIDTH // HEADS).permute(1, 2, 0, 3)
            attention = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(WIDTH / HEADS), -1) @ v
            x = x + attention.transpose(0, 1).reshape(len(x), WIDTH) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
            h = layer_norm(x, b["norm2.weight"], b["norm2.bias"], eps) @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
            h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
            x = x + h @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
        x = layer_norm(x, w["norm.weight"], w["norm.bias"], eps)[-65:].view(5, 13, WIDTH)
        columns += [x[:, t].flatten() for t in range(13)]
    return torch.stack(columns).mean(0).float()


def write(tmp_path, contents, name="foreign.ckpt"):
    torch.save(contents, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("encoder, seed, prefix", [(None, 0, "encoder."), ("target", 1, "target_encoder.")])
def test_jepa_layout_embeds_by_definition(tmp_path, minute, capsys, encoder, seed, prefix):
    source = write(tmp_path, {"state_dict": jepa_state(), "epoch": 299, "global_step": 7})
    out = tmp_path / "ours.safetensors"
    assert main(["convert", str(source), str(out), *(["--encoder", encoder] if encoder else [])]) == 0
    other = "encoder" if encoder else "target_encoder"
    assert f"left out, of no use in serving: {', '.join(sorted([other, 'predictor']))}" in capsys.readouterr().out
    audio = minute[:66560]  # two windows
    tensors, pos_embed = encoder_tensors(seed), positions(seed, 1, 5, 13, WIDTH).view(65, WIDTH)
    expected = by_definition(audio, tensors, pos_embed, None, 1e-5, -7.0633, 4.1971)
    model = load_model(out)
    torch.testing.assert_close(get_scene_embeddings(audio[None], model)[0], expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("contents", [m2d_state(), {"model": m2d_state()}])
def test_m2d_layout_embeds_by_definition(tmp_path, minute, contents):
    out = tmp_path / "ours.safetensors"
    assert main(["convert", str(write(tmp_path, contents, "m2d.pth")), str(out), "--mean", "-6", "--std", "4"]) == 0
    audio, pos_embed = minute[:33280], positions(5, 1, 66, WIDTH)[0]
    class_token = positions(6, 1, 1, WIDTH)[0] + pos_embed[:1]
    expected = by_definition(audio, encoder_tensors(5), pos_embed[1:], class_token, 1e-6, -6.0, 4.0)
    torch.testing.assert_close(get_scene_embeddings(audio[None], load_model(out))[0], expected, rtol=0, atol=2e-4)


def test_statistics_of_an_m2d_file_are_taken(tmp_path):
    source = write(tmp_path, m2d_state() | {"norm_stats": torch.tensor([-6.5, 3.5])})
    checkpoint, left_out = convert(source)
    assert (checkpoint.front_end.mean, checkpoint.front_end.std) == (-6.5, 3.5)
    assert left_out == ["decoder_blocks", "decoder_pos_embed", "mask_token", "target_blocks"]
    assert checkpoint.provenance["converted_from"] == "foreign.ckpt" and not checkpoint.untrained


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("encoder.blocks.1.attn.proj.bias"), "blocks.1.attn.proj.bias is absent"),
        (lambda s: s.update({"encoder.head.weight": torch.zeros(3)}), r"head.weight is \(3,\), not part of it"),
        (lambda s: s.update({"teacher.head": torch.zeros(3)}), "1 tensors of no known use: teacher.head"),
        (lambda s: s.update({"encoder.norm.weight": torch.zeros(3)}), r"norm.weight is \(3,\)"),
        (lambda s: s.update({"encoder.patch_embed.proj.weight": torch.zeros(192, 1, 16, 4)}), "only 16×16"),
        (lambda s: s.update({"encoder.pos_embed": torch.zeros(1, 64, 192)}), "5 frequency patches"),
        (lambda s: [s.pop(name) for name in list(s) if "encoder" in name], "neither|of neither layout"),
    ],
)
def test_loading_is_strict(tmp_path, change, message):
    state = jepa_state()
    change(state)
    with pytest.raises(CheckpointError, match=message):
        convert(write(tmp_path, {"state_dict": state}))


def test_heads_that_the_width_does_not_tell(tmp_path):
    state = {name: tensor[..., :96] for name, tensor in m2d_state().items()}
    with pytest.raises(OptionError, match="--heads.*width of 96"):
        convert(write(tmp_path, state))
    with pytest.raises(OptionError, match="option of the jepa layout"):
        convert(write(tmp_path, m2d_state()), encoder="target")
    assert convert(write(tmp_path, m2d_state()), heads=6)[0].encoder.heads == 6
    for heads in (0, 5):
        with pytest.raises(OptionError, match=f"--heads is {heads}: the width 192"):
            convert(write(tmp_path, m2d_state()), heads=heads)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_a_pickle_that_needs_code_is_refused_and_not_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path, {"state_dict": jepa_state(), "hyper_parameters": Bomb()})
    assert main(["convert", str(source), "out.safetensors"]) == 2
    assert "would need the code of its pickle" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [source.name]


def test_damaged_and_other_files(tmp_path):
    source = write(tmp_path, {"state_dict": jepa_state()})
    source.write_bytes(source.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        convert(source)
    with pytest.raises(CheckpointError, match="there is no file"):
        convert(tmp_path / "absent.ckpt")
    with pytest.raises(CheckpointError, match="holds no state_dict"):
        convert(write(tmp_path, {"epoch": 3}))
