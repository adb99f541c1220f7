"""The list of freely licensed packages and the rules that give each of their files a domain.

`debian.json` holds one object a package: its name, the version surveyed, the licence of its audio as Debian records
it, the size of the download in MB, the hours of each domain, and rules. A rule is a pair (glob, domain) tried in order
on the file's path inside the package (`*` also matches `/`); the first match decides. The domain "skip" leaves the file
out: digital silence, single wave cycles, quotations of films, and sounds known to be in benchmarks too.
"""

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from hear_jepa.errors import CorpusError

DOMAINS = ("environment", "music", "speech")
SKIP = "skip"
DEBIAN = Path(__file__).with_name("debian.json")


@dataclass(frozen=True)
class Package:
    """One package of the list: what a survey found, and how its files are sorted into domains."""

    package: str
    version: str  # surveyed; the archive may offer another by now
    licence: str
    megabytes: float  # of the download
    hours: dict[str, float]  # by domain, as surveyed, duplicates counted once
    rules: tuple[tuple[str, str], ...]  # (glob, domain); the first match decides

    def domain(self, path: str) -> str:
        """The domain of the file at `path` inside the package: one of `DOMAINS`, or `SKIP`."""
        for pattern, domain in self.rules:
            if fnmatchcase(path, pattern):
                return domain
        return SKIP


def load_catalogue(path: Path = DEBIAN) -> list[Package]:
    """Read the list of packages; raises `CorpusError` where it cannot be read."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return [Package(**{**entry, "rules": tuple(map(tuple, entry["rules"]))}) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorpusError(f"{path}: not a list of packages ({error}); reinstall hear_jepa") from error


def select(catalogue: list[Package], names: list[str] | None) -> list[Package]:
    """The packages called `names`, all where it is None; raises `CorpusError` for a name that is not listed."""
    if names is None:
        return catalogue
    listed = {package.package: package for package in catalogue}
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise CorpusError(f"not in the list of packages: {', '.join(unknown)}; --list shows what there is")
    return [listed[name] for name in names]
