"""What the name of a device means, for every command, and how data get there."""

import torch
from torch import Tensor

from hear_jepa.errors import OptionError

DEVICES = "auto, cpu, cuda, cuda:1 or mps"


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The named device; with "auto" a GPU where there is one, CUDA's before Apple's.

    local_rank: which GPU, where the name does not say. Raises OptionError for a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OptionError(f"there is no device {name!r}: give {DEVICES}") from error
    if device.type == "cuda":
        device = torch.device("cuda", local_rank if device.index is None else device.index)
    there = {"cuda": (device.index or 0) < torch.cuda.device_count(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, True):
        raise OptionError(f"cannot use the device {name!r}, which torch does not see here: give {DEVICES}")
    return device


def copied(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on that device. CUDA's steps wait for no copy; Apple's might read a temporary that is gone by then."""
    return tensor.to(device, non_blocking=device.type == "cuda")
