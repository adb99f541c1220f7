"""Audio, ready for training: clean shards by domain, with a manifest of sources and licences.

    python -m hear_jepa.train.corpus files SRC… --out shards                 # any audio of your own
    python -m hear_jepa.train.corpus debian --out corpus --exclude tests/tasks    # free sound from Debian packages
    python -m hear_jepa.train.corpus git --out corpus --exclude tests/tasks       # free sound from public repositories
    python -m hear_jepa.train.corpus debian --list

The same command, run again, continues where it was interrupted. `debian` and `git` may share OUT: OUT/shards then
holds the sounds of both. What cannot be had is named at the end and left out: exit code 1.
"""

import argparse
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hear_jepa.cli import exit_code
from hear_jepa.disk import write_json
from hear_jepa.errors import CorpusError
from hear_jepa.train.corpus import debian, git
from hear_jepa.train.corpus.catalogue import DOMAINS, load_packages, load_repositories, select
from hear_jepa.train.corpus.prepare import STAGED, OtherShardsError, log_totals, prepare
from hear_jepa.train.corpus.records import finished_record, write_mapping
from hear_jepa.train.data.manifest import FILE_NAME

log = logging.getLogger("hear_jepa.train.corpus")


def files(arguments: argparse.Namespace) -> int:
    """Audio of one's own -> shards in `arguments.out`."""
    options = {name: getattr(arguments, name) for name in ("domains", "exclude", "workers", "shard_mb", "rate")}
    log_totals(prepare(arguments.sources, arguments.out, **options), Path(arguments.out))
    return 0


def debian_packages(arguments: argparse.Namespace) -> int:
    """Packages -> audio -> shards; exit code 1 where a package is missing, CorpusError for all."""
    packages = select(load_packages(), arguments.packages)
    if arguments.list:
        print(package_table(packages))
        return 0
    out = _out(arguments)
    if shutil.which("ffmpeg") is None:
        log.warning("ffmpeg not found: the telephone formats and the tracker music will be left out; install it first")
    records, failures = debian.fetch(packages, out)
    return _shards(out, arguments, records, failures, "packages; is `apt-get update` due?")


def repositories(arguments: argparse.Namespace) -> int:
    """Repositories -> audio -> shards; exit code 1 where a repository is missing, CorpusError for all."""
    listed = select(load_repositories(), arguments.repositories)
    if arguments.list:
        print(_columns([(entry.name, entry.commit[:12], entry.licence) for entry in listed]))
        return 0
    out = _out(arguments)
    records, failures = git.fetch(listed, out, arguments.mirror)
    for record in records:
        if left_out := len(record["left_out"]):
            name = record["listed"]["repository"]
            log.warning("%s: %d files left out; see %s", name, left_out, out / "repositories")
    return _shards(out, arguments, records, failures, "repositories; is there a network, or a --mirror?")


def _out(arguments: argparse.Namespace) -> Path:
    if arguments.out is None:
        raise CorpusError("say where the corpus is to be: --out DIR")
    return Path(arguments.out)


def _shards(out: Path, arguments: argparse.Namespace, records: list, failures: list, remedy: str) -> int:
    """Shards of everything below OUT/audio, and a list of it in OUT/corpus.json."""
    if not records:
        raise CorpusError(f"none of {len(failures)} {remedy} First: {failures[0]['reason']}")
    packages = [(entry, record) for entry in load_packages() if (record := finished_record(entry, out))]
    clones = [(entry, record) for entry in load_repositories() if (record := finished_record(entry, out))]
    content = {
        "packages": [
            {**{key: record[key] for key in ("package", "version", "sha256")}, "surveyed": entry.version}
            for entry, record in packages
        ],
        "repositories": [{key: record["listed"][key] for key in ("repository", "commit")} for _, record in clones],
        "failed": failures,
    }
    write_json(out / "corpus.json", content)
    present = [(entry, record["version"]) for entry, record in packages]
    write_mapping([*present, *((entry, entry.commit[:12]) for entry, _ in clones)], out / "domains.tsv")
    make_shards(out, arguments)
    for failure in failures:
        log.warning("left out: %s (%s)", failure.get("package") or failure.get("repository"), failure["reason"])
    if failures:
        log.warning("%d are missing; the same command tries them again", len(failures))
    return 1 if failures else 0


def make_shards(out: Path, arguments: argparse.Namespace) -> None:
    """Shards of OUT/audio in OUT/shards; in place of those of an earlier run on other packages or settings."""
    shards = out / "shards"
    options: dict[str, Any] = {name: getattr(arguments, name) for name in ("exclude", "workers", "rate")}
    try:
        manifest = prepare([out / "audio"], shards, out / "domains.tsv", **options)
    except OtherShardsError:
        log.warning("%s is of other sounds or settings: it is built again", shards)
        (shards / STAGED).mkdir(exist_ok=True)  # says that the tars are ours
        (shards / FILE_NAME).unlink()
        manifest = prepare([out / "audio"], shards, out / "domains.tsv", **options)
    log_totals(manifest, shards)


def package_table(packages: list) -> str:
    """The list of packages with licence, size and hours, as text."""
    rows: list[tuple[str, ...]] = [("package", "version", "MB", *DOMAINS, "licence")]
    for package in packages:
        hours = (f"{package.hours[domain]:.2f}" for domain in DOMAINS)
        rows.append((package.package, package.version, f"{package.megabytes:.1f}", *hours, package.licence))
    hours = (f"{sum(package.hours[domain] for package in packages):.2f}" for domain in DOMAINS)
    rows.append((f"{len(packages)} packages", "", f"{sum(p.megabytes for p in packages):.1f}", *hours, ""))
    return _columns(rows)


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    program = argparse.ArgumentParser("python -m hear_jepa.train.corpus", None, __doc__, formatter_class=raw)
    kinds = program.add_subparsers(dest="kind", required=True, metavar="files | debian | git")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--exclude", nargs="+", default=[], metavar="DIR", help="leave out what also sounds in here")
    shared.add_argument("--workers", type=int, metavar="N", help="decoding processes (default: one a core)")
    shared.add_argument("--rate", type=int, default=16000, metavar="HZ", help="sample rate of the shards (16000)")
    recipe = argparse.ArgumentParser(add_help=False, parents=[shared])
    recipe.add_argument("--out", metavar="DIR", help="folder for downloads, audio and shards")
    recipe.add_argument("--list", action="store_true", help="show the list with its licences, and stop")

    def add(name: str, run: Callable, text: str, parent: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command = kinds.add_parser(name, help=text, description=text, parents=[parent])
        command.set_defaults(run=run)
        return command

    command = add("files", files, "any audio files and folders of your own", shared)
    command.add_argument("sources", nargs="+", metavar="SRC", help="folder of sounds, searched at any depth")
    command.add_argument("--out", required=True, metavar="DIR", help="folder for the shards and manifest.json")
    command.add_argument("--domains", metavar="FILE", help="tab-separated mapping: pattern, domain, source, licence")
    command.add_argument("--shard-mb", type=float, default=64.0, metavar="MB", help="size at which a shard ends (64)")
    text = "game sounds, prompts, read speech and music from Debian packages"
    command = add("debian", debian_packages, text, recipe)
    command.add_argument("--packages", nargs="+", metavar="NAME", help="only these (default: all of the list)")
    command = add("git", repositories, "environmental sounds and some music from public Git repositories", recipe)
    command.add_argument("--repositories", nargs="+", metavar="OWNER/NAME", help="only these (default: all)")
    text = "folder of bare clones, OWNER/NAME.git or OWNER+NAME/repo, to read in place of the network"
    command.add_argument("--mirror", type=Path, metavar="DIR", help=text)
    return program


def main(argv: list[str] | None = None) -> int:
    """Run the command line; exit codes as those of `hear-jepa`. After an interruption the same command continues."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return exit_code(lambda: arguments.run(arguments), "hear_jepa.train.corpus")


if __name__ == "__main__":
    sys.exit(main())
