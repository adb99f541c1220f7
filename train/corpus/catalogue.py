"""The lists of free sound, `debian.json` and `git.json`, and the rules that give each of their files a domain.

An entry names a package or a repository, the licence of its sounds, and rules. A rule is a pair (glob, domain) tried in
order on the file's path inside it (`*` also matches `/`); the first match decides. The domain "skip" leaves the file
out, as does no match: digital silence, single wave cycles, quotations of films, sounds under other terms, and sounds
known to be in benchmarks too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

from hear_jepa.errors import CorpusError
from hear_jepa.train.corpus.domains import SKIP

DOMAINS = ("environment", "music", "speech")
Rules = tuple[tuple[str, str], ...]


class Entry:
    """What packages and repositories have in common. `kind` is the word for one, and the key of its name."""

    kind: ClassVar[str]
    licence: str
    rules: Rules

    @property
    def name(self) -> str:
        """The package's name, or owner/name."""
        return getattr(self, self.kind)

    @property
    def folder(self) -> str:
        """Its folder in OUT/audio."""
        return self.name


@dataclass(frozen=True)
class Package(Entry):
    """A Debian package: what a survey found, and how its files are sorted into domains."""

    kind = "package"
    package: str
    version: str  # surveyed; the archive may offer another by now
    licence: str
    megabytes: float  # of the download
    hours: dict[str, float]  # by domain, as surveyed, duplicates counted once
    rules: Rules


@dataclass(frozen=True)
class Repository(Entry):
    """A public Git repository at one commit; `evidence` are globs of the files that state the licence."""

    kind = "repository"
    repository: str  # owner/name
    commit: str
    licence: str
    evidence: tuple[str, ...]
    rules: Rules

    @property
    def folder(self) -> str:
        return f"git-{self.repository.replace('/', '-')}"


def domain_of(rules: Rules, path: str) -> str:
    """The domain of the file at `path`: one of `DOMAINS`, or `SKIP`."""
    return next((domain for pattern, domain in rules if fnmatchcase(path, pattern)), SKIP)


def load_packages() -> list[Package]:
    """The list of Debian packages; raises CorpusError where it cannot be read."""
    return _load("debian.json", Package)


def load_repositories() -> list[Repository]:
    """The list of repositories; raises CorpusError where it cannot be read."""
    return _load("git.json", Repository)


def _load(file: str, kind: type) -> list[Any]:
    path = Path(__file__).with_name(file)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries:
            entry["rules"] = tuple(map(tuple, entry["rules"]))
            if "evidence" in entry:
                entry["evidence"] = tuple(entry["evidence"])
        return [kind(**entry) for entry in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorpusError(f"{path}: not a list of free sound ({error}); reinstall hear_jepa") from error


def select(catalogue: Sequence[Any], names: Sequence[str] | None) -> list[Any]:
    """The entries called `names`, all where it is None; raises CorpusError for a name that is not listed."""
    if names is None:
        return list(catalogue)
    listed = {entry.name: entry for entry in catalogue}
    unknown = [name for name in names if name not in listed]
    if unknown:
        raise CorpusError(f"not in the list: {', '.join(unknown)}; --list shows what there is")
    return [listed[name] for name in names]
