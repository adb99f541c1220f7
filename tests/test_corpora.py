"""The recipes for freely licensed audio.

Claims:
* The lists stay what the documentation says: each entry once, 45 hours and more, none of the packages that tests/tasks
  is made of, none under terms that forbid a use, every repository at a full commit.
* Their rules give every file of a package a known domain, and example paths the right one.
* Of a package the audio is kept, that inside archives too, and nothing else but the copyright; the record names the
  version that the archive offered, not the one surveyed.
* What is there is kept: no second download, no second unpacking; a damaged download or a lost file is made good.
* A package or a repository that fails is named with the reason and does not stop the rest.
* Without apt-get or dpkg-deb the command says so, in one line, and ends with 2.
* Of a repository the audio that the rules keep is taken at the commit listed, identical files once, beside the files
  that state its licence; pointers, missing blobs and links are left out; without its licence it is refused.
* The mapping written for `prepare` sorts files as the lists' rules do and caps music; both recipes share their shards.
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

USED_BY_TESTS = {
    "klettres-data",
    "hydrogen-drumkits",
    "hydrogen-data",
    "gcompris-qt-data",
    "openttd-opensfx",
}
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


def build_deb(folder: Path, archive: Path) -> Path:
    """A package `chirps` 2.0-1 with sound in folders and in a zip archive."""
    share = folder / "usr/share/chirps"
    write_wav(share / "Sounds/bird.wav", seed=1)
    write_wav(share / "Music/song.wav", seed=2)
    write_wav(folder / "inner/voice.wav", seed=3)
    write_wav(folder / "inner/silence.wav", seed=4)
    with zipfile.ZipFile(share / "pak0.pk3", "w") as pak:
        pak.write(folder / "inner/voice.wav", "voices/voice.wav")
        pak.write(folder / "inner/silence.wav", "silence.wav")
        pak.writestr("maps/level.map", "not sound")
    shutil.rmtree(folder / "inner")
    (share / "picture.png").write_bytes(b"not sound")
    (share / "link.wav").symlink_to("Sounds/bird.wav")
    licence = folder / "usr/share/doc/chirps/copyright"
    licence.parent.mkdir(parents=True)
    licence.write_text("License: CC0-1.0\n")
    return pack("chirps", folder, archive)


def pack(name: str, folder: Path, archive: Path) -> Path:
    """`folder` as the package NAME 2.0-1 in `archive`."""
    (folder / "DEBIAN").mkdir()
    (folder / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 2.0-1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: x\n"
    )
    archive.mkdir(exist_ok=True)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "-b", str(folder), str(archive)], check=True, capture_output=True
    )
    return archive / f"{name}_2.0-1_all.deb"


def package(name: str = "chirps") -> Package:
    rules = (("*/Music/*", "music"), ("*/voices/*", "speech"), ("*/silence.*", SKIP), ("*", "environment"))
    return Package(name, "1.0-1", "CC0-1.0", 0.1, dict.fromkeys(DOMAINS, 0.0), rules)


@pytest.fixture(scope="module")
def chirps(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    return build_deb(folder / "chirps", folder / "built")


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
    assert not USED_BY_TESTS & set(names)
    for entry in (*packages, *repositories):
        assert entry.licence and "NC" not in entry.licence and "ND" not in entry.licence
        assert {domain for _, domain in entry.rules} <= {*DOMAINS, SKIP}
    assert all(set(package.hours) == set(DOMAINS) for package in packages)
    assert all(len(repository.commit) == 40 and repository.evidence for repository in repositories)


@pytest.mark.parametrize(
    ("name", "path", "domain"),
    [
        ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps/animals/birds/crow.ogg", "environment"),
        ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps/animals/birds/crow_desc_fr.ogg", "speech"),
        ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps/hobbies/music/string/cello.ogg", "music"),
        ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps/hobbies/music/string/cello_desc.ogg", "speech"),
        ("asterisk-core-sounds-en-g722", "usr/share/asterisk/sounds/en_US_f_Allison/digits/7.g722", "speech"),
        ("asterisk-core-sounds-en-g722", "usr/share/asterisk/sounds/en_US_f_Allison/silence/5.g722", SKIP),
        ("asterisk-core-sounds-en-g722", "usr/share/asterisk/sounds/en_US_f_Allison/beeperr.g722", "environment"),
        ("qabcs-data", "usr/share/qabcs/abcs/all/noises/rooster.ogg", "environment"),
        ("qabcs-data", "usr/share/qabcs/abcs/all/noises/violin.ogg", "music"),
        ("qabcs-data", "usr/share/qabcs/abcs/all/noises/clock.ogg", SKIP),  # a clip of ESC-10
        ("qabcs-data", "usr/share/qabcs/abcs/fr/sounds/words/dé.ogg", "speech"),
        ("ufoai-sound", "usr/share/games/ufoai/base/0snd.pk3/sound/ambience/arcticwind.ogg", "environment"),
        ("megaglest-data", "usr/share/games/megaglest/techs/megapack/factions/tech/music/music_tech.ogg", "music"),
        ("freedroid-data", "usr/share/games/freedroid/sound/starpaws.mod", "music"),
        ("scratch", "usr/share/scratch/Media/Sounds/Human/BabyCry.mp3", "environment"),
    ],
)
def test_rules_know_their_packages(name, path, domain):
    assert domain_of(select(load_packages(), [name])[0].rules, path) == domain


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


@needs_dpkg
def test_a_failing_package_is_named_and_does_not_stop_the_rest(archive, tmp_path):
    records, failures = debian.fetch([package("absent"), package()], tmp_path / "out")
    assert [record["package"] for record in records] == ["chirps"]
    assert failures == [{"package": "absent", "reason": "E: Unable to locate package absent"}]


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
def test_command_ends_in_shards(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "load_packages", lambda: [package("absent"), package()])
    out = tmp_path / "out"
    assert command.main(["debian", "--out", str(out), "--workers", "1"]) == 1  # one package is missing
    manifest = json.loads((out / "shards/manifest.json").read_text())
    assert {name: domain["clips"] for name, domain in manifest["domains"].items()} == {
        "environment": 1,
        "music": 1,
        "speech": 1,
    }
    corpus = json.loads((out / "corpus.json").read_text())
    assert [(entry["version"], entry["surveyed"]) for entry in corpus["packages"]] == [("2.0-1", "1.0-1")]
    assert [entry["package"] for entry in corpus["failed"]] == ["absent"]


@needs_dpkg
def test_the_same_command_again_takes_in_what_was_missing(archive, tmp_path, monkeypatch):
    """The shards of a part are replaced by those of the whole; complete ones are left alone."""
    out, part, whole = tmp_path / "out", package(), package("whistles")
    monkeypatch.setattr(command, "load_packages", lambda: [part, whole])
    arguments = ["debian", "--out", str(out), "--workers", "1"]
    assert command.main(arguments) == 1
    before = json.loads((out / "shards/manifest.json").read_text())
    write_wav(tmp_path / "whistles/usr/share/whistles/Sounds/whistle.wav", seed=7)
    pack("whistles", tmp_path / "whistles", archive)
    assert command.main(arguments) == 0
    after = json.loads((out / "shards/manifest.json").read_text())
    assert after["domains"]["environment"]["clips"] == before["domains"]["environment"]["clips"] + 1
    assert json.loads((out / "corpus.json").read_text())["failed"] == []
    stamps = {path: path.stat().st_mtime_ns for path in (out / "shards").iterdir()}
    assert command.main(arguments) == 0
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
