"""A baseline, as a HEAR module: mean and standard deviation of the log-mel over time; nothing is learnt.

`front_end` "model" takes the log-mel of a checkpoint (the default one, or the one that is named), "paper" that of the
paper: FFT windows of 400 samples and 80 bands.
"""

import math

import torch
from torch import Tensor, nn

from hear_jepa.api import named_checkpoint
from hear_jepa.errors import OptionError
from hear_jepa.model.front_end import FrontEndConfig, LogMel
from hear_jepa.options import check_name

PAPER = FrontEndConfig(sample_rate=16000, n_fft=400, hop_length=160, n_mels=80, f_min=50.0, f_max=8000.0)
FRONT_ENDS = ("model", "paper")


class LogMelStats(nn.Module):
    """Statistics over all frames (scene), or over `window_ms` around each timestamp, `hop_ms` apart."""

    def __init__(self, front_end: FrontEndConfig, window_ms: float, hop_ms: int = 40):
        super().__init__()
        self.frame_ms = 1000 * front_end.hop_length / front_end.sample_rate
        if hop_ms % self.frame_ms or hop_ms <= 0:
            raise OptionError(f"hop_ms must be a multiple of {self.frame_ms:g}, the distance of frames, not {hop_ms}")
        self.hop_ms, self.window_ms = hop_ms, window_ms
        self.sample_rate = front_end.sample_rate
        self.scene_embedding_size = self.timestamp_embedding_size = 2 * front_end.n_mels
        self.log_mel = LogMel(front_end)

    def scene(self, audio: Tensor) -> Tensor:
        return _statistics(self.log_mel(audio))

    def timestamps(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """[B, samples] -> ([B, T, 2 · mels], [B, T] ms): one every `hop_ms` from 0 on, silence beyond the ends."""
        hop, half = round(self.hop_ms / self.frame_ms), round(self.window_ms / self.frame_ms / 2)
        count = math.ceil(1000 * audio.shape[1] / self.sample_rate / self.hop_ms)
        frames = self.log_mel.frames(audio, -half, (count - 1) * hop + 2 * half + 1)
        windows = frames.unfold(2, 2 * half + 1, hop)  # [B, mels, T, frames], the middle frame at the timestamp
        centres = torch.arange(count, device=audio.device, dtype=torch.float32) * self.hop_ms
        return _statistics(windows).transpose(1, 2), centres.expand(len(audio), -1)


def _statistics(frames: Tensor) -> Tensor:
    """[B, mels, …, frames] -> [B, 2 · mels, …]."""
    return torch.cat([frames.mean(-1), frames.std(-1, correction=0)], dim=1)


def load_model(model_file_path: str = "", hop_ms: int = 40, front_end: str = "model") -> LogMelStats:
    """HEAR API; a checkpoint gives its front end and, around a timestamp, the width of its columns."""
    check_name(front_end, FRONT_ENDS, "front_end")
    checkpoint = named_checkpoint(model_file_path)
    own = checkpoint.front_end
    column_ms = 1000 * checkpoint.encoder.patch_frames * own.hop_length / own.sample_rate
    return LogMelStats(own if front_end == "model" else PAPER, column_ms, hop_ms).eval()


def get_scene_embeddings(audio: Tensor, model: LogMelStats) -> Tensor:
    return model.scene(audio)


def get_timestamp_embeddings(audio: Tensor, model: LogMelStats) -> tuple[Tensor, Tensor]:
    return model.timestamps(audio)
