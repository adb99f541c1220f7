"""Sample rate conversion by a windowed sinc, as one strided convolution."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ZERO_CROSSINGS = 16  # of the sinc on either side: more make the filter sharper and slower
ROLLOFF = 0.99  # the filter's corner as a share of the lower Nyquist frequency


class SincResampler:
    """Take `old` samples to `new` samples; both small integers without a common divisor.

    These are torchaudio's filters, to rounding. They stand here because torchaudio refuses to be imported beside
    a torch that was built for another CUDA, and nothing else of it is needed.
    """

    def __init__(self, old: int, new: int):
        self.old, self.new = old, new
        corner = ROLLOFF * min(old, new)
        self.width = math.ceil(ZERO_CROSSINGS * old / corner)  # samples of context on either side
        time = torch.arange(-self.width, self.width + old, dtype=torch.float64) / old  # in units of `old` samples
        shift = torch.arange(new, dtype=torch.float64)[:, None] / new
        time = ((time - shift) * corner).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
        window = torch.cos(time * math.pi / ZERO_CROSSINGS / 2) ** 2  # Hann
        self.filters = (torch.sinc(time) * window * corner / old).float()[:, None]  # [new, 1, 2 width + old]

    def __call__(self, audio: Tensor) -> Tensor:
        """Resample float32 [channels, samples] -> [channels, ceil(samples · new / old)], as if amid silence."""
        padded = F.pad(audio, (self.width, self.width + self.old))
        resampled = F.conv1d(padded[:, None], self.filters, stride=self.old)  # [channels, new, blocks]
        length = -(-audio.shape[1] * self.new // self.old)
        return resampled.transpose(1, 2).flatten(1)[:, :length]
