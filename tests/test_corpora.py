"""The recipes for freely licensed audio.

* The lists stay within their limits; their rules give every file of a package its domain, in the mapping that is
  written for `prepare` too.
* Of a package, or of a repository at the commit listed, the audio is kept, that inside archives too, beside what states
  the licence, and nothing else; what is there is kept, what is damaged is made good.
* What fails is named with the reason and does not stop the rest; the same command takes it in later; both recipes share
  their shards.
"""

import json
import os
import shutil
import subprocess
import wave
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from tasks_from_debian import PACKAGES as USED_BY_TESTS

from hear_jepa.errors import CorpusError
from hear_jepa.train.corpus import __main__ as command
from hear_jepa.train.corpus import debian, git
from hear_jepa.train.corpus.catalogue import (
    DOMAINS,
    Package,
    Repository,
    domain_of,
    load_packages,
    load_repositories,
    select,
)
from hear_jepa.train.corpus.domains import SKIP, Mapping
from hear_jepa.train.corpus.records import write_mapping

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not on this machine")

# Stands in for apt-get: offers the packages of a folder, and writes down what it was asked for.
APT = r"""#!/bin/sh
archive={archive!r}
for name; do :; done
set -- "$1" "$archive"/"$name"_*.deb
if [ "$1" = --print-uris ]; then echo offer; else echo download; fi >> "$archive/asked"
[ -f "$2" ] || {{ echo "E: Unable to locate package $name\nW: and advice" >&2; exit 100; }}
if [ "$1" != --print-uris ]; then cp "$2" .; exit; fi
set -- $(sha256sum "$2")
echo "'http://archive/${{2##*/}}' ${{2##*/}} 1234 SHA256:$1"
"""


def write_wav(path: Path, seed: int, seconds: float = 0.5) -> None:
    """A 16 kHz noise whose bytes depend on `seed`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    block = sha256(str(seed).encode()).digest()
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(b"".join(sha256(block + n.to_bytes(4, "big")).digest() for n in range(int(seconds * 1000))))


def build_deb(name: str, tree: Path, archive: Path) -> Path:
    """`tree` as the package NAME 2.0-1 in `archive`."""
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 2.0-1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: x\n"
    )
    archive.mkdir(exist_ok=True)
    command = ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(tree), str(archive)]
    subprocess.run(command, check=True, capture_output=True)
    return archive / f"{name}_2.0-1_all.deb"


def package(name: str = "chirps") -> Package:
    rules = (("*/Music/*", "music"), ("*/voices/*", "speech"), ("*/silence.*", SKIP), ("*", "environment"))
    return Package(name, "1.0-1", "CC0-1.0", 0.1, dict.fromkeys(DOMAINS, 0.0), rules)


@pytest.fixture(scope="module")
def chirps(tmp_path_factory) -> Path:
    """A package `chirps` 2.0-1 with sound in folders and in a zip archive."""
    folder = tmp_path_factory.mktemp("package")
    share, licence = folder / "tree/usr/share/chirps", folder / "tree/usr/share/doc/chirps/copyright"
    write_wav(share / "Sounds/bird.wav", seed=1)
    write_wav(share / "Music/song.wav", seed=2)
    with zipfile.ZipFile(share / "pak0.pk3", "w") as pak:
        for seed, name in ((3, "voices/voice.wav"), (4, "silence.wav")):
            write_wav(folder / "inner.wav", seed)
            pak.write(folder / "inner.wav", name)
        pak.writestr("maps/level.map", "not sound")
    (share / "picture.png").write_bytes(b"not sound")
    (share / "link.wav").symlink_to("Sounds/bird.wav")
    licence.parent.mkdir(parents=True)
    licence.write_text("License: CC0-1.0\n")
    return build_deb("chirps", folder / "tree", folder / "built")


@pytest.fixture
def archive(chirps, tmp_path, monkeypatch) -> Path:
    """An archive of one package behind an apt-get that the recipe finds first."""
    archive = tmp_path / "archive"
    archive.mkdir()
    shutil.copy(chirps, archive)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "apt-get").write_text(APT.format(archive=str(archive)))
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{Path(shutil.which('dpkg-deb')).parent}")
    return archive


def downloads(archive: Path) -> int:
    return (archive / "asked").read_text().count("download")


def test_lists_keep_their_limits():
    packages, repositories = load_packages(), load_repositories()
    names = [entry.name for entry in (*packages, *repositories)]
    assert len(set(names)) == len(names)
    assert sum(sum(package.hours.values()) for package in packages) >= 45
    assert not set(USED_BY_TESTS) & set(names)
    for entry in (*packages, *repositories):
        assert entry.licence and "NC" not in entry.licence and "ND" not in entry.licence
        assert {domain for _, domain in entry.rules} <= {*DOMAINS, SKIP}
    assert all(set(package.hours) == set(DOMAINS) for package in packages)
    assert all(len(repository.commit) == 40 and repository.evidence for repository in repositories)


STAMPS, PROMPTS = "usr/share/tuxpaint/stamps", "usr/share/asterisk/sounds/en_US_f_Allison"
DOMAIN_OF = [
    ("tuxpaint-stamps-default", f"{STAMPS}/animals/birds/crow.ogg", "environment"),
    ("tuxpaint-stamps-default", f"{STAMPS}/animals/birds/crow_desc_fr.ogg", "speech"),
    ("tuxpaint-stamps-default", f"{STAMPS}/hobbies/music/string/cello.ogg", "music"),
    ("asterisk-core-sounds-en-g722", f"{PROMPTS}/digits/7.g722", "speech"),
    ("asterisk-core-sounds-en-g722", f"{PROMPTS}/silence/5.g722", SKIP),
    ("qabcs-data", "usr/share/qabcs/abcs/all/noises/clock.ogg", SKIP),  # a clip of ESC-10
    ("qabcs-data", "usr/share/qabcs/abcs/fr/sounds/words/dé.ogg", "speech"),
]


def test_rules_know_their_packages():
    packages = load_packages()
    for name, path, domain in DOMAIN_OF:
        assert domain_of(select(packages, [name])[0].rules, path) == domain, path


def test_unknown_package_is_refused_by_name():
    with pytest.raises(CorpusError, match="no-such-package"):
        select(load_packages(), ["bb", "no-such-package"])


@needs_dpkg
def test_audio_is_kept_and_the_version_is_the_archives(archive, tmp_path):
    out = tmp_path / "out"
    records, failures = debian.fetch([package()], out)
    assert failures == []
    kept = {path.relative_to(out / "audio/chirps").as_posix() for path in (out / "audio").rglob("*") if path.is_file()}
    share = "usr/share/chirps"
    loose = {f"{share}/Sounds/bird.wav", f"{share}/Music/song.wav"}
    packed = {f"{share}/pak0.pk3/voices/voice.wav", f"{share}/pak0.pk3/silence.wav"}
    assert kept == loose | packed | {"copyright"}
    assert {file["path"] for file in records[0]["files"]} == loose | packed
    assert records[0]["version"] == "2.0-1"
    assert records[0]["sha256"] == sha256((archive / "chirps_2.0-1_all.deb").read_bytes()).hexdigest()
    with wave.open(str(out / "audio/chirps" / share / "pak0.pk3/voices/voice.wav")) as voice:
        assert voice.getnframes() == 8000


@needs_dpkg
def test_what_is_there_is_kept_and_what_is_damaged_is_made_good(archive, tmp_path):
    out = tmp_path / "out"
    first, _ = debian.fetch([package()], out)
    bird = out / "audio/chirps/usr/share/chirps/Sounds/bird.wav"
    whole = bird.read_bytes()
    asked = (archive / "asked").read_text()

    again, _ = debian.fetch([package()], out)
    assert again == first
    assert (archive / "asked").read_text() == asked

    bird.write_bytes(whole[:100])  # a file cut short: unpacked anew from the download at hand
    debian.fetch([package()], out)
    assert bird.read_bytes() == whole
    assert downloads(archive) == 1

    bird.unlink()
    deb = out / "debs/chirps_2.0-1_all.deb"
    deb.write_bytes(deb.read_bytes()[:-1])  # and a download cut short
    debian.fetch([package()], out)
    assert bird.read_bytes() == whole
    assert downloads(archive) == 2
    assert not list((out / "audio").glob(".*"))


def test_missing_tools_are_named_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command.main(["debian", "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("hear_jepa.train.corpus: apt-get and dpkg-deb not found")
    assert "hear_jepa.train.corpus files" in message


@needs_dpkg
def test_mapping_sorts_as_the_rules_do_and_caps_music(archive, tmp_path):
    records, _ = debian.fetch([package()], tmp_path / "out")
    write_mapping([(package(), records[0]["version"])], tmp_path / "domains.tsv")
    mapping = Mapping(tmp_path / "domains.tsv")
    for file in records[0]["files"]:
        origin = mapping(tmp_path, f"chirps/{file['path']}")
        assert origin.domain == domain_of(package().rules, file["path"])
        assert origin.longest_s == (90 if origin.domain == "music" else float("inf"))
        if origin.domain != SKIP:
            assert (origin.source, origin.licence) == ("debian:chirps=2.0-1", "CC0-1.0")


@needs_dpkg
def test_the_command_ends_in_shards_and_takes_in_later_what_was_missing(archive, tmp_path, monkeypatch):
    """The shards of a part are replaced by those of the whole; complete ones are left alone."""
    out, command_line = tmp_path / "out", ["debian", "--out", str(tmp_path / "out"), "--workers", "1"]
    monkeypatch.setattr(command, "load_packages", lambda: [package("whistles"), package()])

    def clips():
        manifest = json.loads((out / "shards/manifest.json").read_text())
        return {name: domain["clips"] for name, domain in manifest["domains"].items()}

    assert command.main(command_line) == 1  # one package is missing
    assert clips() == {"environment": 1, "music": 1, "speech": 1}
    corpus = json.loads((out / "corpus.json").read_text())
    assert [(entry["version"], entry["surveyed"]) for entry in corpus["packages"]] == [("2.0-1", "1.0-1")]
    assert corpus["failed"] == [{"package": "whistles", "reason": "E: Unable to locate package whistles"}]
    write_wav(tmp_path / "whistles/usr/share/whistles/Sounds/whistle.wav", seed=7)
    build_deb("whistles", tmp_path / "whistles", archive)
    assert command.main(command_line) == 0
    assert clips() == {"environment": 2, "music": 1, "speech": 1}
    assert json.loads((out / "corpus.json").read_text())["failed"] == []
    stamps = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    assert command.main(command_line) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()} == stamps


# ---------------------------------------------------------------- repositories


def run_git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def mirror(tmp_path) -> tuple[Path, Repository]:
    """A mirror of one repository, whose newest commit is not the one listed and which lacks a blob, and its entry."""
    tree, mirror = tmp_path / "tree", tmp_path / "mirror"
    for name, seed in (("a/bird.wav", 1), ("b/same.wav", 1), ("songs/é.wav", 2), ("a/lost.wav", 3), ("a/bad.wav", 4)):
        write_wav(tree / name, seed)
    (tree / "a/pointer.wav").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    (tree / "a/notes.md").write_text("not sound")
    (tree / "LICENCE.md").write_text("CC0")
    (tree / "a/link.wav").symlink_to("bird.wav")
    run_git(tmp_path, "init", "--quiet", str(tree))
    run_git(tree, "add", "--all")
    run_git(tree, "commit", "--quiet", "-m", "sounds")
    commit, lost = run_git(tree, "rev-parse", "HEAD"), run_git(tree, "rev-parse", "HEAD:a/lost.wav")
    (tree / "a/bird.wav").unlink()
    run_git(tree, "commit", "--quiet", "--all", "-m", "no birds")
    bare = mirror / "birds+chirps" / "repo"
    bare.parent.mkdir(parents=True)
    run_git(tmp_path, "clone", "--quiet", "--bare", "--no-local", str(tree), str(bare))
    for pack_file in (bare / "objects/pack").glob("*.pack"):
        loose = tmp_path / pack_file.name
        shutil.move(pack_file, loose)
        with open(loose, "rb") as packed:
            subprocess.run(["git", "-C", bare, "unpack-objects", "-q"], stdin=packed, check=True)
    (bare / "objects" / lost[:2] / lost[2:]).unlink()
    rules = (("a/bad*", SKIP), ("songs/*", "music"), ("*", "environment"))
    return mirror, Repository("birds/chirps", commit, "CC0-1.0", ("LICENCE*",), rules)


def test_a_repository_is_taken_at_its_commit_with_its_licence(mirror, tmp_path):
    folder, repository = mirror
    out = tmp_path / "out"
    (record,), failures = git.fetch([repository], out, folder)
    assert failures == []
    audio = out / "audio/git-birds-chirps"
    kept = {path.relative_to(audio).as_posix() for path in audio.rglob("*") if path.is_file()}
    assert kept == {"a/bird.wav", "songs/é.wav", "LICENCE.md"}
    assert {file["path"] for file in record["files"]} == {"a/bird.wav", "songs/é.wav"}
    reasons = {item["path"]: item["reason"] for item in record["left_out"]}
    assert reasons == {"a/lost.wav": "not in this clone", "a/pointer.wav": "a Git-LFS pointer, not the sound"}
    shutil.rmtree(folder / "birds+chirps")
    assert git.fetch([repository], out, folder) == ([record], [])  # what is there is not read again
    other = replace(repository, rules=(("*", "environment"),))
    assert git.fetch([other], out, folder)[1] == [{"repository": "birds/chirps", "reason": f"not in {folder}"}]


def test_a_repository_without_its_commit_or_its_licence_fails_alone(mirror, tmp_path):
    folder, repository = mirror
    wrong = [replace(repository, commit="0" * 40), replace(repository, evidence=("COPYING",)), repository]
    records, failures = git.fetch(wrong, tmp_path / "out", folder)
    assert len(records) == 1
    assert [failure["reason"].split(",")[0] for failure in failures] == [
        f"commit {'0' * 40} is not in {folder / 'birds+chirps/repo'}",
        "COPYING",
    ]
    with pytest.raises(CorpusError, match="no such folder; --mirror"):
        git.fetch(wrong, tmp_path / "out", tmp_path / "nowhere")


@needs_dpkg
def test_both_recipes_share_their_shards(archive, mirror, tmp_path, monkeypatch):
    folder, repository = mirror
    monkeypatch.setattr(command, "load_packages", lambda: [package()])
    monkeypatch.setattr(command, "load_repositories", lambda: [repository])
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{Path(shutil.which('git', path=os.defpath)).parent}")
    out = tmp_path / "out"
    common = ["--out", str(out), "--workers", "1"]
    assert command.main(["debian", *common]) == 0
    assert command.main(["git", *common, "--mirror", str(folder)]) == 0
    manifest = json.loads((out / "shards/manifest.json").read_text())
    # the repository's bird and song are those of the package: only the sources tell
    assert {name.split("@")[0].split("=")[0] for name in manifest["sources"]} <= {"debian:chirps", "git:birds/chirps"}
    assert sum(domain["clips"] for domain in manifest["domains"].values()) == 3
    assert sum("duplicate" in item["reason"] for item in manifest["skipped"]) == 2
    corpus = json.loads((out / "corpus.json").read_text())
    assert len(corpus["packages"]) == len(corpus["repositories"]) == 1
