"""Weights drawn by name and shape, and sound: for the tests of foreign checkpoints and benchmarks/parity.py."""

from pathlib import Path
from zlib import crc32

import soundfile
import torch
from torch import Tensor

TASKS = Path(__file__).parent / "tasks"


def drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor that depends on its name and shape only; biases too are random: a forgotten one shows."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
    if name.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight", "norm_frame.weight")):
        return 1 + 0.1 * noise.abs()
    return 0.06 * noise


def filled(state: dict[str, Tensor], kept: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """`state` with drawn values; positions that are fixed, and what `kept` names, keep theirs."""
    result = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point() or name.endswith(kept or ("\0",)):
            result[name] = tensor
        elif name.endswith("norm_stats"):
            result[name] = torch.tensor([-6.5, 3.5])
        else:
            result[name] = drawn(name, tuple(tensor.shape))
    return result


def real_sound(n_samples: int, n_fft: int = 400) -> Tensor:
    """Real sound [n_samples], clips one after another, silent for half an analysis window at either end."""
    files, clips = sorted(TASKS.glob("*/16000/*/*.flac")), []
    for path in files:
        clips.append(torch.from_numpy(soundfile.read(path, dtype="float32")[0]))
        if sum(len(clip) for clip in clips) >= n_samples:
            break
    sound = torch.cat(clips)
    sound = sound.repeat(-(-n_samples // len(sound)))[:n_samples].clone()
    sound[: n_fft // 2 + 1] = sound[-n_fft // 2 - 1 :] = 0
    return sound


def whole_columns(seconds: float, sample_rate: int, column: int) -> int:
    """Samples of about so many seconds: whole columns less one sample, which is as many frames for everyone."""
    return max(round(seconds * sample_rate) // column, 1) * column - 1
