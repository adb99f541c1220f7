"""WebDataset tars of FLAC files, byte for byte the same whenever the clips are the same."""

import hashlib
import io
import tarfile
from collections.abc import Iterator

import numpy as np
import soundfile

from hear_jepa.train.data.manifest import Shard


class DamagedFlac(ValueError):
    """Bytes that are no FLAC file, or not all of one."""


class DamagedShard(ValueError):
    """Bytes that are not the shard which the manifest describes."""


def encode_flac(samples: np.ndarray, sample_rate: int) -> bytes:
    """int16 [n] -> the bytes of a FLAC file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(data: bytes) -> np.ndarray:
    """The bytes of a FLAC file -> int16 [n]; raises DamagedFlac."""
    return read_flac(data, 0, flac_length(data))


def read_flac(data: bytes, start: int, count: int) -> np.ndarray:
    """Decode int16 [count] from sample `start` of the bytes of a FLAC file; raises DamagedFlac."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            file.seek(start)
            samples = file.read(count, dtype="int16")
    except soundfile.LibsndfileError as error:
        raise DamagedFlac(f"damaged FLAC ({error.error_string})") from error
    if not 0 < len(samples) == count:
        raise DamagedFlac(f"damaged FLAC ({len(samples)} of {count} samples decoded)")
    return samples


def flac_length(data: bytes) -> int:
    """Samples of a FLAC file, from its header; 0 for anything else."""
    return int.from_bytes(data[18:26], "big") & (1 << 36) - 1 if data[:4] == b"fLaC" else 0


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file to a tar that is being written. Owner, mode and time are constants, so that equal tars are equal."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o644, 0
    tar.addfile(member, io.BytesIO(data))


def members(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of the files in a tar; raises tarfile.TarError where it ends early."""
    for member in tar:
        if content := tar.extractfile(member):  # None: a folder
            yield member.name, content.read()


def shard_flacs(data: bytes, shard: Shard, verify: bool = True) -> dict[str, bytes]:
    """The bytes of a shard -> its FLAC files by name. Raises DamagedShard where they are not those of the manifest.

    verify: compare the SHA-256 too, where the manifest has one.
    """
    if verify and shard.sha256 and hashlib.sha256(data).hexdigest() != shard.sha256:
        raise DamagedShard(f"its {len(data)} bytes are not those of the manifest's SHA-256")
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            flacs = {name: content for name, content in members(tar) if name.endswith(".flac")}
    except (tarfile.TarError, OSError) as error:
        raise DamagedShard(f"not a whole tar: {error}") from error
    if len(flacs) != shard.clips:
        raise DamagedShard(f"it has {len(flacs)} clips, the manifest says {shard.clips}")
    return flacs
