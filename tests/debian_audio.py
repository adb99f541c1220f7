"""Audio out of Debian packages: download, unpack, and open the containers that hide it, as 16 kHz mono arrays.

Only `tasks_from_debian.py` imports this. It needs `apt-get`, `dpkg-deb`, numpy, scipy and soundfile; no root.
"""

import io
import struct
import subprocess
import zlib
from collections.abc import Iterator
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import butter, resample_poly, sosfiltfilt

SAMPLE_RATE = 16000


def unpack(package: str, work_dir: Path) -> Path:
    """Download `package` with apt-get and unpack it under `work_dir`; a package already there is kept."""
    root = work_dir / package
    if not root.exists():
        work_dir.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", package], cwd=work_dir, check=True)
        (archive,) = work_dir.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
    return root


def resource_files(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file of a Qt resource archive (.rcc), zlib-packed entries unpacked."""
    archive = path.read_bytes()
    if archive[:4] != b"qres":
        raise ValueError(f"{path} is no Qt resource archive: it starts with {archive[:4]!r}, not b'qres'")
    version, tree, data, names = struct.unpack_from(">4I", archive, 4)
    node_size = 22 if version >= 2 else 14

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", archive, names + offset)
        return archive[names + offset + 6 : names + offset + 6 + 2 * length].decode("utf-16-be")

    def walk(node: int, folder: str) -> Iterator[tuple[str, bytes]]:
        at = tree + node * node_size
        name_offset, flags = struct.unpack_from(">IH", archive, at)
        name = folder + name_at(name_offset) if node else ""
        if flags & 2:  # a folder: how many children, and the first of them
            count, first = struct.unpack_from(">II", archive, at + 6)
            for child in range(first, first + count):
                yield from walk(child, f"{name}/" if node else "")
        else:
            (offset,) = struct.unpack_from(">I", archive, at + 10)
            (length,) = struct.unpack_from(">I", archive, data + offset)
            content = archive[data + offset + 4 : data + offset + 4 + length]
            yield name, zlib.decompress(content[4:]) if flags & 1 else content

    return walk(0, "")


def sound_catalogue(path: Path) -> Iterator[tuple[str, bytes]]:
    """(title and credit, WAV content) of every entry of an OpenTTD sound catalogue (.cat), in order."""
    catalogue = path.read_bytes()
    count = (struct.unpack_from("<I", catalogue)[0] & 0x7FFFFFFF) // 8
    for entry in range(count):
        offset, size = struct.unpack_from("<II", catalogue, 8 * entry)
        offset &= 0x7FFFFFFF
        title_end = offset + 1 + catalogue[offset]
        title = catalogue[offset + 1 : title_end].rstrip(b"\0").decode("utf-8")
        yield title, catalogue[title_end : title_end + size]


def decode(source: Path | bytes) -> np.ndarray:
    """A sound file or its content -> float64 [samples], 16 kHz, channels averaged, nothing below 20 Hz."""
    audio, rate = soundfile.read(io.BytesIO(source) if isinstance(source, bytes) else source, always_2d=True)
    mono = audio.mean(axis=1)
    # Some recorders leave an offset or a drift louder than the sound: cut what lies below 20 Hz.
    mono = sosfiltfilt(butter(2, 20, "highpass", fs=rate, output="sos"), mono)
    common = gcd(rate, SAMPLE_RATE)
    return mono if rate == SAMPLE_RATE else resample_poly(mono, SAMPLE_RATE // common, rate // common)


def trim_start(audio: np.ndarray, threshold: float = 0.05, lead_ms: float = 10.0) -> np.ndarray:
    """Cut the silence before the first sample above `threshold` of the peak, but for `lead_ms` of it."""
    onset = int(np.argmax(np.abs(audio) >= threshold * np.abs(audio).max()))
    return audio[max(0, onset - round(lead_ms * SAMPLE_RATE / 1000)) :]


def fit(audio: np.ndarray, duration_s: float, peak: float = 0.7) -> np.ndarray:
    """Exactly `duration_s` of audio (cut with a 10 ms fade, or continued by silence), peak-normalised."""
    samples = round(duration_s * SAMPLE_RATE)
    clip = np.zeros(samples)
    kept = audio[:samples]
    clip[: len(kept)] = kept
    if len(audio) > samples:
        fade = SAMPLE_RATE // 100
        clip[-fade:] *= np.linspace(1.0, 0.0, fade)
    return clip * (peak / np.abs(clip).max())
