"""A stretch of an embedded sound, decoded no further than its end."""

from pathlib import Path

import torch
from torch import Tensor

from hear_jepa.errors import OptionError
from hear_jepa.files.audio import AudioReader
from hear_jepa.files.resample import SAMPLE_RATE
from hear_jepa.files.sounds import sound_at


def read_excerpt(
    path: str | Path,
    start_s: float = 0.0,
    end_s: float = float("inf"),
    channel: int | None = None,
    sample_rate: int = SAMPLE_RATE,
) -> Tensor:
    """Seconds `start_s … end_s` of a file, [samples] at `sample_rate`; of one channel, or the mix of all.

    path: a file, a URL, or ARCHIVE.tar/MEMBER, as `hear-jepa embed` names them.
    Raises OptionError for times that are none, AudioError for what cannot be decoded or ends before the start.
    """
    if not 0 <= start_s < end_s:
        raise OptionError(f"a stretch from {start_s} to {end_s} s is none: the start is from 0, before the end")
    with sound_at(path).local() as file, AudioReader(file) as reader:
        blocks = reader.blocks(sample_rate=sample_rate, mono=channel is None, excerpt=(start_s, end_s))
        return torch.cat([block[channel or 0] for block in blocks])


def is_there(path: str) -> bool:
    """Whether a file, or the archive that it is in, is where its path says."""
    return Path(path).is_file() or any(folder.is_file() for folder in Path(path).parents)
