"""Claims about foreign checkpoints:

* every published kind of model, its names and shapes as its own code writes them and its weights drawn by name, is
  recognised, converts, and embeds real sound as its own code does: numbers kept in tests/families.json, layer by
  layer, made by benchmarks/parity.py;
* the paper's layout and M2D's embed as the definition says: recomputed below with plain tensor operations in *their*
  token order, from the waveform to the mean over time;
* wrappers of names, half precision, optimiser states and options beside change nothing; what is left out is told;
* a file with another's name, of another order of patches, with a tensor missing or too many is refused by name; what no
  file tells is asked for; licence and origin are in the header;
* `load_model` says what a foreign file is and how to convert it; a pickle that needs code is refused and not run.
"""

import argparse
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import drawn, filled, real_sound, whole_columns
from safetensors.torch import save_file

from hear_jepa import Embedder, get_scene_embeddings, load_model
from hear_jepa.cli import main
from hear_jepa.errors import CheckpointError, OptionError
from hear_jepa.families import convert
from hear_jepa.families.adapted import Asked
from hear_jepa.model.front_end import LogMel
from hear_jepa.model.vit import sine_cosine_positions

WIDTH, HEADS, DEPTH = 192, 3, 2
NUMBERS = json.loads((Path(__file__).parent / "families.json").read_text())
M2D = "m2d_vit_base-80x608p16x16-220930-mr7"
MATPAC = "matpac_plus_6s_2048_enconly.pt"
MSM_MAE = "80x96p16x16"
PAPER, PUPUJEPA = "audio-representations", "pupujepa"
OF_EACH_FAMILY = (PAPER, M2D, MATPAC, "dasheng_base.pt", "atstframe_base.ckpt", PUPUJEPA)


def fixed_positions(shape: list[int], rows: int, class_token: int = 1) -> torch.Tensor:
    """Sines and cosines [1, class_token + rows * T, D], frequency-major, none for the class token."""
    positions = sine_cosine_positions(rows, (shape[1] - class_token) // rows, shape[2])
    positions = positions.unflatten(0, (-1, rows)).transpose(0, 1).flatten(0, 1)
    return torch.cat([torch.zeros(class_token, shape[2]), positions])[None]


def state_of(kind: str) -> dict[str, torch.Tensor]:
    """The weights that benchmarks/parity.py drew for it."""
    shapes = NUMBERS[kind]["shapes"]
    state = filled({name: torch.zeros(shape) for name, shape in shapes.items()})
    if "pos_embed" in shapes:
        rows = 80 // shapes["patch_embed.proj.weight"][2]
        state["pos_embed"] = fixed_positions(shapes["pos_embed"], rows, int("cls_token" in shapes))
    if "init_bn.1.running_var" in shapes:
        state["init_bn.1.running_mean"] = 20 * state["init_bn.1.running_mean"].abs() - 25
        state["init_bn.1.running_var"] *= 300
    return state


def write(tmp_path, contents, name=f"{M2D}/checkpoint-300.pth"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    save_file(contents, path) if path.suffix == ".safetensors" else torch.save(contents, path)
    return path


def layers_of(path, asked=None):
    checkpoint, _ = convert(path, asked=asked)
    model = Embedder(checkpoint, layers=[1, 2])
    config = model.log_mel.config
    column = config.hop_length * model.grid.patch_frames
    sound = real_sound(whole_columns(1, model.sample_rate, column), config.n_fft)
    return model.columns(sound[None])[0].unflatten(1, (2, -1)).transpose(0, 1)  # [layers, T, rows * D]


@pytest.mark.parametrize("kind", NUMBERS)
def test_every_kind_embeds_as_its_own_code(tmp_path, kind):
    path = write(tmp_path, state_of(kind), NUMBERS[kind]["file"])
    asked = Asked(mean=-7.1, std=4.2) if kind == MSM_MAE else None
    columns = layers_of(path, asked)
    expected = torch.tensor(NUMBERS[kind]["columns"])
    assert expected.abs().mean() > 0.1
    torch.testing.assert_close(columns[:, :2, ::16], expected, rtol=0, atol=5e-4)
    assert convert(path, asked=asked)[0].provenance["family"] == NUMBERS[kind]["family"]


WRAPPED = {
    "as it is": lambda state: state,
    "under model, beside an optimiser and options": lambda state: {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]},
        "args": argparse.Namespace(model="m2d", path=Path("data")),
        "epoch": 300,
    },
    "DistributedDataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "torch.compile": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "its runtime": lambda state: {f"backbone.{name}": tensor for name, tensor in state.items()},
    "fine-tuned by EVAR": lambda state: {
        **{f"module.ar.runtime.backbone.{name}": tensor for name, tensor in state.items()},
        "module.head.mlp.mlp.0.weight": torch.zeros(5, WIDTH),
        "module.ar.runtime.to_spec.mel_basis": torch.zeros(80, 201),
    },
    "with a head and projections": lambda state: (
        state | {"head.weight": torch.zeros(5), "audio_proj.0.bias": torch.ones(2)}
    ),
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_wrappings_change_nothing(tmp_path, wrapping):
    path = write(tmp_path, WRAPPED[wrapping](state_of(M2D)))
    torch.testing.assert_close(layers_of(path)[:, :2, ::16], torch.tensor(NUMBERS[M2D]["columns"]), rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    ("kind", "dtype"), [(M2D, torch.bfloat16), *((kind, torch.float16) for kind in OF_EACH_FAMILY)]
)
def test_half_precision_is_read(tmp_path, dtype, kind):
    state = {name: tensor.to(dtype) for name, tensor in state_of(kind).items()}
    path = write(tmp_path, state, NUMBERS[kind]["file"])
    assert {tensor.dtype for tensor in convert(path)[0].weights.values()} == {torch.float32}
    expected = torch.tensor(NUMBERS[kind]["columns"])
    assert (layers_of(path)[:, :2, ::16] - expected).norm() < 0.05 * expected.norm()


def test_a_model_with_two_encoders_serves_the_teacher_unless_asked(tmp_path):
    state = state_of("atstframe_base.ckpt")
    student = {name.replace("teacher", "student"): 2 * tensor for name, tensor in state.items()}
    path = write(
        tmp_path, {"state_dict": state | student | {"model.student.predictor.0.weight": torch.zeros(3)}}, "a.ckpt"
    )
    checkpoint, adapted = convert(path)
    assert adapted.left_out == ["student", "mask_embed"] and checkpoint.served.encoder == "target"
    other, _ = convert(path, asked=Asked(encoder="context"))
    assert other.weights["norm.bias"].equal(2 * checkpoint.weights["norm.bias"])


def transposed(state):
    class_token, positions = state["pos_embed"].split([1, 190], dim=1)
    positions = positions.unflatten(1, (5, 38)).transpose(1, 2).flatten(1, 2)
    state["pos_embed"] = torch.cat([class_token, positions], dim=1)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (M2D, transposed, "its positions are not those of 5 rows × 38 columns"),
        (M2D, lambda s: s.update({"pos_embed": torch.zeros(1, 193, WIDTH)}), "are not of 5 rows"),
        (M2D, lambda s: s.update({"patch_embed.proj.weight": torch.zeros(WIDTH, 3, 16, 16)}), "not of one channel"),
        (M2D, lambda s: s.update({"patch_embed.proj.weight": torch.zeros(WIDTH, 1, 16, 4)}), "name of another file"),
        (M2D, lambda s: s.pop("blocks.1.attn.proj.bias"), "blocks.1.attn.proj.bias is absent"),
        (M2D, lambda s: s.pop("patch_embed.proj.weight"), "of no known family .* --family"),
        (
            M2D,
            lambda s: s.update({"classifier.weight": torch.zeros(3)}),
            r"classifier.weight is \(3,\), not part of it",
        ),
        (M2D, lambda s: s.update({"norm.weight": torch.zeros(3)}), r"norm.weight is \(3,\)"),
        (MATPAC, lambda s: s.pop("cls_token"), "lacks cls_token"),
        (MATPAC, lambda s: s.pop("student_encoder.blocks.0.norm1.bias"), "blocks.0.norm1.bias is absent"),
        ("dasheng_base.pt", lambda s: s.pop("init_bn.1.running_var"), "lacks running_var"),
        ("dasheng_base.pt", lambda s: s.update({"cls_token": s["norm.bias"]}), "cls_token is .*, not part of it"),
        (
            "atstframe_base.ckpt",
            lambda s: s.update({"model.teacher.encoder.new.bias": torch.zeros(1)}),
            "no known use: new",
        ),
        ("atstframe_base.ckpt", lambda s: s.pop("model.teacher.encoder.norm_frame.bias"), "norm.bias is absent"),
        (MATPAC, lambda s: s.update({"encoder.pos_embed": s["pos_embed"]}), "encoder.pos_embed is .*, not part of it"),
        (PAPER, lambda s: s.pop("encoder.blocks.1.mlp.fc1.bias"), "blocks.1.mlp.fc1.bias is absent"),
        (PAPER, lambda s: s.update({"encoder.head.weight": torch.zeros(3)}), r"head.weight is \(3,\), not part of it"),
        (PAPER, lambda s: s.update({"teacher.head": torch.zeros(3)}), "1 tensors of no known use: teacher.head"),
        (PAPER, lambda s: s.update({"encoder.pos_embed": torch.zeros(1, 64, 192)}), "are not 4-D"),
        (PAPER, lambda s: s.update({"encoder.pos_embed": torch.zeros(1, 5, 1, 192)}), "relative or rotary"),
        (PUPUJEPA, lambda s: s.pop("teacher.blocks.1.attn.k_norm.bias"), "blocks.1.attn.k_norm.bias is absent"),
        (PUPUJEPA, lambda s: s.pop("patch_embed.norm_layer.bias"), "patch_embed.norm.bias is absent"),
        (PUPUJEPA, lambda s: s.update({"head.weight": torch.zeros(3)}), "no known use: head.weight"),
        (PUPUJEPA, lambda s: s.update({"patch_embed.proj.weight": torch.zeros(192, 1, 16, 4)}), "are not PupuJEPA's"),
    ],
)
def test_loading_is_strict(tmp_path, kind, change, message):
    state = state_of(kind)
    change(state)
    with pytest.raises(CheckpointError, match=message):
        convert(write(tmp_path, state, NUMBERS[kind]["file"]))


def test_the_tensors_tell_the_family_and_not_the_name(tmp_path):
    path = write(tmp_path, state_of(MATPAC))
    checkpoint, _ = convert(path)
    assert checkpoint.provenance["family"] == "matpac"
    for wrong in ("m2d", "jepa", "dasheng", "atst", "pupujepa"):
        with pytest.raises(CheckpointError, match="is absent|not part of it|of no known use|lacks|its patches are not"):
            convert(path, wrong)
    both = state_of(M2D) | {name: tensor for name, tensor in jepa_state().items() if name.startswith("encoder.")}
    with pytest.raises(CheckpointError, match="could be of jepa or m2d: say which with --family"):
        convert(write(tmp_path, both))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("encoder.pos_embed", "encoder.blocks.0.attn.Wqkv.weight"),
            "of Audio-JEPA .*, which is not served: its frames are 19.53125 ms apart",
        ),
        (
            ("model.modality_encoders.IMAGE.local_encoder.proj.weight", "model.blocks.0.attn.qkv.weight"),
            "of EAT, which is not served: its blocks normalise after the residual",
        ),
    ],
)
def test_families_that_are_not_served_are_named_with_the_reason(tmp_path, names, message):
    path = write(tmp_path, {"state_dict": {name: torch.zeros(3) for name in names}}, "last.ckpt")
    with pytest.raises(CheckpointError, match=message):
        convert(path)
    with pytest.raises(CheckpointError, match="which is not served"):
        load_model(path)


def test_what_no_file_tells_is_asked_for(tmp_path):
    anonymous = write(tmp_path, state_of(M2D), "some.pth")
    with pytest.raises(OptionError, match="say --sample-rate 16000 or 32000"):
        convert(anonymous)
    with pytest.raises(OptionError, match="say --mean and --std"):
        convert(anonymous, asked=Asked(sample_rate=16000))
    with pytest.raises(OptionError, match="--mean and --std go together"):
        convert(anonymous, asked=Asked(sample_rate=16000, mean=-6.0))
    with pytest.raises(OptionError, match="--sample-rate is 44100"):
        convert(anonymous, asked=Asked(sample_rate=44100, mean=-6.0, std=4.0))
    checkpoint, adapted = convert(anonymous, asked=Asked(sample_rate=32000, mean=-6.0, std=4.0))
    assert checkpoint.grid.sample_rate == 32000 and checkpoint.front_end.mean == -6.0
    assert adapted.notes[0] == "32000 Hz: as asked"
    path = write(tmp_path, state_of(MATPAC), MATPAC)
    with pytest.raises(OptionError, match="--sample-rate is 32000: .* hears 16000 Hz"):
        convert(path, asked=Asked(sample_rate=32000))
    with pytest.raises(OptionError, match="--encoder is an option of the paper's files"):
        convert(anonymous, asked=Asked(encoder="target"))
    for heads in (0, 5):
        with pytest.raises(OptionError, match=f"--heads is {heads}: the width 192"):
            convert(write(tmp_path, state_of(M2D)), asked=Asked(heads=heads))
    narrow = {name: tensor[..., :96] for name, tensor in state_of(M2D).items()}
    narrow["pos_embed"] = fixed_positions([1, 191, 96], 5)
    with pytest.raises(OptionError, match="--heads.*width of 96"):
        convert(write(tmp_path, narrow))
    assert convert(write(tmp_path, state_of(M2D)), asked=Asked(heads=6))[0].encoder.heads == 6


def test_what_is_found_is_printed_and_kept(tmp_path, capsys):
    source, out = write(tmp_path, state_of(M2D)), tmp_path / "ours.safetensors"
    assert main(["convert", str(source), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for part in (
        f"{M2D}/checkpoint-300.pth: M2D or MSM-MAE (--family m2d)",
        "patches: 16 bands × 16 frames, windows of 38 columns, 6.08 s",
        "mean -7.1, standard deviation 4.2: those of M2D's models of 2022",
        "left out, of no use in serving: decoder_",
        "licence of the weights: NTT software license",
    ):
        assert part in printed
    assert main(["info", str(out)]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["provenance"]["converted_from"] == f"{M2D}/checkpoint-300.pth"
    assert len(described["provenance"]["source_sha256"]) == 64
    assert described["provenance"]["origin"].endswith("nttcslab/m2d") and "NTT" in described["licence"]
    assert main(["convert", str(source), "--out", str(out), "--licence", "mine"]) == 0
    assert "licence of the weights: mine" in capsys.readouterr().out
    assert main(["convert", str(source), "--out", "ours.pth"]) == 2


def test_load_model_says_what_a_foreign_file_is(tmp_path):
    path = write(tmp_path, {"model": state_of(M2D), "args": argparse.Namespace()})
    with pytest.raises(CheckpointError, match=r"checkpoint of M2D or MSM-MAE: .*`hear-jepa convert .*300.pth --out"):
        load_model(path)
    path = tmp_path / "matpac.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state_of(MATPAC).items()}, path)
    with pytest.raises(CheckpointError, match="safetensors file .*checkpoint of MATPAC or MATPAC.*hear-jepa convert"):
        load_model(path)
    assert convert(path)[0].provenance["family"] == "matpac"
    path = write(tmp_path, {"state_dict": {"layer.weight": torch.zeros(3)}}, "other.ckpt")
    with pytest.raises(CheckpointError, match="not one of hear_jepa yet: turn it"):
        load_model(path)


# ---------------------------------------------------------------- by the definition


def encoder_tensors(seed: int) -> dict[str, torch.Tensor]:
    """The tensors of an encoder, as all of these families name them, but for positions and class token."""
    shapes = NUMBERS[M2D]["shapes"]
    names = [name for name in shapes if name.startswith(("patch_embed.", "blocks.", "norm."))]
    return {name: drawn(f"{name}{seed}", tuple(shapes[name])) + ("norm" in name and "weight" in name) for name in names}


def jepa_state() -> dict[str, torch.Tensor]:
    state = {"predictor.mask_token": torch.zeros(1, 1, 512), "predictor.blocks.0.norm1.weight": torch.ones(512)}
    for seed, prefix in enumerate(("encoder.", "target_encoder.")):
        tensors = encoder_tensors(seed) | {"pos_embed": positions(seed, 1, 5, 13, WIDTH)}
        state |= {prefix + name: tensor for name, tensor in tensors.items()}
    return state


def positions(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 100))


def layer_norm(x, weight, bias, eps):
    mean, variance = x.mean(-1, keepdim=True), ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def by_definition(audio, tensors, pos_embed, class_token, eps, mean, std):
    """Scene embedding of 1-D audio of whole windows, in frequency-major token order and float64."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    padded = np.pad(audio.double().numpy(), 200)
    power = np.abs(np.fft.rfft([padded[i : i + 400] * window for i in range(0, len(audio), 160)])) ** 2
    mel = torch.from_numpy(power) @ LogMel().power.mel.mel_basis.double().T  # [frames, 80]
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


@pytest.mark.parametrize("encoder, seed, prefix", [(None, 0, "encoder."), ("target", 1, "target_encoder.")])
def test_jepa_layout_embeds_by_definition(tmp_path, minute, capsys, encoder, seed, prefix):
    source = write(tmp_path, {"state_dict": jepa_state(), "epoch": 299, "global_step": 7}, "foreign.ckpt")
    out = tmp_path / "ours.safetensors"
    assert main(["convert", str(source), "--out", str(out), *(["--encoder", encoder] if encoder else [])]) == 0
    other = "encoder" if encoder else "target_encoder"
    assert f"left out, of no use in serving: {', '.join(sorted([other, 'predictor']))}" in capsys.readouterr().out
    audio = minute[:66560]  # two windows
    tensors, pos_embed = encoder_tensors(seed), positions(seed, 1, 5, 13, WIDTH).view(65, WIDTH)
    expected = by_definition(audio, tensors, pos_embed, None, 1e-5, -7.0633, 4.1971)
    model = load_model(out)
    torch.testing.assert_close(get_scene_embeddings(audio[None], model)[0], expected, rtol=0, atol=2e-4)


def test_m2d_layout_embeds_by_definition(tmp_path, minute):
    place = positions(6, 1, 1, WIDTH)  # of the class token: its own code has zeros there
    pos_embed = fixed_positions([1, 66, WIDTH], 5) + 0.1 * positions(5, 1, 66, WIDTH)
    state = encoder_tensors(5) | {"cls_token": place, "pos_embed": pos_embed}
    source, out = write(tmp_path, state, "m2d_vit_base-80x208p16x16/a.pth"), tmp_path / "ours.safetensors"
    assert main(["convert", str(source), "--out", str(out), "--mean", "-6", "--std", "4"]) == 0
    expected = by_definition(
        minute[:33280], encoder_tensors(5), pos_embed[0, 1:], place[0] + pos_embed[0, :1], 1e-6, -6.0, 4.0
    )
    scene = get_scene_embeddings(minute[None, :33280], load_model(out))[0]
    torch.testing.assert_close(scene, expected, rtol=0, atol=2e-4)


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_a_pickle_that_needs_code_is_refused_and_not_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = write(tmp_path, {"state_dict": jepa_state(), "hyper_parameters": Bomb()}, "foreign.ckpt")
    assert main(["convert", str(source), "--out", "out.safetensors"]) == 2
    assert "would need the code of its pickle" in capsys.readouterr().err
    assert os.listdir(tmp_path) == [source.name]


def test_damaged_and_other_files(tmp_path):
    source = write(tmp_path, {"state_dict": jepa_state()}, "foreign.ckpt")
    source.write_bytes(source.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        convert(source)
    with pytest.raises(CheckpointError, match="there is no file"):
        convert(tmp_path / "absent.ckpt")
    with pytest.raises(CheckpointError, match="holds no state_dict"):
        convert(write(tmp_path, {"epoch": 3}, "e.ckpt"))
