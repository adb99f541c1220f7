"""What to embed: files, folders, glob patterns and lists of paths -> one list of files, each once."""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hear_jepa.errors import OptionError
from hear_jepa.files.audio import HEADERLESS, walk_audio

LIST_SUFFIX = ".txt"


@dataclass
class Found:
    """What names stand for.

    files: each once, in order; folders and links that cannot be followed too: whoever opens them says why;
    roots: the files and folders that were named, which no output may touch;
    left_out: the files without a header, which were not asked for.
    """

    files: list[Path] = field(default_factory=list)
    roots: list[Path] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)


def find_sources(paths: Iterable[str | Path], headerless: bool = False) -> Found:
    """Expand `paths` in their order; a file that is named twice is listed once, where it was named first.

    A folder stands for every sound below it, a pattern (`*`, `?`, `[…]`, `**`) for what it matches, a `.txt` file for
    the files, folders and patterns that it lists, one a line, relative to the current folder.
    headerless: take files without a header (.g722, .gsm) from folders and patterns too; named outright they are taken.
    Raises OptionError where a path does not exist, a list cannot be read, or nothing is found. A line of a list that
    names nothing stands for itself.
    """
    paths = [os.fspath(path) for path in paths]
    found = Found()
    for name in paths:
        listed = Path(name).suffix.lower() == LIST_SUFFIX
        roots = [root for line in read_list(name) for root in _named(line)] if listed else list(_named(name))
        if not listed and not any(os.path.lexists(root) for root in roots):
            raise OptionError(f"there is no file or folder {name}, and no file that it matches: check the path")
        found.roots += [Path(name), *roots] if listed else roots
        for root in roots:
            for file, asked in _below(root, outright=root == Path(name) or listed):
                taken = asked or headerless or file.suffix.lower() not in HEADERLESS
                (found.files if taken else found.left_out).append(file)
    found.files = list(dict.fromkeys(found.files))
    if not found.files:
        reason = (
            f"only files without a header, such as {found.left_out[0]}: give --headerless" if found.left_out else ""
        )
        named = ", ".join(paths) or "an empty list"
        raise OptionError(f"no sound in {named}: {reason or 'give files, folders or patterns'}")
    return found


def read_list(path: str | Path) -> list[str]:
    """The lines of a text file, empty ones left out; names in it need not be UTF-8. Raises OptionError."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise OptionError(f"the list of paths {path} cannot be read ({error.strerror})") from error
    if b"\0" in content:
        raise OptionError(f"the list of paths {path} is no text in UTF-8: give one path a line")
    lines = os.fsdecode(content.removeprefix(b"\xef\xbb\xbf")).split("\n")
    return [line.removesuffix("\r") for line in lines if line.strip()]


def check_out(out: str | Path, roots: Iterable[Path]) -> None:
    """Raise OptionError where an output is, holds, or lies inside one of the inputs."""
    out_path = Path(out).resolve()
    for root in roots:
        source = root.resolve()
        if source == out_path:
            raise OptionError(f"--out {out} is one of the inputs: choose another name")
        if out_path in source.parents:
            raise OptionError(f"--out {out} holds the input {root}: choose another name")
        if source in out_path.parents:
            raise OptionError(f"--out {out} lies inside the input {root}: choose a name outside it")


def _named(name: str) -> Iterator[Path]:
    """The file or folder of that name, or what the pattern matches."""
    if not os.path.lexists(name) and glob.has_magic(name):
        yield from sorted(Path(match) for match in glob.glob(name, recursive=True))
    else:
        yield Path(name)


def _below(root: Path, outright: bool) -> Iterator[tuple[Path, bool]]:
    """Every file to embed, and whether it was named outright."""
    if root.is_dir():
        for path, problem in walk_audio(root):
            yield path, bool(problem)
    else:
        yield root, outright
