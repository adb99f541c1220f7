"""Pages that need no server, no network and no library: a template of this folder with the data in it."""

import base64
import io
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy
import soundfile

from hear_jepa.disk import write_text
from hear_jepa.files.resample import SAMPLE_RATE


def write_page(out: str | Path, template: str, data: dict[str, Any]) -> None:
    """Write a template with JSON of `data` in the place of its word DATA."""
    page = (files("hear_jepa.explore") / template).read_text(encoding="utf-8")
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")  # never ends the script
    write_text(out, page.replace("DATA", text, 1))


def opus(audio: numpy.ndarray) -> bytes:
    """Sound [samples] at SAMPLE_RATE as an Ogg file."""
    file = io.BytesIO()
    soundfile.write(file, audio, SAMPLE_RATE, format="OGG", subtype="OPUS")
    return file.getvalue()


def as_text(content: bytes) -> str:
    """Bytes in base64, as pages hold them."""
    return base64.b64encode(content).decode("ascii")
