"""Google's speech_embedding as openwakeword 0.4.0 carries it, behind the HEAR API. Only this wrapper is ours.

    pip install --no-deps openwakeword==0.4.0 && pip install onnxruntime
    hear-jepa evaluate --tasks-dir tests/tasks --models benchmarks.openwakeword_speech --out results

Run it from the root of the repository. 96 numbers for 76 frames (775 ms) of log-mel, on the CPU by ONNX Runtime.
"""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hear_jepa.errors import OptionError

RATE = 16000
MEL_HOP = 160
MEL_SPAN = 512  # samples that a frame of log-mel sees
WINDOW = 76  # frames of log-mel that an embedding sees
WINDOW_SAMPLES = (WINDOW + 3) * MEL_HOP  # enough for the log-mel model to return that many
SCENE_STEP = 8  # frames from one embedding to the next, as in openwakeword
CENTRE = (WINDOW - 1) * MEL_HOP // 2 + MEL_SPAN // 2  # samples from the start of a window to its middle


class SpeechEmbedding(nn.Module):
    """The two ONNX models one after the other: waveform -> log-mel -> embeddings."""

    sample_rate = RATE
    scene_embedding_size = 96
    timestamp_embedding_size = 96

    def __init__(self, hop_ms: int = 40):
        super().__init__()
        import onnxruntime

        spec = importlib.util.find_spec("openwakeword")
        if spec is None:
            raise OptionError("benchmarks.openwakeword_speech needs: pip install --no-deps openwakeword==0.4.0")
        folder = Path(spec.origin).parent / "resources" / "models"
        self.hop_ms = hop_ms
        self.mel, self.embedding = (
            onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
            for name in ("melspectrogram.onnx", "embedding_model.onnx")
        )
        digest = hashlib.sha256((folder / "embedding_model.onnx").read_bytes()).digest()
        self.register_buffer("weights_sha256", torch.tensor(list(digest), dtype=torch.uint8))  # tells versions apart

    def embed(self, audio: Tensor, step: int) -> Tensor:
        """[B, samples] -> [B, windows, 96], a window every `step` frames of 10 ms."""
        pcm = (audio.cpu().clamp(-1, 1) * 32767).to(torch.int16).float().numpy()
        embedded = [self._embed_clip(clip, step) for clip in pcm]
        return torch.from_numpy(np.stack(embedded)).to(audio.device)

    def _embed_clip(self, pcm: np.ndarray, step: int) -> np.ndarray:
        mel = self.mel.run(None, {"input": pcm[None]})[0].reshape(-1, 32) / 10 + 2  # openwakeword's scaling
        starts = range(0, len(mel) - WINDOW + 1, step)
        windows = np.stack([mel[start : start + WINDOW] for start in starts])[..., None]
        return self.embedding.run(None, {"input_1": windows.astype(np.float32)})[0].reshape(len(windows), 96)


def load_model(model_file_path: str = "", hop_ms: int = 40) -> nn.Module:
    """HEAR API; the weights are those that openwakeword carries."""
    del model_file_path
    return SpeechEmbedding(hop_ms).eval()


def get_scene_embeddings(audio: Tensor, model: nn.Module) -> Tensor:
    """HEAR API: the mean over the windows; a clip shorter than one window is continued by silence."""
    return model.embed(F.pad(audio, (0, max(0, WINDOW_SAMPLES - audio.shape[1]))), SCENE_STEP).mean(1)


def get_timestamp_embeddings(audio: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
    """HEAR API: windows centred on 0, hop, 2 · hop, … ms; before and after the clip there is silence."""
    hop = model.hop_ms * RATE // 1000
    count = max(1, -(-audio.shape[1] // hop))
    length = (count - 1) * hop + WINDOW_SAMPLES
    padded = F.pad(audio, (CENTRE, max(0, length - CENTRE - audio.shape[1])))
    embeddings = model.embed(padded, hop // MEL_HOP)[:, :count]
    centres = torch.arange(count, device=audio.device, dtype=torch.float32) * model.hop_ms
    return embeddings, centres.expand(len(audio), -1)
