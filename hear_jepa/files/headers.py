"""How long a sound file says it is: what a damaged one is measured by."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

UNKNOWN_SIZE = 0x7FFFF000  # and above: what recorders write that do not know the length yet

# Of WAV: PCM, float, A-law, µ-law, extensible. The bytes a second of others, such as ADPCM, are rounded.
SAMPLE_CODECS = (1, 3, 6, 7, 0xFFFE)


def declared_duration_s(path: Path) -> float | None:
    """Seconds of sound that the header of a WAV or AIFF file declares; None for others, ADPCM, and unknown lengths."""
    with open(path, "rb") as file:
        kind, _, form = struct.unpack("4s4s4s", file.read(12).ljust(12, b"\0"))
        if kind in (b"RIFF", b"RF64") and form == b"WAVE":
            return _wav_duration_s(file)
        if kind == b"FORM" and form in (b"AIFF", b"AIFC"):
            return _aiff_duration_s(file)
    return None


def _wav_duration_s(file: BinaryIO) -> float | None:
    bytes_per_s, long_size = 0, None
    for name, size in _chunks(file, "<"):
        if name == b"ds64":
            long_size = struct.unpack("<8xQ", file.read(16).ljust(16, b"\0"))[0]
        elif name == b"fmt ":
            codec, bytes_per_s = struct.unpack("<H6xI", file.read(12).ljust(12, b"\0"))
            if codec not in SAMPLE_CODECS:
                return None
        elif name == b"data":
            if size >= UNKNOWN_SIZE:  # a recorder that wrote to a pipe, or the true size of a long file in its ds64
                size = long_size
            return size / bytes_per_s if size and bytes_per_s else None
    return None


def _aiff_duration_s(file: BinaryIO) -> float | None:
    for name, _ in _chunks(file, ">"):
        if name == b"COMM":
            samples, exponent, mantissa = struct.unpack(">2xI2xHQ", file.read(18).ljust(18, b"\0"))
            rate = mantissa * 2.0 ** ((exponent & 0x7FFF) - 16383 - 63)
            return samples / rate if samples < UNKNOWN_SIZE and rate > 0 else None
    return None


def _chunks(file: BinaryIO, order: str) -> Iterator[tuple[bytes, int]]:
    """Name and size of the chunks of an IFF file, the file at the start of each one's content."""
    start = file.tell()
    while len(header := file.read(8)) == 8:
        name, size = struct.unpack(f"{order}4sI", header)
        start += 8
        yield name, size
        start += size + size % 2
        file.seek(start)
