"""Debian packages -> a folder of their audio and a record of where each file came from. No root, nothing installed.

    OUT/debs/       the downloads, as apt verified them
    OUT/audio/      PACKAGE/path/inside/the/package, audio only, with PACKAGE/copyright beside it

Each stage is taken up where it stopped: a package whose audio agrees with its record is not touched again, a download
that is complete is not repeated. What was half unpacked is unpacked anew.
"""

import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from hear_jepa.disk import atomic_path, file_sha256, write_json
from hear_jepa.errors import CorpusError
from hear_jepa.train.corpus.catalogue import Package
from hear_jepa.train.corpus.records import EntryFailed, fetch_each, record_path

SUFFIXES = frozenset(
    [".aif", ".aiff", ".au", ".flac", ".g722", ".gsm", ".mp3", ".oga", ".ogg", ".opus", ".voc", ".wav"]
)
SUFFIXES |= {".it", ".mod", ".s3m", ".xm"}  # scores with their samples inside
ARCHIVES = frozenset([".pk3", ".pk4", ".zip"])
NEEDED = ("apt-get", "dpkg-deb")


def require_tools() -> None:
    """Raise `CorpusError` where apt-get or dpkg-deb is missing."""
    missing = [tool for tool in NEEDED if shutil.which(tool) is None]
    if missing:
        raise CorpusError(
            f"{' and '.join(missing)} not found: this recipe takes its audio from Debian packages. Run it on Debian or "
            "Ubuntu (a container will do), or train on your own audio: python -m hear_jepa.train.corpus files --help"
        )


def is_audio(path: str | PurePosixPath) -> bool:
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def fetch(packages: Iterable[Package], out: Path) -> tuple[list[dict], list[dict]]:
    """Download and unpack `packages` under `out`; returns (records, failures), see `fetch_each`.

    Raises `CorpusError` where apt-get or dpkg-deb is missing and needed.
    """

    def take(package: Package) -> dict:
        require_tools()
        return unpack(package, download(package.name, out / "debs"), out)

    return fetch_each(packages, out, take)


def download(name: str, folder: Path) -> Path:
    """Fetch the version of the package that apt offers now; a download already there is verified, not repeated."""
    folder.mkdir(parents=True, exist_ok=True)
    offered, sha256 = offer(name)
    deb = folder / offered
    if deb.is_file() and sha256 is not None and file_sha256(deb) == sha256:
        return deb
    deb.unlink(missing_ok=True)
    run("apt-get", "-q", "download", name, cwd=folder)
    if not deb.is_file():
        raise EntryFailed(f"apt-get did not leave {offered}")
    return deb


def offer(name: str) -> tuple[str, str | None]:
    """The file that `apt-get download` would fetch, and its SHA-256 where apt knows it."""
    with tempfile.TemporaryDirectory() as empty:  # apt says nothing of a file that is already there
        answer = run("apt-get", "--print-uris", "download", name, cwd=Path(empty))
    found = re.search(r"^'[^']+' (\S+\.deb) \d+ ?(?:SHA256:([0-9a-f]{64}))?", answer, re.MULTILINE)
    if found is None:
        raise EntryFailed("the archive does not offer it; is `apt-get update` due?")
    return found[1], found[2]


def unpack(package: Package, deb: Path, out: Path) -> dict:
    """Keep the audio of the package under OUT/audio/NAME and write its record, both in one move each."""
    with atomic_path(out / "audio" / package.folder) as kept, tempfile.TemporaryDirectory(dir=out) as tree:
        kept.mkdir()
        run("dpkg-deb", "-x", str(deb), tree)
        keep_audio(Path(tree), kept)
        licence = Path(tree) / "usr/share/doc" / package.name / "copyright"
        if licence.is_file():
            shutil.copyfile(licence, kept / "copyright")
        files = [file for file in sorted(kept.rglob("*")) if file.is_file() and is_audio(file.name)]
        if not files:
            raise EntryFailed(f"{deb.name} holds no audio")
        found = [{"path": file.relative_to(kept).as_posix(), "bytes": file.stat().st_size} for file in files]
    record = {
        "package": package.name,
        "version": run("dpkg-deb", "-f", str(deb), "Version").strip(),
        "deb": deb.name,
        "sha256": file_sha256(deb),
        "files": found,
    }
    write_json(record_path(package, out), record)
    return record


def keep_audio(tree: Path, into: Path) -> None:
    """Move the audio files of `tree` to `into`, those inside zip archives to a folder of the archive's name."""
    for file in sorted(tree.rglob("*")):
        if file.is_symlink() or not file.is_file():
            continue
        destination = into / file.relative_to(tree)
        if is_audio(file.name):
            destination.parent.mkdir(parents=True, exist_ok=True)
            file.rename(destination)
        elif file.suffix.lower() in ARCHIVES and zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                archive.extractall(destination, [member for member in archive.namelist() if is_audio(member)])


def run(*command: str, cwd: Path | None = None) -> str:
    """Run a tool of the system and return what it printed; `CalledProcessError` carries what it complained about."""
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, errors="replace").stdout
