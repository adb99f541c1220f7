"""`hear-jepa export MODEL`: the model, front end included, as one file for another runtime.

    hear-jepa export tiny --format onnx --out tiny.onnx
    hear-jepa export tiny --format torch --kind timestamps --out tiny.pt2

Both formats take audio [clips, samples], 16 kHz mono float32, of any number of clips and any length from 80 ms on.
"""

import argparse
import importlib
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hear_jepa.api import load_model
from hear_jepa.disk import atomic_path
from hear_jepa.errors import OptionError
from hear_jepa.files.embed import KINDS
from hear_jepa.model.embedder import Embedder

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
OPSET = 18
SHAPES: Any = importlib.import_module("torch.fx.experimental._config")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default="", help="a checkpoint's path, or the name of a shipped one")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="onnx, or torch (torch.export)")
    parser.add_argument("--out", help="the file to write (default: the model's name and .onnx or .pt2)")
    parser.add_argument("--kind", choices=KINDS, default="scene", help="one embedding a clip, or one every --hop-ms")
    parser.add_argument("--hop-ms", type=int, help="between timestamps (default: 40, or a column if shorter)")


def run(arguments: argparse.Namespace) -> int:
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
    Raises OptionError where a package is missing or too old.
    """
    if not hasattr(SHAPES, "backed_size_oblivious"):
        raise OptionError(f"exporting needs a newer torch than {torch.__version__}, such as 2.11")
    graph = ExportedEmbedder(model, kind)
    audio = torch.randn(2, 5 * model.sample_rate, generator=torch.Generator().manual_seed(0)) / 10
    shapes = {"audio": {0: torch.export.Dim("clips"), 1: torch.export.Dim("samples", min=shortest_samples(model))}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its inner workings
        # Sizes of 1 (one clip, one window) are to take the same path as any other.
        with SHAPES.patch(backed_size_oblivious=True):
            program = torch.export.export(graph, (audio,), dynamic_shapes=shapes, strict=False)
        with atomic_path(out) as temporary:
            if file_format == "torch":
                torch.export.save(program, temporary)
            else:
                _save_onnx(program, temporary, kind)


def output_names(kind: str) -> list[str]:
    """Names of an exported model's outputs."""
    return ["embedding"] if kind == "scene" else ["embeddings", "timestamps_ms"]


def shortest_samples(model: Embedder) -> int:
    """Samples from which on the first centre does not depend on the length: half a column."""
    return model.grid.patch_frames * model.grid.hop_length // 2


class ExportedEmbedder(nn.Module):
    """The embedder's own modules without anything that depends on data: shapes are functions of the length alone.

    Every window has the trained number of columns; columns past the end of a short recording are hidden from the
    others by an attention mask, so that, as in `Embedder`, padding takes part in nothing.
    """

    def __init__(self, model: Embedder, kind: str):
        super().__init__()
        self.model, self.grid = model, model.grid
        self.with_std = model.pooling == "mean+std"
        self.scene = kind == "scene"
        self.hop_ms = model.hop_of(kind)
        self.first = self.grid.first_centre(shortest_samples(model), self.hop_ms)  # in half frames
        self.first_frame = self.grid.first_frame(shortest_samples(model), self.hop_ms)

    def forward(self, audio: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """[B, samples] -> scenes [B, size], or embeddings [B, n, size] and centres [n] in ms."""
        grid, columns = self.grid, self.grid.columns
        phases, hop_frames = grid.phases(self.hop_ms), self.hop_ms // grid.frame_ms
        count = (2 * audio.shape[1] // grid.hop_length - self.first) // (2 * hop_frames) + 1  # timestamps
        n_windows = ((count + phases - 1) // phases + columns - 1) // columns
        per_phase = (count + phases - 1 - torch.arange(phases)) // phases  # columns of each phase
        n_clips, n_encoded = audio.shape[0], phases * n_windows
        phase, window = _divide(torch.arange(n_encoded), n_windows)
        start = self._window_start(window, per_phase[phase])  # first column [R·W]
        in_window = torch.arange(columns)
        hidden = (start[:, None] + in_window >= per_phase[phase][:, None]) & (in_window > 0)  # [R·W, T]

        first_frame = start * grid.patch_frames + phase * hop_frames  # counted from the first frame computed
        frames = first_frame[:, None] + torch.arange(grid.window_frames)  # [R·W, frames]
        sound = self._spectrogram(audio).index_select(1, frames.reshape(n_encoded * grid.window_frames))
        windows = sound.reshape(n_clips * n_encoded, grid.window_frames, grid.n_mels).transpose(1, 2)
        hidden = hidden.index_select(0, _divide(torch.arange(n_clips * n_encoded), n_encoded)[1])
        embedded = self.model.encode_windows(windows, ~hidden)  # [B·R·W, T, size]

        embedded = embedded.reshape(n_clips, n_encoded * columns, embedded.shape[2])
        number = torch.arange(count)
        column, phase = number // phases, number % phases
        window = column // columns
        place = column - self._window_start(window, per_phase[phase])
        chosen = embedded.index_select(1, (phase * n_windows + window) * columns + place)
        if not self.scene:
            return chosen, self.first * grid.frame_ms / 2 + (self.hop_ms * number).float()
        scene = chosen.mean(1)
        if self.with_std:
            scene = torch.cat([scene, (chosen - scene[:, None]).square().mean(1).sqrt()], dim=1)
        return self.model.whitening(scene) if self.model.whitening else scene

    def _window_start(self, window: Tensor, phase_columns: Tensor) -> Tensor:
        """First column of a window: the last one of a long phase reaches backwards."""
        return torch.minimum(window * self.grid.columns, (phase_columns - self.grid.columns).clamp(min=0))

    def _spectrogram(self, audio: Tensor) -> Tensor:
        """[B, frames, mels] from the frame of the first column on; silence on both sides, a window after it."""
        grid, settings = self.grid, self.model.log_mel.config
        before = -self.first_frame * grid.hop_length + settings.n_fft // 2
        after = (grid.columns + 1) * grid.patch_frames * grid.hop_length + settings.n_fft
        return self.model.log_mel.valid(F.pad(audio, (before, after))).transpose(1, 2).contiguous()


def _divide(numbers: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Quotients and remainders; the divisor becomes a tensor, since ONNX divides by no size."""
    divisor = torch.full((1,), by, dtype=torch.int64)
    quotients = torch.div(numbers, divisor, rounding_mode="floor")
    return quotients, numbers - quotients * divisor


def _save_onnx(program: torch.export.ExportedProgram, path: Path, kind: str) -> None:
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OptionError("exporting to ONNX needs onnx and onnxscript: pip install onnx onnxscript") from error
    torch.onnx.export(
        program,
        (),
        path,
        input_names=["audio"],
        output_names=output_names(kind),
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
