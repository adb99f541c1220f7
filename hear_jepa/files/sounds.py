"""What is embedded: a file, an excerpt of one, a member of a tar archive, or a URL; all of them read as local files."""

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hear_jepa.errors import AudioError, OptionError
from hear_jepa.files.audio import FFMPEG_SUFFIXES, SOUNDFILE_SUFFIXES

NEEDS_FSSPEC = "URLs need fsspec: pip install fsspec aiohttp (s3fs for s3://, gcsfs for gs://)"
COPY_BYTES = 2**20


@dataclass(frozen=True)
class Sound:
    """Something to embed.

    path: a file, a URL, or ARCHIVE.tar/MEMBER; excerpt: seconds from, to, of it (to: infinity for its end);
    columns: what a table says of it, (name, value) each; member: first byte and size of it in an archive;
    name: its path below the folder that was named, which decides the shard that embeds it.
    """

    path: str | Path
    excerpt: tuple[float, float] | None = None
    columns: tuple[tuple[str, str], ...] = ()
    member: tuple[int, int] | None = None
    name: str = ""

    @property
    def archive(self) -> Path:
        """The archive that a member lies in."""
        parts = Path(self.path).parts
        ends = [n + 1 for n, part in enumerate(parts) if part.lower().endswith(".tar")]
        return next(path for path in (Path(*parts[:end]) for end in ends) if path.is_file())

    def stamp(self) -> tuple[int, int]:
        """Size and time, which change when the content does; -1 for what is not known."""
        try:
            if is_url(self.path):
                return _remote_stamp(str(self.path))
            status = os.stat(self.archive if self.member else self.path)
        except (OSError, StopIteration):
            return -1, -1
        return (self.member[1] if self.member else status.st_size), status.st_mtime_ns

    @contextmanager
    def local(self) -> Iterator[Path]:
        """The file to read: this one, or a temporary copy, made a piece at a time. Raises AudioError."""
        if self.member is None and not is_url(self.path):
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory(prefix="hear_jepa_") as folder:
            copy = Path(folder) / f"sound{Path(self.path).suffix}"
            try:
                with self._open() as source, open(copy, "wb") as target:
                    _copy(source, target, self.member[1] if self.member else None)
            except Exception as error:  # whatever a file system's driver throws
                raise AudioError(f"{self.path}: {str(error) or type(error).__name__}") from error
            yield copy

    def _open(self):
        if self.member is None:
            return fsspec_or_advice().open(str(self.path), "rb").open()
        file = open(self.archive, "rb")  # noqa: SIM115 (the caller closes it)
        file.seek(self.member[0])
        return file


def is_url(path: str | Path) -> bool:
    """Whether a path is of another kind than this machine's files: `s3://`, `gs://`, `https://`."""
    return isinstance(path, str) and "://" in path


def is_sound(name: str) -> bool:
    """Whether a name ends as those of sound files do."""
    return os.path.splitext(name)[1].lower() in SOUNDFILE_SUFFIXES | FFMPEG_SUFFIXES


def members(archive: Path) -> list[Sound]:
    """The sounds in a tar archive, in its order. Raises OptionError for what is none."""
    try:
        with tarfile.open(archive, "r:") as tar:
            return [
                Sound(archive / entry.name, member=(entry.offset_data, entry.size), name=entry.name)
                for entry in tar
                if entry.isfile() and is_sound(entry.name)
            ]
    except (tarfile.TarError, OSError) as error:
        raise OptionError(f"{archive} is no tar archive that can be read ({error}); compressed ones cannot") from error


def remote_sounds(url: str) -> list[Sound]:
    """The sound at a URL, those that a pattern matches, or those below a folder. Raises OptionError."""
    try:
        system, path = fsspec_or_advice().core.url_to_fs(url)
        if "*" in url:
            found = sorted(system.glob(path))
        else:
            found = [path] if is_sound(url.split("?")[0]) else sorted(system.find(path))
    except OptionError:
        raise
    except Exception as error:
        raise OptionError(f"{url} cannot be listed ({str(error) or type(error).__name__})") from error
    names = [name for name in found if is_sound(name.split("?")[0])]
    return [Sound(url if name == path else system.unstrip_protocol(name), name=name) for name in names]


def fsspec_or_advice() -> Any:
    """The library; raises OptionError, with what to install, where it is missing."""
    try:
        import fsspec
        import fsspec.core
    except ImportError as error:
        raise OptionError(NEEDS_FSSPEC) from error
    return fsspec


def _remote_stamp(url: str) -> tuple[int, int]:
    try:
        system, path = fsspec_or_advice().core.url_to_fs(url)
        info = system.info(path)
    except Exception:
        return -1, -1
    version = next((info[key] for key in ("ETag", "etag", "LastModified", "mtime", "updated") if info.get(key)), None)
    digest = hashlib.sha256(str(version).encode()).hexdigest()
    return info.get("size") or -1, -1 if version is None else int(digest[:15], 16)


def _copy(source, target, size: int | None) -> None:
    if size is None:
        shutil.copyfileobj(source, target, COPY_BYTES)
        return
    while size > 0 and (piece := source.read(min(size, COPY_BYTES))):
        target.write(piece)
        size -= len(piece)
