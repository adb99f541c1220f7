"""What the recipes put below OUT: audio, a JSON record for each package and repository, and what follows from them.

OUT/audio/          the sounds of each package and repository, beside their licence
OUT/packages/       PACKAGE.json: version, SHA-256 of the download, every audio file with its size
OUT/repositories/   OWNER-NAME.json: the entry of the list, every audio file with its size, and what was left out
"""

import csv
import json
import logging
import subprocess
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from hear_jepa.disk import atomic_path, read_json
from hear_jepa.progress import progress_bar
from hear_jepa.train.corpus.catalogue import Entry, Package, Repository
from hear_jepa.train.corpus.domains import COLUMNS

log = logging.getLogger(__name__)

MUSIC_S = 90  # of a piece of music at most: it is plentiful, and alike within a piece
FOLDERS = {"package": "packages", "repository": "repositories"}
EntryT = TypeVar("EntryT", Package, Repository)


class EntryFailed(RuntimeError):
    """One package or repository cannot be had; the others can."""


def fetch_each(
    entries: Iterable[EntryT], out: Path, take: Callable[[EntryT], dict]
) -> tuple[list[dict], list[dict[str, str]]]:
    """The records of all entries, those that are not there made by `take`; one that fails does not stop the rest.

    Returns (records, failures), a failure {"package" or "repository", "reason"}.
    """
    records, failures = [], []
    for entry in progress_bar(list(entries), "fetch", unit=""):
        try:
            records.append(finished_record(entry, out) or take(entry))
        except (OSError, RuntimeError, subprocess.CalledProcessError, zipfile.BadZipFile) as error:
            failures.append({entry.kind: entry.name, "reason": reason_of(error)})
            log.warning("%s left out: %s", entry.name, failures[-1]["reason"])
    return records, failures


def reason_of(error: Exception) -> str:
    """One line: of what a tool printed, apt's first error (it adds advice) or the last, else the exception's words."""
    printed = getattr(error, "stderr", None) or str(error) or repr(error)
    text = printed.decode(errors="replace") if isinstance(printed, bytes) else printed
    lines = text.strip().splitlines()
    return next((line for line in lines if line.startswith("E: ")), lines[-1])


def record_path(entry: Entry, out: Path) -> Path:
    return out / FOLDERS[entry.kind] / f"{entry.folder.removeprefix('git-')}.json"


def listed(entry: Package | Repository) -> dict[str, Any]:
    """An entry of a list as JSON gives it back."""
    return json.loads(json.dumps(asdict(entry)))


def finished_record(entry: Package | Repository, out: Path) -> dict | None:
    """The entry's record, if it is of the list as it is now, and every file is in OUT/audio at its full size."""
    audio = out / "audio" / entry.folder
    try:
        record = read_json(record_path(entry, out))
        whole = all((audio / file["path"]).stat().st_size == file["bytes"] for file in record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole and record.get("listed") in (None, listed(entry)) else None


def write_mapping(present: Iterable[tuple[Entry, str]], path: Path) -> None:
    """Write the mapping file that `prepare` reads; `present` are the (entry, version or commit) below OUT/audio."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        rows.writerow(COLUMNS)
        for entry, version in present:
            source = f"debian:{entry.name}={version}" if isinstance(entry, Package) else f"git:{entry.name}@{version}"
            for pattern, domain in entry.rules:
                longest_s = MUSIC_S if domain == "music" else ""
                rows.writerow([f"{entry.folder}/{pattern}", domain, source, entry.licence, longest_s])
