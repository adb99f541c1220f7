"""What is embedded: a file, an excerpt of one, a member of a tar archive, here or at a URL; all read as local files."""

import hashlib
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from hear_jepa.errors import AudioError, OptionError
from hear_jepa.files.folders import is_sound

NEEDS_FSSPEC = "URLs need fsspec: pip install fsspec aiohttp (s3fs for s3://, gcsfs for gs://)"
PIECE_BYTES = 2**21  # of an archive's member copied at once
HEADER_BYTES = 2**16  # of a remote archive read at once while it is listed: headers lie a member apart
SILENT_S = 60.0  # of a web server, after which it counts as gone

Stamp = tuple[int, int]  # size and time, which change when the content does; -1 for what is not known


class Member(NamedTuple):
    """Where a member lies: its archive, a path or a URL, its first byte in it, and its size."""

    archive: str | Path
    start: int
    size: int


@dataclass(frozen=True)
class Sound:
    """Something to embed.

    path: a file, a URL, or ARCHIVE.tar/MEMBER; excerpt: seconds from, to, of it (to: infinity for its end);
    columns: what a table says of it, (name, value) each; listed: its stamp, where whoever listed it was told;
    name: its path below the folder that was named, which decides the shard that embeds it.
    """

    path: str | Path
    excerpt: tuple[float, float] | None = None
    columns: tuple[tuple[str, str], ...] = ()
    member: Member | None = None
    name: str = ""
    listed: Stamp | None = field(default=None, compare=False)

    def stamp(self) -> Stamp:
        """What is known of its content."""
        return self.listed or _stamp(self.path)

    @contextmanager
    def local(self) -> Iterator[Path]:
        """The file to read: this one, or a temporary copy, made a piece at a time. Raises AudioError."""
        if self.member is None and not is_url(self.path):
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory(prefix="hear_jepa_") as folder:
            copy = Path(folder) / f"sound{Path(_without_query(self.path)).suffix}"
            try:
                if self.member is None:
                    system, path = _file_system(str(self.path))
                    system.get_file(path, str(copy))
                else:
                    _copy_member(self.member, copy)
            except Exception as error:  # whatever a file system's driver throws
                raise AudioError(f"{self.path}: {_reason(error)}") from error
            yield copy


def is_url(path: str | Path) -> bool:
    """Whether a path is of another kind than this machine's files: `s3://`, `gs://`, `https://`."""
    return isinstance(path, str) and "://" in path


def is_archive(name: str) -> bool:
    """Whether a name ends as those of tar archives do that are not compressed."""
    return name.lower().endswith(".tar")


def sound_at(path: str | Path) -> Sound:
    """The sound of a path as `hear-jepa embed` names it: a file, a URL, or ARCHIVE.tar/MEMBER.

    Raises OptionError for an archive that cannot be read.
    """
    for end in re.finditer(r"\.tar(?=[/\\])", str(path), re.IGNORECASE):
        archive = str(path)[: end.end()]
        if is_url(archive) or Path(archive).is_file():
            return _members_by_path(archive).get(str(path)) or Sound(path)
    return Sound(path if is_url(path) else Path(path))


def members(archive: str | Path) -> list[Sound]:
    """The sounds in a tar archive, here or at a URL, in its order. Raises OptionError for what is none."""
    _, time = _stamp(archive)
    parent = _without_query(archive) if is_url(archive) else Path(archive)
    try:
        with _open(archive) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            entries = [entry for entry in tar if entry.isfile() and is_sound(entry.name)]
    except OptionError:
        raise
    except Exception as error:
        raise OptionError(
            f"{archive} is no tar archive that can be read ({_reason(error)}); compressed ones cannot"
        ) from error
    return [
        Sound(
            f"{parent}/{entry.name.removeprefix('./')}" if isinstance(parent, str) else parent / entry.name,
            member=Member(archive, entry.offset_data, entry.size),
            name=entry.name,
            listed=(entry.size, time),
        )
        for entry in entries
    ]


def remote_sounds(url: str) -> list[Sound]:
    """The sound at a URL, those in the archive there, what a pattern matches, or what lies below a folder.

    Raises OptionError.
    """
    bare = _without_query(url)
    try:
        system, path = _file_system(url)
        system.invalidate_cache()  # of earlier listings
        if "*" in url:
            found = system.glob(path, detail=True)
        elif is_sound(bare) or is_archive(bare):
            found = {path: {}}
        else:
            found = system.find(path, detail=True)
    except OptionError:
        raise
    except Exception as error:
        raise OptionError(f"{url} cannot be listed ({_reason(error)})") from error
    sounds = []
    for name, info in sorted(found.items()):
        address = url if name == path else system.unstrip_protocol(name)
        if is_sound(_without_query(name)):
            sounds.append(Sound(address, name=name, listed=_remote_stamp(info)))
        elif is_archive(_without_query(name)) and ("*" in url or name == path):
            sounds += members(address)
    return sounds


def _file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and its path there. Raises OptionError, with what to install."""
    try:
        import fsspec.core
        from aiohttp import ClientTimeout

        # As it comes, a download from a web server may take five minutes in all, however large.
        timeout = {"timeout": ClientTimeout(total=None, sock_connect=SILENT_S, sock_read=SILENT_S)}
        options = {"client_kwargs": timeout} if url.startswith(("http://", "https://")) else {}
        return fsspec.core.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise OptionError(f"{url} cannot be opened ({error}): {NEEDS_FSSPEC}") from error


def _open(path: str | Path) -> Any:
    """A file, here or at a URL, whose parts are read as they are asked for."""
    if not is_url(path):
        return open(path, "rb")
    system, name = _file_system(str(path))
    return system.open(name, "rb", block_size=HEADER_BYTES)


def _copy_member(member: Member, copy: Path) -> None:
    stop = member.start + member.size
    with open(copy, "wb") as target:
        for start in range(member.start, stop, PIECE_BYTES):
            end = min(start + PIECE_BYTES, stop)
            piece = _read_range(member.archive, start, end)
            if len(piece) != end - start:
                raise AudioError(f"{len(piece)} bytes of {member.archive} came in place of {end - start}")
            target.write(piece)


def _read_range(path: str | Path, start: int, end: int) -> bytes:
    if is_url(path):
        system, name = _file_system(str(path))
        return system.cat_file(name, start=start, end=end)
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(end - start)


@lru_cache(maxsize=64)
def _members_by_path(archive: str) -> dict[str, Sound]:
    return {str(sound.path): sound for sound in members(archive)}


def _stamp(path: str | Path) -> Stamp:
    try:
        if is_url(path):
            system, name = _file_system(str(path))
            info = system.info(name)
            return _remote_stamp(info) or (info.get("size") or -1, -1)
        status = os.stat(path)
    except Exception:  # whoever reads it says why it cannot be
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _remote_stamp(info: dict) -> Stamp | None:
    """The stamp in what a file system tells of a file; None where it tells no version."""
    version = next((info[key] for key in ("ETag", "etag", "LastModified", "mtime", "updated") if info.get(key)), None)
    if version is None:
        return None
    return info.get("size") or -1, int(hashlib.sha256(str(version).encode()).hexdigest()[:15], 16)


def _without_query(path: str | Path) -> str:
    return str(path).split("?")[0] if is_url(path) else str(path)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
