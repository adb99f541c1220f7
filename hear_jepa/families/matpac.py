"""MATPAC and MATPAC++ (Quelennec et al. 2025): an M2D-like ViT whose blocks lie behind `student_encoder.`.

Its own code computes the same log-mel as ours with torchaudio, but without padding: its frame `i` starts, ours is
centred, at sample `160 · i`. What is served is the same frames, 12.5 ms of silence earlier.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from hear_jepa.errors import OptionError
from hear_jepa.families.adapted import (
    Adapted,
    Asked,
    leave_out,
    of_frequency_major,
    require,
    shape_of,
    standardisation,
)
from hear_jepa.model.front_end import FrontEndConfig

TITLE = "MATPAC or MATPAC++"
ORIGIN = "https://github.com/aurianworld/matpac"
LICENCE = "unknown"  # the repository names none
ENCODER = "student_encoder."
LEFT_OUT = (
    "decoder",
    "teacher_",
    "mcl_heads",
    "cls_student_head",
    "cls_teacher_head",
    "cls_head",
    "head",
    "probe",
    "log_mel.",
)
MEAN_STD = (-7.056, 4.193)
N_MELS = 80


def recognise(names: Collection[str], file_name: str) -> bool:
    """The student is named so by no other family."""
    return f"{ENCODER}norm.weight" in names and "pos_embed" in names


def adapt(state: dict[str, Tensor], source: Path, asked: Asked) -> Adapted:
    """The student encoder."""
    if asked.encoder is not None:
        raise OptionError("--encoder is an option of the paper's files: of a MATPAC file the student is served")
    found, left_out = leave_out(state, LEFT_OUT)
    found = {name.removeprefix(ENCODER): tensor.float() for name, tensor in found.items()}
    require(source, found, "cls_token")
    weights, shape = of_frequency_major(source, found, N_MELS)
    mean, std, note = standardisation(asked, MEAN_STD, "those of MATPAC's own code; the file holds none")
    return Adapted(
        encoder=shape_of(weights, asked, **shape),
        weights=weights,
        front_end=replace(FrontEndConfig(n_mels=N_MELS), mean=mean, std=std),
        notes=[note],
        left_out=left_out,
    )
