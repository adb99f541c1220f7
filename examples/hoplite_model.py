"""hear_jepa in Perch-Hoplite (pip install perch-hoplite): EmbedWorker(…, embedding_model=HearJepa())."""

from dataclasses import dataclass

import torch
from perch_hoplite.zoo.zoo_interface import EmbeddingModel, InferenceOutputs

import hear_jepa


@dataclass
class HearJepa(EmbeddingModel):
    """A scene embedding of each window."""

    sample_rate: int = 16000
    window_size_s: float = 5.0
    hop_size_s: float = 5.0

    def __post_init__(self):
        self.model = hear_jepa.load_model()

    def embed(self, audio_array):
        windows = torch.tensor(self.frame_audio(audio_array, self.window_size_s, self.hop_size_s)).float()
        return InferenceOutputs(self.model.scenes(windows).numpy()[:, None])  # [windows, 1 channel, size]
