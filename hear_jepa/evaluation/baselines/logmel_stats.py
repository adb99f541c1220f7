"""A baseline, as a HEAR module: mean and standard deviation of the log-mel over time; nothing is learnt."""

import torch
from torch import Tensor, nn

from hear_jepa.model.front_end import LogMel

WINDOW_MS = 160  # of a timestamp embedding: a column of patches
FRAME_MS = 10


class LogMelStats(nn.Module):
    """Statistics over all frames (scene), or over 160 ms around each timestamp."""

    sample_rate = 16000
    scene_embedding_size = 160
    timestamp_embedding_size = 160

    def __init__(self, hop_ms: int = 40):
        super().__init__()
        self.hop_ms = hop_ms
        self.log_mel = LogMel()

    def scene(self, audio: Tensor) -> Tensor:
        """[B, samples] -> [B, 160]."""
        return _statistics(self.log_mel(audio))

    def timestamps(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """[B, samples] -> ([B, T, 160], [B, T] ms): one every `hop_ms` from 0 on, silence beyond the ends."""
        hop, window = self.hop_ms // FRAME_MS, WINDOW_MS // FRAME_MS
        duration_ms = 1000 * audio.shape[1] / self.sample_rate
        count = max(1, int(duration_ms // self.hop_ms) + (duration_ms % self.hop_ms > 0))
        frames = self.log_mel.frames(audio, -window // 2, (count - 1) * hop + window + 1)
        windows = frames.unfold(2, window + 1, hop)  # [B, mels, T, frames], the middle frame at the timestamp
        centres = torch.arange(count, device=audio.device, dtype=torch.float32) * self.hop_ms
        return _statistics(windows).transpose(1, 2), centres.expand(len(audio), -1)


def _statistics(frames: Tensor) -> Tensor:
    """[B, mels, …, frames] -> [B, 2 · mels, …]."""
    return torch.cat([frames.mean(-1), frames.std(-1, correction=0)], dim=1)


def load_model(model_file_path: str = "", hop_ms: int = 40) -> nn.Module:
    """HEAR API; there are no weights to load."""
    del model_file_path
    return LogMelStats(hop_ms).eval()


def get_scene_embeddings(audio: Tensor, model: nn.Module) -> Tensor:
    """HEAR API: [n_sounds, n_samples] -> [n_sounds, 160]."""
    return model.scene(audio)


def get_timestamp_embeddings(audio: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
    """HEAR API: [n_sounds, n_samples] -> ([n_sounds, T, 160], [n_sounds, T] in ms)."""
    return model.timestamps(audio)
