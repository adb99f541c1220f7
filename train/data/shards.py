"""WebDataset tars, written clip by clip, byte for byte the same whenever the clips are the same."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import soundfile

from hear_jepa.files.audio import SAMPLE_RATE
from hear_jepa.train.data.manifest import Shard

BLOCK = tarfile.BLOCKSIZE
END_OF_ARCHIVE = b"\0" * (2 * BLOCK)


def encode_flac(samples: np.ndarray) -> bytes:
    """int16 [n] -> the bytes of a FLAC file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


class DamagedFlac(ValueError):
    """Bytes that are no FLAC file, or not all of one."""


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


class DamagedShard(ValueError):
    """Bytes that are not the shard which the manifest describes."""


def shard_flacs(data: bytes, shard: Shard, verify: bool = True) -> dict[str, bytes]:
    """The bytes of a shard -> its FLAC files by name. Raises DamagedShard where they are not those of the manifest.

    verify: compare the SHA-256 too, where the manifest has one.
    """
    if verify and shard.sha256 and hashlib.sha256(data).hexdigest() != shard.sha256:
        raise DamagedShard(f"its {len(data)} bytes are not those of the manifest's SHA-256")
    flacs = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(".flac"):
                    flacs[member.name] = tar.extractfile(member).read()
    except (tarfile.TarError, OSError) as error:
        raise DamagedShard(f"not a whole tar: {error}") from error
    if len(flacs) != shard.clips:
        raise DamagedShard(f"it has {len(flacs)} clips, the manifest says {shard.clips}")
    return flacs


class ShardWriter:
    """The shards of one domain: `<domain>-000000.tar`, … in `folder`; a shard ends when it exceeds `shard_bytes`.

    The shard being written is called `….tar.partial`. `position` names a state that `rewind` returns to, whatever
    was written after it, also by a process that was killed.
    """

    def __init__(self, folder: Path, domain: str, shard_bytes: int):
        self._folder, self._domain, self._shard_bytes = folder, domain, shard_bytes
        self._index, self._file = 0, None

    @property
    def position(self) -> list[int]:
        """[index of the shard, bytes written to it]; what is named is on disk."""
        if self._file is not None:
            self._file.flush()
        return [self._index, 0 if self._file is None else self._file.tell()]

    def rewind(self, position: list[int]) -> None:
        """Forget whatever was written after `position`."""
        self.close()
        self._index, size = position
        shard, partial = self._paths(self._index)
        if shard.exists():
            os.replace(shard, partial)
        for path in self._folder.glob(f"{self._domain}-??????.tar*"):
            later = int(path.name[len(self._domain) + 1 :][:6])
            if later > self._index:
                path.unlink()
        if size:
            self._file = open(partial, "r+b")  # noqa: SIM115 (open from clip to clip)
            self._file.truncate(size)
            self._file.seek(size)
        else:
            partial.unlink(missing_ok=True)

    def add(self, key: str, flac: bytes, description: dict) -> str:
        """Write one clip and return the name of the shard that holds it."""
        shard, partial = self._paths(self._index)
        if self._file is None:
            self._file = open(partial, "wb")  # noqa: SIM115
        text = json.dumps(description, ensure_ascii=False, sort_keys=True).encode()
        for name, data in ((f"{key}.flac", flac), (f"{key}.json", text)):
            self._file.write(_tar_header(name, len(data)) + data + b"\0" * (-len(data) % BLOCK))
        if self._file.tell() > self._shard_bytes:
            self.finish_shard()
        return shard.name

    def finish_shard(self) -> None:
        """Complete the shard being written, if any, and give it its name."""
        if self._file is None:
            return
        self._file.write(END_OF_ARCHIVE)
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()
        shard, partial = self._paths(self._index)
        os.replace(partial, shard)
        self._index += 1

    def close(self) -> None:
        """Close the file being written, if any, as it is."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _paths(self, index: int) -> tuple[Path, Path]:
        shard = self._folder / f"{self._domain}-{index:06d}.tar"
        return shard, shard.with_name(shard.name + ".partial")


def _tar_header(name: str, size: int) -> bytes:
    # Owner, mode and time are constants: they are nobody's business and would make equal shards differ.
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, 0
    return member.tobuf(format=tarfile.USTAR_FORMAT)
