"""Which files are sound, by their names, and where they are below a folder."""

import logging
import os
from pathlib import Path

# Kept from libsndfile, which takes some headerless ones for MP3.
FFMPEG_SUFFIXES = frozenset([".g722", ".gsm", ".3gp", ".m4a", ".m4b", ".mp4", ".aac", ".wma", ".amr", ".ape", ".wv"])
FFMPEG_SUFFIXES |= {".tta", ".mka", ".webm", ".ac3", ".it", ".mod", ".s3m", ".xm"}
SOUNDFILE_SUFFIXES = frozenset([".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".snd"])
SOUNDFILE_SUFFIXES |= {".w64", ".caf", ".rf64", ".voc"}
# Nothing in such a file says what it is: searching a folder for sound to embed takes them only when asked.
HEADERLESS = {".g722": "g722", ".gsm": "gsm"}  # suffix: ffmpeg's name

logger = logging.getLogger(__name__)


def is_sound(name: str) -> bool:
    """Whether a name ends as those of sound files do."""
    return os.path.splitext(name)[1].lower() in SOUNDFILE_SUFFIXES | FFMPEG_SUFFIXES


def find_audio(folder: str | Path) -> list[Path]:
    """Return every file below `folder` whose suffix is that of a sound, in an order that no file system changes.

    Folders that cannot be read and broken links are logged as warnings.
    """
    found = []
    for path, problem in walk_audio(folder):
        if problem:
            logger.warning("left out %s: %s", path, problem)
        else:
            found.append(path)
    return found


def walk_audio(folder: str | Path) -> list[tuple[Path, str]]:
    """Every sound below `folder`, with "", and every folder or link that cannot be followed, with the reason; sorted.

    A folder that links lead to more than once is searched once.
    """
    found: list[tuple[Path, str]] = []
    seen: set[tuple[int, int]] = set()  # device and inode of the folders searched

    def walk(folder: Path) -> None:
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                return
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_symlink(), entry.name))
        except OSError as error:
            found.append((folder, f"the folder cannot be read ({error.strerror})"))
            return
        for entry in entries:  # what is really here before what links lead to
            path, suffix = folder / entry.name, os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                walk(path)
            elif is_sound(entry.name) or (entry.is_symlink() and not suffix):
                if entry.is_symlink() and not path.exists():
                    found.append((path, broken_link(path)))
                elif suffix and entry.is_file():
                    found.append((path, ""))

    walk(Path(folder))
    return sorted(found, key=lambda item: item[0].as_posix())


def broken_link(path: Path) -> str:
    """The reason why a link that leads nowhere cannot be read."""
    return f"a broken link to {os.readlink(path)}"
