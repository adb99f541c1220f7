"""`hear-jepa convert FILE --out X.safetensors`: a public checkpoint of another family becomes one of ours.

The family is found by the names of the tensors; what is found, and where it comes from, is printed. What the file
cannot tell is asked for. Only tensors are read: a file whose pickle would have to run code is refused. Loading is
strict: a tensor that is neither used nor known to be of no use in serving is an error. See docs/checkpoints.md.
"""

import argparse
from pathlib import Path

from hear_jepa.errors import OptionError
from hear_jepa.families import FAMILIES, convert
from hear_jepa.families.adapted import Adapted, Asked
from hear_jepa.model.checkpoint import ENCODERS, Checkpoint, save_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, metavar="FILE", help="foreign checkpoint: .ckpt, .pth, .pt or .safetensors"
    )
    parser.add_argument("--out", type=Path, required=True, help="file to write, NAME.safetensors")
    parser.add_argument("--family", choices=tuple(FAMILIES), help="where the tensors' names do not tell")
    parser.add_argument("--encoder", choices=ENCODERS, help="of a file with two (default: the one its authors serve)")
    parser.add_argument("--mean", type=float, help="mean of the log-mel in training, where the file holds none")
    parser.add_argument("--std", type=float, help="standard deviation of the log-mel in training")
    parser.add_argument("--heads", type=int, help="attention heads, where the width does not tell")
    parser.add_argument("--sample-rate", type=int, help="in Hz, where neither file nor name tell")
    parser.add_argument("--licence", help="of the original weights, where the family has none of its own")


def run(arguments: argparse.Namespace) -> int:
    if arguments.out.suffix != ".safetensors":
        raise OptionError(f"--out is {arguments.out}: its name must end with .safetensors")
    asked = Asked(arguments.encoder, arguments.mean, arguments.std, arguments.heads, arguments.sample_rate)
    checkpoint, adapted = convert(arguments.source, arguments.family, arguments.licence, asked)
    sha256 = save_checkpoint(arguments.out, checkpoint)
    for line in report(checkpoint, adapted):
        print(line)
    print(f"{arguments.out}: SHA-256 {sha256}")
    return 0


def report(checkpoint: Checkpoint, adapted: Adapted) -> list[str]:
    """What the file was found to be, a line each."""
    family, encoder, grid = checkpoint.provenance["family"], checkpoint.encoder, checkpoint.grid
    window = f"{grid.columns} columns, {grid.columns * grid.column_ms / 1000} s"
    return [
        f"{checkpoint.provenance['converted_from']}: {FAMILIES[family].TITLE} (--family {family})",
        f"  encoder: width {encoder.width}, {encoder.depth} layers, {encoder.heads} heads",
        f"  sound: {grid.sample_rate} Hz, {grid.n_mels} bands, a frame every {grid.frame_ms} ms",
        f"  patches: {grid.patch_mels} bands × {grid.patch_frames} frames, windows of {window}",
        *(f"  {note}" for note in adapted.notes),
        f"  left out, of no use in serving: {', '.join(adapted.left_out) or 'nothing'}",
        f"  licence of the weights: {checkpoint.licence}",
    ]
