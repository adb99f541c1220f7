"""A converted checkpoint against its family's own code, layer by layer, on real sound.

    git clone https://github.com/nttcslab/m2d          # then "1. Setup" of its README, without the evaluation
    git clone https://github.com/nttcslab/msm-mae      # then "1. Getting Started" of its README
    git clone https://github.com/SonyCSLParis/audio-representations
    git clone https://github.com/aurianworld/matpac    # and XiaoMi/dasheng, Audio-WestlakeU/audiossl, sizigi/PupuJEPA
    pip install timm einops nnAudio pandas librosa     # in an environment of its own
    pip install lightning hydra-core dora-search easydict           # of audio-representations
    python benchmarks/parity.py m2d m2d
    python benchmarks/parity.py jepa audio-representations
    python benchmarks/parity.py --numbers tests/families.json m2d m2d       # the numbers that the tests expect

The family's code builds each published kind of model; its weights are drawn by name (tests/foreign.py) and
written as the family writes them, converted here, and both embed the same sound of 1, 2.08, 5 and 30 s. Both define the
same thing where sound fills whole columns and is silent for half an analysis window at either end (theirs reflects it
there, or leaves it out), in whole windows (theirs has a shorter last window, or fills it up; ours reaches backwards).
Printed is |ours - theirs| / |theirs| of each layer's columns, the largest over layers, for every kind and duration that
holds something to compare.
"""

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import librosa
import numpy
import torch
import torch.nn.functional as F
import torchaudio
from safetensors.torch import save_file
from torch import Tensor

from hear_jepa import Embedder
from hear_jepa.families import convert
from hear_jepa.families.adapted import Asked

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from foreign import filled, real_sound, whole_columns  # noqa: E402

SECONDS = (1, 2.08, 5, 30)
BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
SMALL = {"embed_dim": 192, "depth": 2, "num_heads": 3}
KEPT = 16  # of so many numbers one is kept for the tests
M2D = [
    "m2d_vit_base-80x608p16x16-220930-mr7",
    "m2d_vit_base-80x200p16x4-230529",
    "m2d_as_vit_base-80x1001p16x16p32k-240413_AS-FT_enconly",
    "m2d_s_vit_base-80x400p80x2-230201",
    "m2d_s_vit_base-80x208p80x4-230201",
    "m2d_clap_vit_base-80x608p16x16-240128",
    "m2d_x_vit_base-80x200p8x16p16k-240514",
]


@dataclass
class Kind:
    """A model of a family: where its weights are, how its own code embeds, and how many frames it takes at once."""

    name: str
    path: Path
    state: dict[str, Tensor]
    encode: Callable[[Tensor], Tensor]  # its own runtime: [1, samples] -> columns [1, T, …]
    layers: Callable[[Tensor], list[Tensor]]  # [1, samples] -> columns [T, rows * D] of every layer
    window_frames: int
    asked: Asked = Asked()
    fills_windows: bool = False  # shorter sound is filled up with numbers that the attention sees

    @property
    def file(self) -> str:
        """Its name, with the folder's where that is the model's."""
        return self.path.name if self.path.parent.name != self.name else f"{self.name}/{self.path.name}"


def jepa(checkout: Path, folder: Path, size: dict) -> Iterator[Kind]:
    """A file of the training module, embedded by the evaluation's wrapper, with the statistics of the training."""
    sys.path.insert(0, str(checkout))
    vit = importlib.import_module("src.models.components.vision_transformer")
    training = importlib.import_module("src.models.m2d_module")
    package = sys.modules["evar"] = ModuleType("evar")  # its own imports every model that it compares
    package.__path__ = [str(checkout / "evar" / "evar")]
    wrapper = importlib.import_module("evar.ar_lightning")
    name = "audio-representations"
    encoder = {"img_size": [80, 208], "in_chans": 1, "patch_size": 16, "flash_attn": True, **size}
    predictor = vit.ViTPredictor([80, 208], 16, size["embed_dim"], embed_dim=32, depth=1, flash_attn=True)
    module = training.M2DModule(vit.ViTEncoder(**encoder), predictor, torch.nn.Identity(), torch.optim.AdamW)
    state = filled(module.state_dict())
    path = folder / name / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": state, "epoch": 299, "global_step": 7}, path)
    trained = {"model": {"encoder": {"_target_": f"{vit.__name__}.ViTEncoder", **encoder}}}
    (folder / name / "config.yaml").write_text(json.dumps(trained))
    window = {"sample_rate": 16000, "n_fft": 400, "window_size": 400, "hop_size": 160}
    bands = {"n_mels": 80, "f_min": 50, "f_max": 8000}
    settings = importlib.import_module("easydict").EasyDict
    served = {"weight_file": str(path), "flat_features": False, "output_layers": [], **window, **bands}
    runtime = wrapper.ARLightning(settings(served)).eval()
    runtime.norm_stats = torch.tensor([-7.0633, 4.1971])

    def layers(audio: Tensor) -> list[Tensor]:
        raw = runtime.encode_frames(audio)[0].T.chunk(size["depth"], dim=1)
        return [*(normalised(layer, 5) for layer in raw[:-1]), raw[-1]]

    yield Kind(name, path, state, lambda audio: runtime.encode_frames(audio).mT, layers, 208)


def msm_mae(checkout: Path, folder: Path, size: dict) -> Iterator[Kind]:
    """With one mean and deviation: the runtime's own are of each batch, and its README advises one for all sound."""
    sys.path.insert(0, str(checkout))
    numpy.float = float  # a name of older versions of NumPy
    models = importlib.import_module("msm_mae.models_mae")
    runtime_of = importlib.import_module("msm_mae.runtime")
    options = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2, "mlp_ratio": 4}
    models.mae_vit_base_patch16x16 = partial(
        models.MaskedAutoencoderViT,
        patch_size=(16, 16),
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        **options,
        **size,
    )
    mean, std = -7.1, 4.2
    for name, class_token in (("80x96p16x16", False), ("80x208p16x16_0422", True)):
        window_frames = int(name[3:].split("p")[0])
        model = models.mae_vit_base_patch16x16(img_size=[80, window_frames], use_cls_token=class_token)
        state = filled(model.state_dict(), kept=("pos_embed",))
        path = folder / name / "checkpoint-100.pth"
        path.parent.mkdir()
        torch.save({"model": state}, path)
        runtime = runtime_of.RuntimeMAE(weight_file=path)

        def layers(audio: Tensor, runtime: torch.nn.Module = runtime) -> list[Tensor]:
            raw = runtime.encode_lms((runtime.to_feature(audio) - mean) / std, return_layers=True)
            return [*(normalised(layer[0], 5) for layer in raw[:-1]), raw[-1][0]]

        asked = Asked(mean=mean, std=std)
        yield Kind(name, path, state, runtime.encode, layers, window_frames, asked, fills_windows=True)


def m2d(checkout: Path, folder: Path, size: dict) -> Iterator[Kind]:
    """Weights by the training code's models, embedded by the portable runtime."""
    sys.path[:0] = [str(checkout / "m2d"), str(checkout / "examples")]
    models, portable = importlib.import_module("models_mae"), importlib.import_module("portable_m2d")
    local = portable.LocalViT
    portable.LocalViT = lambda **options: local(**options | size)
    for name in M2D:
        image, patch, _, kind, _ = portable.parse_sizes_by_name(name)
        options = {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2, "mlp_ratio": 4}
        if "_x_" in name or "_s_" in name or "_clap_" in name:
            options["off_emb_dim"] = size["embed_dim"]
        training = {"m2d": models.M2DViT, "as": models.M2D_AS_ViT, "s": models.M2D_S_ViT, "x": models.M2D_X_ViT}
        training["clap"] = models.M2D_CLAP_ViT
        model = training[kind.split("_vit")[0].removeprefix("m2d_") or "m2d"](
            img_size=image,
            patch_size=patch,
            in_chans=1,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            **options,
            **size,
        )
        state = filled(model.state_dict(), kept=("pos_embed",))
        if "220930" in name:
            del state["norm_stats"]
        path = folder / name / "checkpoint-300.pth"
        path.parent.mkdir()
        arguments = argparse.Namespace(model=kind, input_size=image)
        torch.save({"model": state, "optimizer": {}, "epoch": 300, "args": arguments}, path)
        runtime = portable.PortableM2D(str(path))
        rows = image[0] // patch[0]
        yield Kind(
            name,
            path,
            state,
            runtime.encode,
            partial(hooked, runtime.encode, runtime.backbone.blocks, runtime.backbone.norm, rows, 1),
            image[1],
        )


def matpac(checkout: Path, folder: Path, size: dict) -> Iterator[Kind]:
    """Weights and embeddings by the inference package, which is padded by hand: it has no centred frames."""
    sys.path.insert(0, str(checkout / "inference_matpac"))
    encoder = importlib.import_module("matpac.encoder")
    encoder.encoder_layers_config.__hash__ = object.__hash__  # its default of a dataclass, which Python 3.11 refuses
    own, pieces = importlib.import_module("matpac.model"), importlib.import_module("matpac.utils")
    for name, frames in (("matpac_plus_6s_2048_enconly.pt", 608), ("matpac_plus_as_48_1_map_enconly.pt", 992)):
        config = own.general_config(encoder=encoder.encoder_layers_config(**size), n_t=frames)
        model = own.matpac_wrapper(pull_time_dimension=False, cfg=config).eval()
        positions = pieces.get_2d_sincos_pos_embed(size["embed_dim"], model.grid_size(), cls_token=True)
        model.pos_embed.data.copy_(torch.from_numpy(positions).float()[None])
        state = filled(model.state_dict(), kept=("pos_embed", "window", "fb"))
        model.load_state_dict(state)
        path = folder / name
        torch.save(state, path)

        def encode(audio: Tensor, model: torch.nn.Module = model) -> Tensor:
            return model(audio)[0]

        def layers(audio: Tensor, model: torch.nn.Module = model) -> list[Tensor]:
            raw = list(model(F.pad(audio, (200, 200)))[1][0])
            return [*(normalised(layer, 5) for layer in raw[:-1]), raw[-1]]

        yield Kind(name, path, state, encode, layers, frames)


def dasheng(checkout: Path, folder: Path, size: dict) -> Iterator[Kind]:
    """Without the limit of 120 dB below each clip's loudest point, which is a statistic of the clip."""
    package = sys.modules["dasheng"] = ModuleType("dasheng")  # its own asks for an installed version
    package.__path__ = [str(checkout / "dasheng")]
    torch.Callable = Callable  # a name of older versions of torch
    own = importlib.import_module("dasheng.pretrained.pretrained")
    model = own.Dasheng(top_db=None, **size).eval()
    state = filled(model.state_dict(), kept=("window", "fb"))
    state |= {"init_bn.1.running_mean": 20 * state["init_bn.1.running_mean"].abs() - 25}
    state |= {"init_bn.1.running_var": 300 * state["init_bn.1.running_var"]}
    model.load_state_dict(state)
    path = folder / "dasheng_base.pt"
    torch.save({"model": state, "config": size}, path)

    def encode(audio: Tensor) -> Tensor:
        return model(audio)

    yield Kind("dasheng_base.pt", path, state, encode, partial(hooked, encode, model.blocks, model.norm, 1, 0), 1008)


def atst(checkout: Path, folder: Path, size: dict) -> Iterator[Kind]:
    """Without the limit of 80 dB below each clip's loudest point."""
    sys.path.insert(0, str(checkout))
    masks = "audiossl.methods.atstframe.random_mask"
    sys.modules[masks] = ModuleType(masks)  # of training alone, and it needs fairseq
    transformer = importlib.import_module("audiossl.methods.atstframe.audio_transformer")
    options = {"patch_h": 64, "patch_w": 4, "qkv_bias": False, "norm_layer": partial(torch.nn.LayerNorm, eps=1e-6)}
    model = transformer.FrameAST(**options, **size).eval()
    prefix = "model.teacher.encoder."
    stored = filled({prefix + name: tensor for name, tensor in model.state_dict().items()})
    model.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in stored.items()})
    mel = torchaudio.transforms.MelSpectrogram(
        16000, f_min=60, f_max=7800, hop_length=160, win_length=1024, n_fft=1024, n_mels=64
    )
    decibels = torchaudio.transforms.AmplitudeToDB(stype="power", top_db=None)

    def encode(audio: Tensor) -> Tensor:
        scaled = (decibels(mel(audio)) + 79.6482) / (50.6842 + 79.6482) * 2 - 1
        parts = scaled[:, None].split(1001, dim=-1)
        lengths = [torch.tensor([part.shape[-1]]) for part in parts]
        return torch.cat(
            [model.get_intermediate_layers(*pair, 1, scene=False) for pair in zip(parts, lengths, strict=True)], 1
        )

    path = folder / "atstframe_base.ckpt"
    torch.save({"state_dict": stored, "hyper_parameters": {"arch": "base"}}, path)
    layers = partial(hooked, encode, model.blocks, model.norm_frame, 1, 0)
    yield Kind("atstframe_base.ckpt", path, stored, encode, layers, 1001)


def pupujepa(checkout: Path, folder: Path, size: dict) -> Iterator[Kind]:
    """The teacher, on patches of the trained grid, as its training gives it some of them; log-mel as in its training.

    Its frames are centred half a hop after ours, so it hears the sound half a hop later.
    """
    sys.path.insert(0, str(checkout))
    own = importlib.import_module("model.pupujepa")
    decoder = {"decoder_embed_dim": 64, "decoder_depth": 1, "decoder_num_heads": 1}
    image = {"image_size": [1024, 128], "patch_size": [4, 16], "in_chans": 1, "frequency_first": False}
    blocks = {"mlp_ratio": 4.0, "use_swiglu": True, "qk_norm": True, "layer_scale_init_value": None}
    training = {"mask_ratio": 0.8, "mask_probs": [1.0, 0.0, 0.0], "mask_warmup_start": 0, "mask_warmup_end": 0}
    norms = {"norm_layer": "layer", "drop_path_rate": 0.0, "drop_path_uniform": False}
    settings = argparse.Namespace(**image, **blocks, **norms, **training, **decoder, **size)
    unused = argparse.Namespace(grad_checkpointing_step=None)
    model = own.PupuJEPA(argparse.Namespace(model=settings, train=unused)).eval()
    state = filled(model.state_dict())
    model.load_state_dict(state)
    path = folder / "pupujepa" / "model.safetensors"
    path.parent.mkdir()
    save_file(state, path)
    bands = torch.from_numpy(librosa.filters.mel(sr=24000, n_fft=1024, n_mels=128, fmin=0, fmax=12000))
    rotation = model.rope_encoder.get_embed((256, 8))[None, None]

    def encode(audio: Tensor) -> Tensor:
        padded = F.pad(F.pad(audio, (120, 0)), (392, 392), mode="reflect")
        spectrum = torch.stft(padded, 1024, 240, window=torch.hann_window(1024), center=False, return_complex=True)
        magnitude = (torch.view_as_real(spectrum).square().sum(-1) + 1e-9).sqrt()
        mel = ((bands @ magnitude).clamp(min=1e-5).log() + 4.089994845986366) / (2.0242277159094813 + 1e-8)
        parts = [model.patch_embed(part) for part in mel.transpose(1, 2)[:, None].split(1024, dim=2)]
        return torch.cat([model.teacher(part, rope=rotation[:, :, : part.shape[1]]) for part in parts], dim=1)

    def layers(audio: Tensor) -> list[Tensor]:
        tokens = hooked(encode, model.teacher.blocks, model.teacher.norm, 1, 0, audio)  # time-major
        return [layer.unflatten(0, (-1, 8)).flatten(1) for layer in tokens]

    yield Kind("pupujepa", path, state, encode, layers, 1024)


FAMILIES = {
    "jepa": jepa,
    "msm-mae": msm_mae,
    "m2d": m2d,
    "matpac": matpac,
    "dasheng": dasheng,
    "atst": atst,
    "pupujepa": pupujepa,
}


def normalised(columns: Tensor, rows: int) -> Tensor:
    """A middle layer [T, rows * D] as it is served: each token after a LayerNorm without parameters."""
    tokens = columns.unflatten(-1, (rows, -1))
    return F.layer_norm(tokens, tokens.shape[-1:]).flatten(-2)


def hooked(
    encode: Callable[[Tensor], Tensor],
    blocks: Iterable[torch.nn.Module],
    norm: torch.nn.Module,
    rows: int,
    n_extra: int,
    audio: Tensor,
) -> list[Tensor]:
    """The outputs of every block while their code encodes, and of the last LayerNorm in place of the last block's.

    n_extra: tokens before those of the patches, which are frequency-major, or time-major in a single row.
    """
    outputs: dict[int, list[Tensor]] = {}

    def keep(number: int, _: torch.nn.Module, inputs: tuple, output: Tensor) -> None:
        tokens = output[:, n_extra:].flatten(0, 1).unflatten(0, (rows, -1)).transpose(0, 1)  # [T, rows, D]
        outputs.setdefault(number, []).append(tokens.flatten(1))

    modules = [*list(blocks)[:-1], norm]
    handles = [module.register_forward_hook(partial(keep, number)) for number, module in enumerate(modules)]
    encoded = encode(audio)[0]
    for handle in handles:
        handle.remove()
    layers = [torch.cat(outputs[number]) for number in range(len(modules))]
    layers = [layer[: len(encoded)] for layer in layers]
    assert torch.equal(layers[-1], encoded)
    return [*(normalised(layer, rows) for layer in layers[:-1]), layers[-1]]


def sound_for(model: Embedder, seconds: float) -> Tensor:
    """Of 16 kHz; a model of 32 kHz hears it at double speed, with sound up to its highest band."""
    config = model.log_mel.config
    column = config.hop_length * model.grid.patch_frames
    return real_sound(whole_columns(seconds, model.sample_rate, column), config.n_fft)


def compare(kind: Kind, model: Embedder, sound: Tensor) -> tuple[float, int]:
    """Largest relative difference over layers, and the number of columns compared, which may be none."""
    theirs = torch.stack(kind.layers(sound[None]))  # [L, T, rows * D]
    ours = model.columns(sound[None])[0].unflatten(1, (len(theirs), -1)).transpose(0, 1)
    count, window = theirs.shape[1], model.grid.columns
    if count > window or kind.fills_windows:
        whole = count // window if kind.window_frames % model.grid.patch_frames == 0 else 1
        count = whole * window
    if not count:
        return 0.0, 0
    difference, theirs = (ours[:, :count] - theirs[:, :count]).flatten(1), theirs[:, :count].flatten(1)
    return (difference.norm(dim=1) / theirs.norm(dim=1)).max().item(), count


def expected_numbers(kind: Kind, model: Embedder) -> dict:
    """What tests/test_families.py needs: names and shapes, and a few numbers of their code."""
    theirs = torch.stack(kind.layers(sound_for(model, 1)[None]))[:, :2, ::KEPT]
    return {
        "file": kind.file,
        "shapes": {name: list(tensor.shape) for name, tensor in kind.state.items()},
        "columns": [[[round(x, 4) for x in column] for column in layer] for layer in theirs.tolist()],
    }


def options(description: str | None) -> argparse.ArgumentParser:
    """What names the kinds that `chosen` makes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("checkout", type=Path, help="folder with the family's own code")
    parser.add_argument("--kind", default="", help="part of the names of the kinds to take")
    return parser


def chosen(arguments: argparse.Namespace, folder: str, size: dict) -> Iterator[Kind]:
    """The kinds that a command line names, their files in a folder."""
    kinds = FAMILIES[arguments.family](arguments.checkout.absolute(), Path(folder), size)
    return (kind for kind in kinds if arguments.kind in kind.name)


@torch.no_grad()
def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--numbers", type=Path, help="add the numbers of small models to this file instead")
    arguments = parser.parse_args()
    size = SMALL if arguments.numbers else BASE
    numbers = json.loads(arguments.numbers.read_text()) if arguments.numbers and arguments.numbers.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in chosen(arguments, folder, size):
            checkpoint, _ = convert(kind.path, asked=kind.asked)
            model = Embedder(checkpoint, layers=list(range(1, checkpoint.encoder.depth + 1)))
            for seconds in (1,) if arguments.numbers else SECONDS:
                error, count = compare(kind, model, sound_for(model, seconds))
                if count and arguments.numbers:
                    family = {"family": checkpoint.provenance["family"]}
                    numbers[kind.name] = family | expected_numbers(kind, model)
                if count:
                    print(f"| {kind.name} | {seconds} s | {count} | {error:.1e} |", flush=True)
            kind.path.unlink()
    if arguments.numbers:
        arguments.numbers.write_text(json.dumps(numbers, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
