"""hear_jepa as an encoder of X-ARES: pip install xares, then xares-run or `python -m xares.run` with this file."""

import torch

import hear_jepa


class HearJepaEncoder(torch.nn.Module):
    """[B, samples] at 16 kHz -> [B, T, output_dim], every `hop_size_in_ms`."""

    def __init__(self, model_file_path: str = ""):
        super().__init__()
        self.model = hear_jepa.load_model(model_file_path)
        self.sampling_rate = self.model.sample_rate
        self.output_dim = self.model.timestamp_embedding_size
        self.hop_size_in_ms = self.model.hop_ms

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return self.model.timestamps(audio if audio.dim() == 2 else audio[None])[0]
