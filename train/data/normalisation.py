"""Mean and standard deviation of the log-mel, for the front end in use, over the very crops that training draws."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from hear_jepa.errors import CorpusError
from hear_jepa.model.front_end import FrontEndConfig, LogMel
from hear_jepa.train.data.sampler import DataConfig, crop_stream

BATCH_SIZE, BATCHES = 256, 2
DECIMALS = 4  # the number of threads changes the seventh


def normalised(front_end: FrontEndConfig, data: DataConfig, n_frames: int, seed: int) -> FrontEndConfig:
    """`front_end` with the mean and standard deviation of this run's crops of `n_frames` frames.

    They are a function of the audio, the options and the seed, the same on every rank. Raises CorpusError.
    """
    plain = replace(front_end, mean=0.0, std=1.0)
    data = replace(data, workers=0, prefetch=1)
    length = {"n_samples": plain.n_samples(n_frames), "sample_rate": plain.sample_rate}
    with closing(crop_stream(data, batch_size=BATCH_SIZE, seed=seed, **length)) as crops:
        mean, std = measure_normalisation(crops, LogMel(plain), BATCHES)
    return replace(front_end, mean=round(mean, DECIMALS), std=round(std, DECIMALS))


@torch.inference_mode()
def measure_normalisation(crops: Iterator[Tensor], log_mel: LogMel, n_batches: int) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel values of `n_batches` batches, float32 [B, samples].

    `log_mel` has mean 0 and standard deviation 1. Raises CorpusError where all values are the same.
    """
    count, total, squares = 0, 0.0, 0.0
    for batch in islice(crops, n_batches):
        for part in batch.split(32):  # a small part stays in the processor's cache
            values = log_mel.valid(part).double()
            count += values.numel()
            total += values.sum().item()
            squares += values.square().sum().item()
    mean = total / count
    variance = squares / count - mean**2
    if not variance > 1e-6:
        raise CorpusError(f"the log-mel of all crops is {mean:.4f}: there is no sound in them")
    return mean, variance**0.5
