"""What the recipes have put below OUT: a JSON record for each package and repository, and what follows from them."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from hear_jepa.disk import atomic_path
from hear_jepa.train.corpus.catalogue import Package, Repository
from hear_jepa.train.corpus.domains import COLUMNS

MUSIC_S = 90  # of a piece of music at most: it is plentiful, and alike within a piece


def read_record(path: Path, audio: Path) -> dict | None:
    """The record at `path`, if every file it lists is in the folder `audio` at its full size; else None."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = all((audio / file["path"]).stat().st_size == file["bytes"] for file in record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def write_json(path: Path, content: object) -> None:
    """Write `content` so that a reader sees the old file or the new one, never half of it."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_mapping(present: Iterable[tuple[Package | Repository, str]], path: Path) -> None:
    """Write the mapping file that `prepare` reads; `present` are the (entry, version or commit) below OUT/audio."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None, lineterminator="\n")
        rows.writerow(COLUMNS)
        for entry, version in present:
            source = f"debian:{entry.name}={version}" if isinstance(entry, Package) else f"git:{entry.name}@{version}"
            for pattern, domain in entry.rules:
                longest_s = MUSIC_S if domain == "music" else ""
                rows.writerow([f"{entry.folder}/{pattern}", domain, source, entry.licence, longest_s])
