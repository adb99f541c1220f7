"""What each file is (domain), whence it comes (source) and on what terms (licence): a mapping file, or folder names."""

import csv
import math
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from hear_jepa.errors import CorpusError

SKIP = "skip"
COLUMNS = ("pattern", "domain", "source", "licence", "longest_s")


@dataclass(frozen=True)
class Origin:
    """Domain, source and licence of a file, and its seconds that are used at most; domain "skip" leaves it out."""

    domain: str
    source: str
    licence: str = "unknown"
    longest_s: float = math.inf


class FolderNames:
    """Without a mapping file: the top folder names the domain and the source, the licence is unknown."""

    def __call__(self, root: Path, relative: str) -> Origin:
        parts = relative.split("/")
        name = parts[0] if len(parts) > 1 else root.resolve().name
        return Origin(domain_name(name), name)


class Mapping:
    """A tab-separated file with the columns `COLUMNS`; pattern and domain are needed; the first line names them.

    A pattern is a file's path below its source folder, or a glob over it in which `*` also matches `/`. A pattern that
    is the very path wins; otherwise the first glob that matches does. Files that nothing matches are left out, as are
    those of domain "skip". Raises CorpusError where the file cannot be read.
    """

    def __init__(self, path: str | Path):
        try:
            with open(path, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        except (OSError, UnicodeDecodeError) as error:
            raise CorpusError(f"{path}: cannot read the mapping of domains ({error})") from error
        if not rows or not {"pattern", "domain"} <= rows[0].keys():
            raise CorpusError(f"{path}: the first line must name the tab-separated columns {', '.join(COLUMNS)}")
        self._globs, self._exact = [], {}
        for row in rows:
            domain = domain_name(row["domain"] or SKIP)
            longest_s = self._longest_s(path, row)
            origin = Origin(domain, row.get("source") or domain, row.get("licence") or "unknown", longest_s)
            self._globs.append((row["pattern"], origin))
            self._exact.setdefault(row["pattern"], origin)
        self._globs = [(pattern, origin) for pattern, origin in self._globs if set(pattern) & set("*?[")]

    @staticmethod
    def _longest_s(path: str | Path, row: dict[str, str]) -> float:
        text = row.get("longest_s") or "inf"
        try:
            longest_s = float(text)
        except ValueError:
            longest_s = 0.0
        if not longest_s > 0:
            raise CorpusError(
                f"{path}: longest_s of {row['pattern']} is {text!r}: give seconds, more than 0, or nothing"
            )
        return longest_s

    def __call__(self, root: Path, relative: str) -> Origin:
        if relative in self._exact:
            return self._exact[relative]
        return next((origin for glob, origin in self._globs if fnmatchcase(relative, glob)), Origin(SKIP, ""))


def domain_name(name: str) -> str:
    """A domain's name becomes part of a file name, so it is made of letters, digits, `_` and single `-`."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "audio"
