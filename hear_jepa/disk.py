"""Files that are whole or not there, locks, and checksums: the only place that knows how."""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hear_jepa.errors import LockError

LOCK = "lock"  # in the temporary folder of a writer, held as long as the writer lives
TEMPORARY = re.compile(r"\..*\.[a-z0-9_]{8}\.part")
SETTLED_S = 60.0  # a temporary folder without a lock is that of a writer about to take it, or of one killed just then
CHUNK_BYTES = 2**20
MANY = 32  # files of a folder


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path of the same name; on success fsync it and rename it to `path`, on failure delete it.

    Write a file there, or make a folder. A full disk, a kill or an exception while writing leaves what was at `path`
    before. What a killed writer left in the folder is removed by the next process that writes there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_once(os.fspath(path.parent.absolute()))
    with temporary_folder(path) as folder:
        new = folder / path.name
        yield new
        if new.is_file():
            new.chmod(0o644)  # some libraries make files that only their owner may read
        _sync(new)
        if path.is_dir() and not path.is_symlink():
            os.rename(path, folder / "replaced")  # a folder with something in it cannot be renamed over
        os.replace(new, path)
        _sync_entry(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all.

    What has no UTF-8, as in a file's name of other bytes, is written as its escape, which JSON reads back.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, content: object) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """What a JSON file holds. Raises OSError, or ValueError for one that is damaged."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new hidden folder beside `path`, removed at the end, and after a kill by `remove_abandoned`."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".part"))
        lock = FileLock(folder / LOCK, thread_local=False)
        lock.acquire()
        if (folder / LOCK).exists():  # else another process took the folder for abandoned
            break
        lock.release()
    try:
        yield folder
    finally:
        with suppress(OSError):
            _remove_lock_last(folder)
        lock.release()


def remove_abandoned(folder: str | Path) -> None:
    """Remove the temporary folders of writers that were killed in `folder`; those of living writers stay."""
    for entry in Path(folder).glob(".*.part"):
        if TEMPORARY.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
            with suppress(OSError):  # of another user, or removed meanwhile
                _remove_if_abandoned(entry)


@contextmanager
def locked(path: str | Path, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, which exists as long; the system lets go of it however the process ends.

    timeout_s: how long to wait for another holder; negative: for ever. Raises LockError.
    """
    path = Path(path)
    lock = FileLock(path, thread_local=False)
    while True:
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout as error:
            raise LockError(f"{path} is held by another process: wait for it to end") from error
        if path.exists():  # else the holder before removed it after this process had opened it
            break
        lock.release()
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        lock.release()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _remove_abandoned_once(folder: str) -> None:
    """Once a process: a folder of many files is not listed at every write."""
    remove_abandoned(folder)


def _remove_if_abandoned(folder: Path) -> None:
    if not (folder / LOCK).exists():
        if not any(folder.iterdir()) and time.time() - folder.stat().st_mtime > SETTLED_S:
            folder.rmdir()
        return
    with suppress(LockError), locked(folder / LOCK):
        _remove_lock_last(folder)


def _remove_lock_last(folder: Path) -> None:
    """After a kill in the middle of it the lock still says that the folder is a writer's, and of one that is dead."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != LOCK:
            entry.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the system write a file, or the files below a folder, to the disk."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    if len(files) > MANY and hasattr(os, "sync"):
        os.sync()  # one wait in place of thousands
        return
    for file in files:
        with open(file, "rb+") as opened:
            os.fsync(opened.fileno())


def _sync_entry(folder: Path) -> None:
    """Have the system write a folder's entries to the disk, where it can."""
    with suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
