"""Freely licensed audio, ready for training.

    python -m hear_jepa.train.corpus debian --out corpus
    python -m hear_jepa.train.corpus debian --out corpus --exclude tests/tasks
    python -m hear_jepa.train.corpus debian --list

Downloads the listed Debian packages (about 1.3 GB; `apt-get download`: no root, nothing is installed), unpacks their
audio, and makes shards of it in OUT/shards. Given again, it goes on where it stopped, tries again what it could not
have, and makes the shards anew if that gives more. A package that cannot be had is named at the end and left out: exit
code 1. About 5 GB of disk while it works.
"""

import argparse
import logging
import shutil
import sys
from pathlib import Path

from hear_jepa.errors import CorpusError, HearJepaError
from hear_jepa.train.corpus.catalogue import DOMAINS, load_catalogue, select
from hear_jepa.train.corpus.debian import fetch, write_json, write_mapping
from hear_jepa.train.corpus.prepare import OtherShardsError, log_totals, prepare
from hear_jepa.train.data.manifest import FILE_NAME, Manifest

log = logging.getLogger("hear_jepa.train.corpus")


def debian(arguments: argparse.Namespace) -> int:
    """Packages -> audio -> shards in `arguments.out`; exit code 1 where a package is missing, `CorpusError` for all."""
    packages = select(load_catalogue(), arguments.packages)
    if arguments.list:
        print(table(packages))
        return 0
    if arguments.out is None:
        raise CorpusError("say where the corpus shall lie: --out DIR")
    out = Path(arguments.out)
    if shutil.which("ffmpeg") is None:
        log.warning("ffmpeg not found: the telephone formats and the tracker music will be left out; install it first")
    records, failures = fetch(packages, out)
    surveyed = {package.package: package.version for package in packages}
    described = [
        {**{key: record[key] for key in ("package", "version", "sha256")}, "surveyed": surveyed[record["package"]]}
        for record in records
    ]
    write_json(out / "corpus.json", {"packages": described, "failed": failures})
    if not records:
        reason = failures[0]["reason"]
        raise CorpusError(f"not one of {len(packages)} packages could be had; is `apt-get update` due? First: {reason}")
    write_mapping(packages, records, out / "domains.tsv")
    manifest = make_shards(out, arguments.exclude, arguments.workers)
    log_totals(manifest, out / "shards")
    for failure in failures:
        log.warning("left out: %s (%s)", failure["package"], failure["reason"])
    if failures:
        log.warning("%d of %d packages are missing; the same command tries them again", len(failures), len(packages))
    return 1 if failures else 0


def make_shards(out: Path, exclude: list[str], workers: int | None) -> Manifest:
    """Shards of OUT/audio in OUT/shards; in place of those of an earlier run on other packages, or with other clips
    excluded."""
    shards = out / "shards"
    arguments = ([out / "audio"], shards, out / "domains.tsv", exclude, workers)
    try:
        return prepare(*arguments)
    except OtherShardsError:
        log.warning("%s is of other packages or settings: made anew", shards)
        for old in (*shards.glob("*.tar"), shards / FILE_NAME):  # the manifest last: until then a kill leaves it so
            old.unlink()
        return prepare(*arguments)


def table(packages: list) -> str:
    """The list of packages with licence, size and hours, as text."""
    rows = [("package", "version", "MB", *DOMAINS, "licence")]
    for package in packages:
        hours = (f"{package.hours[domain]:.2f}" for domain in DOMAINS)
        rows.append((package.package, package.version, f"{package.megabytes:.1f}", *hours, package.licence))
    hours = (f"{sum(package.hours[domain] for package in packages):.2f}" for domain in DOMAINS)
    rows.append((f"{len(packages)} packages", "", f"{sum(p.megabytes for p in packages):.1f}", *hours, ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def main(argv: list[str] | None = None) -> int:
    """The command line; a mistake of the user's becomes one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m hear_jepa.train.corpus",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    recipes = parser.add_subparsers(dest="recipe", required=True, metavar="RECIPE")
    recipe = recipes.add_parser("debian", help="game sounds, prompts, read speech and music from Debian packages")
    recipe.add_argument("--out", metavar="DIR", help="folder for downloads, audio and shards")
    recipe.add_argument("--list", action="store_true", help="show the packages, their licences and hours, and stop")
    recipe.add_argument("--packages", nargs="+", metavar="NAME", help="only these (default: all of the list)")
    recipe.add_argument("--exclude", nargs="+", default=[], metavar="DIR", help="leave out what also sounds in here")
    recipe.add_argument("--workers", type=int, metavar="N", help="decoding processes (default: one a core)")
    recipe.set_defaults(run=debian)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return arguments.run(arguments)
    except HearJepaError as error:
        print(f"corpora: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
