"""What lies where an output is to be written, and whether it may be replaced."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hear_jepa.disk import locked
from hear_jepa.errors import LockError, OptionError
from hear_jepa.files.formats import FORMATS, format_of, is_parts, open_output
from hear_jepa.files.records import Stored


@contextmanager
def locked_output(out: Path) -> Iterator[None]:
    """Hold the lock of an output. Raises OptionError where another run holds it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(out.with_name(f".{out.name}.lock")):
            yield
    except LockError as error:
        raise OptionError(f"another run is writing {out}: wait for it, or choose another --out") from error


def is_there(out: Path) -> bool:
    """Whether there is something that could be lost."""
    empty_folder = out.is_dir() and not any(out.iterdir())
    return os.path.lexists(out) and not empty_folder


def held_by(out: Path) -> Stored | None:
    """What an output holds, None where nothing is there.

    Raises OptionError for what is not certainly an output of `hear-jepa embed` with nothing else in it.
    """
    if not is_there(out):
        return None
    try:
        stored = open_output(out)
        ours = not is_parts(out) and "kind" in stored.settings
        if ours and FORMATS[format_of(out)].holds_nothing_else(out, stored):
            return stored
    except OptionError:
        pass
    raise OptionError(
        f"{out} exists, and is not certainly an earlier output of `hear-jepa embed` with nothing else in it: it is "
        "left as it is; choose another --out"
    )


def stamp_of(out: Path) -> list[tuple[int, int, int]]:
    """Changes when something is put in the place of an output, or into it."""
    found = [out, *sorted(out.iterdir())] if out.is_dir() else [out]
    status = [os.stat(path) for path in found if path.exists()]
    return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in status]
