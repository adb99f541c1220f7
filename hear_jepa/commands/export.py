"""`hear-jepa export MODEL`: the model, front end included, as one file for another runtime.

    hear-jepa export tiny --format onnx --out tiny.onnx
    hear-jepa export tiny --format torch --kind timestamps --out tiny.pt2

Both formats take audio [clips, samples], 16 kHz mono float32, of any number of clips and any length from 80 ms on.
"""

import argparse
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hear_jepa.api import load_model
from hear_jepa.disk import atomic_path
from hear_jepa.errors import OptionError
from hear_jepa.files.embed import KINDS
from hear_jepa.model.embedder import Embedder
from hear_jepa.model.front_end import MEL_FLOOR
from hear_jepa.model.grid import CENTRE_MS, COLUMN_MS, FRAME_MS, HOPS_MS, PATCH, SAMPLES_PER_MS, first_centre_ms
from hear_jepa.model.vit import ViT

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
SHORTEST_SAMPLES = 80 * SAMPLES_PER_MS  # from here on the first centre does not depend on the length
OPSET = 18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `hear-jepa export`."""
    parser.add_argument("model", nargs="?", default="", help="a checkpoint's path, or the name of a shipped one")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="onnx, or torch (torch.export)")
    parser.add_argument("--out", help="the file to write (default: the model's name and .onnx or .pt2)")
    parser.add_argument("--kind", choices=KINDS, default="scene", help="one embedding a clip, or one every --hop-ms")
    parser.add_argument("--hop-ms", type=int, choices=HOPS_MS, default=40, help="between timestamps (default: 40)")


def run(arguments: argparse.Namespace) -> int:
    """Export, and say where to."""
    name = Path(arguments.model).stem or "hear_jepa"
    out = Path(arguments.out or name + FORMATS[arguments.format])
    model = load_model(arguments.model, hop_ms=arguments.hop_ms)
    export_model(model, out, arguments.format, arguments.kind)
    print(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, audio [clips, samples] -> {', '.join(output_names(arguments.kind))}"
    )
    return 0


def export_model(model: Embedder, out: str | Path, file_format: str = "onnx", kind: str = "scene") -> None:
    """Write `model` to `out`: input "audio", outputs `output_names(kind)`.

    Scenes are [clips, size]; timestamps are embeddings [clips, n, size] and centres in ms [n], every `model.hop_ms`.
    Raises OptionError where a package is missing.
    """
    graph = ExportedEmbedder(model, kind)
    audio = torch.randn(2, 5 * model.sample_rate, generator=torch.Generator().manual_seed(0)) / 10
    shapes = {"audio": {0: torch.export.Dim("clips"), 1: torch.export.Dim("samples", min=SHORTEST_SAMPLES)}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its inner workings
        # Sizes of 1 (one clip, one window) are to take the same path as any other.
        with torch.fx.experimental._config.patch(backed_size_oblivious=True):
            program = torch.export.export(graph, (audio,), dynamic_shapes=shapes, strict=False)
        with atomic_path(out) as temporary:
            if file_format == "torch":
                torch.export.save(program, temporary)
            else:
                _save_onnx(program, temporary, kind)


def output_names(kind: str) -> list[str]:
    """Names of an exported model's outputs."""
    return ["embedding"] if kind == "scene" else ["embeddings", "timestamps_ms"]


class ExportedEmbedder(nn.Module):
    """The embedder's arithmetic without anything that depends on data: shapes are functions of the length alone.

    Every window has the trained number of columns; columns past the end of a short recording are hidden from the
    others by an attention mask, so that, as in `Embedder`, padding takes part in nothing.
    """

    def __init__(self, model: Embedder, kind: str):
        super().__init__()
        self.log_mel, self.encoder, self.layers = model.log_mel, model.encoder, model.layers
        self.scene = kind == "scene"
        self.hop_ms = model.hop_of(kind)
        self.columns = model.max_columns  # of a window
        self.first_ms = first_centre_ms(SHORTEST_SAMPLES, self.hop_ms)

    def forward(self, audio: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """[B, samples] -> scenes [B, size], or embeddings [B, n, size] and centres [n] in ms."""
        rows = COLUMN_MS // self.hop_ms
        count = (audio.shape[1] // SAMPLES_PER_MS - self.first_ms) // self.hop_ms + 1  # timestamps
        n_windows = ((count + rows - 1) // rows + self.columns - 1) // self.columns
        per_row = (count + rows - 1 - torch.arange(rows)) // rows  # columns of each row
        n_clips, n_encoded = audio.shape[0], rows * n_windows
        row, window = _divide(torch.arange(n_encoded), n_windows)
        start = self._window_start(window, per_row[row])  # first column [R·W]
        in_window = torch.arange(self.columns)
        hidden = (start[:, None] + in_window >= per_row[row][:, None]) & (in_window > 0)  # [R·W, T]

        first_frame = start * PATCH + row * (self.hop_ms // FRAME_MS)  # counted from the first frame computed
        frames = first_frame[:, None] + torch.arange(self.columns * PATCH)  # [R·W, 16·T]
        heard = self._spectrogram(audio).index_select(1, frames.reshape(n_encoded * self.columns * PATCH))
        n_freq = self.encoder.config.n_freq_patches
        windows = heard.reshape(n_clips * n_encoded, self.columns, PATCH, n_freq, PATCH)
        patches = windows.permute(0, 1, 3, 4, 2).flatten(3).flatten(1, 2)  # [B·R·W, T·F, 256], as of `patchify`
        hidden = hidden.index_select(0, _divide(torch.arange(n_clips * n_encoded), n_encoded)[1])
        embedded = self._encode(patches, hidden)  # [B·R·W, T, size]

        embedded = embedded.reshape(n_clips, n_encoded * self.columns, embedded.shape[2])
        number = torch.arange(count)
        column, row = number // rows, number % rows
        window = column // self.columns
        place = column - self._window_start(window, per_row[row])
        chosen = embedded.index_select(1, (row * n_windows + window) * self.columns + place)
        return chosen.mean(1) if self.scene else (chosen, (self.first_ms + self.hop_ms * number).float())

    def _window_start(self, window: Tensor, row_columns: Tensor) -> Tensor:
        """First column of a window: the last one of a long row reaches backwards."""
        return torch.minimum(window * self.columns, (row_columns - self.columns).clamp(min=0))

    def _spectrogram(self, audio: Tensor) -> Tensor:
        """[B, frames, mels] from the frame of the first column on; silence on both sides, a window more than heard."""
        settings = self.log_mel.config
        before = (CENTRE_MS - self.first_ms) // FRAME_MS * settings.hop_length + settings.n_fft // 2
        after = (self.columns + 1) * PATCH * settings.hop_length + settings.n_fft
        # As `LogMel.valid`, but for the matrix product, which the exporter would tie to the number of clips.
        power = self.log_mel.mel.stft(F.pad(audio, (before, after)), output_format="Magnitude") ** 2
        mel = F.conv1d(power, self.log_mel.mel.mel_basis[:, :, None])
        return ((torch.log(mel + MEL_FLOOR) - settings.mean) / settings.std).transpose(1, 2).contiguous()

    def _encode(self, patches: Tensor, hidden: Tensor) -> Tensor:
        """Patches [B·N, T·F, 256] of which the columns `hidden` [B·N, T] are hidden -> [B·N, T, size]."""
        encoder: ViT = self.encoder
        n_freq = encoder.config.n_freq_patches
        mask = ~hidden.repeat_interleave(n_freq, dim=1)  # [B·N, T·F]
        x = encoder.patch_embed(patches) + encoder.pos_embed
        if encoder.class_token is not None:
            x = torch.cat([encoder.class_token.expand(x.shape[0], 1, -1), x], dim=1)
            mask = F.pad(mask, (1, 0), value=True)
        outputs = {}
        for number, block in enumerate(encoder.blocks, start=1):
            x = x + _attend(block.attn, block.norm1(x), mask)
            x = x + block.mlp(block.norm2(x))
            outputs[number] = encoder.norm(x) if number == len(encoder.blocks) else F.layer_norm(x, x.shape[-1:])
        extra = x.shape[1] - patches.shape[1]
        return torch.cat([outputs[n][:, extra:].unflatten(1, (-1, n_freq)).flatten(2) for n in self.layers], dim=2)


def _divide(numbers: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Quotients and remainders; the divisor becomes a tensor, since ONNX divides by no size."""
    divisor = torch.full((1,), by, dtype=torch.int64)
    quotients = torch.div(numbers, divisor, rounding_mode="floor")
    return quotients, numbers - quotients * divisor


def _attend(attention: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """`vit.Attention` [B·N, P, D], with a mask [B·N, P] of the tokens that may be attended to."""
    queries, keys, values = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask[:, None, None])
    return attention.proj(attended.transpose(1, 2).flatten(2))


def _save_onnx(program: torch.export.ExportedProgram, path: Path, kind: str) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OptionError("exporting to ONNX needs onnx and onnxscript: pip install 'hear-jepa[onnx]'") from error
    names = {"input_names": ["audio"], "output_names": output_names(kind)}
    torch.onnx.export(program, (), path, dynamo=True, opset_version=OPSET, external_data=False, verbose=False, **names)
