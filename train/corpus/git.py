"""Public Git repositories of free sound -> a folder of their audio and a record of where each file came from.

    OUT/audio/          git-OWNER-NAME/path/in/the/repository: audio, beside the files that state its licence

Each repository is taken at the commit of the list: fetched from GitHub, or read from a mirror, a folder of bare clones
(MIRROR/OWNER/NAME.git or MIRROR/OWNER+NAME/repo) for machines without the net. Nothing that it holds is run.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from hear_jepa.disk import atomic_path, write_json
from hear_jepa.errors import CorpusError
from hear_jepa.files.folders import is_sound
from hear_jepa.train.corpus.catalogue import Repository, domain_of
from hear_jepa.train.corpus.domains import SKIP
from hear_jepa.train.corpus.records import EntryFailed, fetch_each, listed, record_path

HOST = "https://github.com"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Blobs that a clone lacks are left out, not fetched one by one; nobody is asked for a password.
ENVIRONMENT = {"GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}


@dataclass(frozen=True)
class Blob:
    """A file of a commit; `size` in bytes is None where the clone does not hold it."""

    path: str
    sha: str
    size: int | None


def fetch(repositories: Iterable[Repository], out: Path, mirror: Path | None) -> tuple[list[dict], list[dict]]:
    """Take the audio of `repositories` to `out`; returns (records, failures), see `fetch_each`.

    Raises CorpusError where git or the mirror is missing.
    """
    if shutil.which("git") is None:
        raise CorpusError("git not found: install it, or train on your own audio")
    if mirror is not None and not mirror.is_dir():
        raise CorpusError(f"{mirror}: no such folder; --mirror names a folder of bare clones")

    def take(repository: Repository) -> dict:
        with clone(repository, out, mirror) as git_dir:
            return take_audio(repository, git_dir, out)

    return fetch_each(repositories, out, take)


@contextmanager
def clone(repository: Repository, out: Path, mirror: Path | None) -> Iterator[Path]:
    """Yield a bare clone that holds the commit: the mirror's, or one that is fetched and removed afterwards."""
    if mirror is not None:
        owner, _, name = repository.name.partition("/")
        places = [mirror / f"{owner}+{name}" / "repo", mirror / owner / f"{name}.git"]
        found = next((place for place in places if place.is_dir()), None)
        if found is None:
            raise EntryFailed(f"not in {mirror}")
        yield found
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".clone-") as folder:
        git(folder, "init", "--quiet", "--bare")
        git(folder, "fetch", "--quiet", "--depth=1", "--no-tags", f"{HOST}/{repository.name}.git", repository.commit)
        yield Path(folder)


def take_audio(repository: Repository, git_dir: Path, out: Path) -> dict:
    """Write the audio that the rules keep, and the licence's files, under OUT/audio, and then the record."""
    blobs = list_blobs(git_dir, repository.commit)
    kept, left_out, seen = [], [], set()
    with atomic_path(out / "audio" / repository.folder) as folder:
        folder.mkdir()
        for blob in licence_files(repository, blobs):
            _write(folder, blob, git(git_dir, "cat-file", "blob", blob.sha))
        for blob in blobs:
            if not is_sound(blob.path) or domain_of(repository.rules, blob.path) == SKIP or blob.sha in seen:
                continue
            data = b"" if blob.size is None else git(git_dir, "cat-file", "blob", blob.sha)
            if blob.size is None:
                left_out.append({"path": blob.path, "reason": "not in this clone"})
            elif data.startswith(LFS_POINTER):
                left_out.append({"path": blob.path, "reason": "a Git-LFS pointer, not the sound"})
            else:
                seen.add(blob.sha)
                _write(folder, blob, data)
                kept.append({"path": blob.path, "bytes": blob.size})
        if not kept:
            raise EntryFailed(f"no audio in it: {len(left_out)} files left out")
    record = {"listed": listed(repository), "files": kept, "left_out": left_out}
    write_json(record_path(repository, out), record)
    return record


def licence_files(repository: Repository, blobs: list[Blob]) -> list[Blob]:
    """The files that state the licence; raises EntryFailed where one is missing."""
    found = []
    for pattern in repository.evidence:
        matching = [blob for blob in blobs if fnmatchcase(blob.path, pattern) and blob.size is not None]
        if not matching:
            raise EntryFailed(f"{pattern}, which states its licence, is not in it")
        found += matching
    return found


def list_blobs(git_dir: Path, commit: str) -> list[Blob]:
    """The regular files of a commit; raises EntryFailed where the clone does not hold it."""
    try:
        tree = git(git_dir, "ls-tree", "-r", "-z", "--full-tree", commit)
    except subprocess.CalledProcessError as error:
        raise EntryFailed(f"commit {commit} is not in {git_dir}") from error
    entries = []
    for entry in filter(None, tree.split(b"\0")):
        mode, kind, sha, path = *entry.split(b"\t", 1)[0].split(), entry.split(b"\t", 1)[1]
        if kind == b"blob" and mode.startswith(b"100"):  # no link, no submodule
            entries.append((os.fsdecode(path), sha.decode()))
    asked = "".join(f"{sha}\n" for _, sha in entries).encode()
    answers = git(git_dir, "cat-file", "--batch-check=%(objectsize)", data=asked).decode().splitlines()
    sizes = [int(answer) if answer.isdecimal() else None for answer in answers]
    return [Blob(path, sha, size) for (path, sha), size in zip(entries, sizes, strict=True)]


def git(git_dir: Path | str, *arguments: str, data: bytes | None = None) -> bytes:
    """Run git on a bare clone, whoever owns it, and return what it printed."""
    command = ["git", "-c", "safe.directory=*", "-C", str(git_dir), "--git-dir=.", *arguments]
    return subprocess.run(command, check=True, capture_output=True, input=data, env=os.environ | ENVIRONMENT).stdout


def _write(folder: Path, blob: Blob, data: bytes) -> None:
    path = folder / blob.path
    if ".." in PurePosixPath(blob.path).parts or not path.is_relative_to(folder):
        raise EntryFailed(f"it holds the path {blob.path!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
