"""What to embed: files, folders, glob patterns and lists of paths -> one list of files, each once."""

import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from hear_jepa.errors import OptionError
from hear_jepa.files.audio import find_audio

LIST_SUFFIX = ".txt"


def find_sources(paths: Iterable[str | Path]) -> list[Path]:
    """Expand `paths` in their order; a file that is named twice is listed once, where it was named first.

    A folder stands for every sound below it, a pattern (`*`, `?`, `[…]`, `**`) for what it matches, a `.txt` file for
    the files, folders and patterns it lists, one a line, relative to the current folder. Other names stand for
    themselves, existing or not: whoever decodes them says what is wrong.
    Raises OptionError when nothing is found, or a list cannot be read.
    """
    paths = list(paths)
    found = dict.fromkeys(file for path in paths for file in _expand(str(path)))
    if not found:
        raise OptionError(
            f"no sound in {', '.join(map(str, paths)) or 'an empty list'}: give files, folders or patterns"
        )
    return list(found)


def _expand(name: str) -> Iterator[Path]:
    path = Path(name)
    if path.suffix.lower() == LIST_SUFFIX:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(
                f"the list of paths {path} cannot be read ({error}): give a text file in UTF-8"
            ) from error
        for line in filter(str.strip, lines):
            yield from _named(line)
    else:
        yield from _named(name)


def _named(name: str) -> Iterator[Path]:
    path = Path(name)
    if path.is_dir():
        yield from find_audio(path)
    elif not path.exists() and glob.has_magic(name):
        matches = sorted(Path(match) for match in glob.glob(name, recursive=True))
        for match in matches:
            if match.is_dir():
                yield from find_audio(match)
            else:
                yield match
    else:
        yield path
