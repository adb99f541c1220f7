"""Is this sound that can be embedded? Each fault has its own message."""

import torch
from torch import Tensor

from hear_jepa.errors import AudioError

LOUDEST = 1e10  # beyond, the power spectrogram overflows float32
MOST_CHANNELS = 32  # of one recording; more is an array of another layout


def check_audio(audio: Tensor) -> Tensor:
    """Raise `AudioError`, each fault with its own message, unless this is a batch of clips that can be embedded."""
    wanted = "give a float tensor [n_sounds, n_samples] at the model's sample_rate"
    if not isinstance(audio, Tensor):
        raise AudioError(f"audio is a {type(audio).__name__}: {wanted}")
    shape = tuple(audio.shape)
    if audio.dim() == 3 and shape[1] == 1:
        raise AudioError(f"audio has shape {shape}, with a channel axis: squeeze it, {wanted}")
    if audio.dim() == 3:
        raise AudioError(f"audio has shape {shape}, {shape[1]} channels: mix it to mono, {wanted}")
    if audio.dim() == 1:
        raise AudioError(f"audio has shape {shape}, one clip without a batch axis: audio[None], {wanted}")
    if audio.dim() != 2:
        raise AudioError(f"audio has {audio.dim()} axes, {shape}: {wanted}")
    if not audio.is_floating_point():
        raise AudioError(f"audio is {audio.dtype}: {wanted} with samples in [-1, 1] (16-bit integers: divide by 32768)")
    if shape[0] == 0:
        raise AudioError(f"audio has shape {shape}, an empty batch: {wanted}")
    if shape[1] == 0:
        raise AudioError(f"audio has shape {shape}, no samples: {wanted}")
    if audio.is_meta:
        raise AudioError(f"audio is on the meta device, which holds no samples: {wanted}")
    check_samples(audio)
    return audio


def check_waveform(waveform: Tensor) -> Tensor:
    """One recording, [samples] or [channels, samples], as [channels, samples]. Raises `AudioError`."""
    shape = tuple(waveform.shape)
    if waveform.dim() not in (1, 2) or 0 in shape:
        raise AudioError(f"the waveform has shape {shape}: give [samples] or [channels, samples]")
    if waveform.dim() == 2 and (shape[0] > shape[1] or shape[0] > MOST_CHANNELS):
        raise AudioError(
            f"the waveform has shape {shape}, which would be {shape[0]} channels of {shape[1]} samples: "
            "give [channels, samples]; soundfile reads [samples, channels], so transpose it (waveform.T)"
        )
    return check_audio(waveform if waveform.dim() == 2 else waveform[None])


def check_samples(audio: Tensor) -> None:
    """Raise `AudioError` where samples [clips, samples] are not finite, or too loud to embed."""
    finite = torch.isfinite(audio).all(1)
    if not finite.all():
        clips = (~finite).nonzero().flatten().tolist()
        where = ", ".join(map(str, clips[:8]))
        raise AudioError(f"audio holds NaN or infinite samples in clip {where} of {len(audio)}")
    loudest = audio.abs().max().item()
    if loudest > LOUDEST:
        raise AudioError(f"audio holds samples of {loudest:.0e}: scale it to samples in [-1, 1]")
