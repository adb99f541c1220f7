"""One waveform, at any rate and with any number of channels -> its embedding."""

import torch
from torch import Tensor

from hear_jepa.api import check_audio
from hear_jepa.errors import AudioError, OptionError
from hear_jepa.files.audio import resample
from hear_jepa.files.embed import KINDS
from hear_jepa.model.embedder import Embedder


def embed_waveform(
    embedder: Embedder, waveform: Tensor, sample_rate: int, kind: str = "scene"
) -> Tensor | tuple[Tensor, Tensor]:
    """Mix [channels, samples] to mono, resample, embed: see `Embedder.embed`. NumPy arrays will do.

    Raises `AudioError` for audio that cannot be embedded, `OptionError` for an unknown kind.
    """
    if kind not in KINDS:
        raise OptionError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if not sample_rate > 0:
        raise AudioError(f"the sample rate must be more than 0 Hz, not {sample_rate}")
    waveform = torch.as_tensor(waveform)
    if waveform.dim() not in (1, 2) or 0 in waveform.shape:
        raise AudioError(f"the waveform has shape {tuple(waveform.shape)}: give [samples] or [channels, samples]")
    channels = check_audio(waveform if waveform.dim() == 2 else waveform[None])
    audio = resample(channels.float().mean(0, keepdim=True).cpu(), sample_rate, embedder.sample_rate)
    if kind == "scene":
        return embedder.scenes(audio)[0]
    embeddings, timestamps = embedder.timestamps(audio)
    return embeddings[0], timestamps[0]
