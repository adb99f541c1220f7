"""The recipe for freely licensed audio.

Claims:
* The list stays what the documentation says: at most 60 packages and 1.35 GB for 25 hours and more, each package once,
  none of those that tests/tasks is made of, none under terms that forbid a use.
* Its rules give every file of a package a known domain, and example paths the right one.
* Of a package the audio is kept, that inside archives too, and nothing else but the copyright; the record names the
  version that the archive offered, not the one surveyed.
* What is there is kept: no second download, no second unpacking; a damaged download or a lost file is made good.
* A package that fails is named with the reason and does not stop the rest.
* Without apt-get or dpkg-deb the command says so, in one line, and ends with 2.
* The mapping written for `prepare` sorts files as the list's rules do; the whole command ends in shards.
"""

import json
import shutil
import subprocess
import wave
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from hear_jepa.errors import CorpusError
from hear_jepa.train.corpus import __main__ as command
from hear_jepa.train.corpus import debian
from hear_jepa.train.corpus.catalogue import DOMAINS, SKIP, Package, load_catalogue, select
from hear_jepa.train.corpus.domains import Mapping

USED_BY_TESTS = {
    "ktuberling-data",
    "klettres-data",
    "hydrogen-drumkits",
    "hydrogen-drumkits-effects",
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


def test_list_keeps_its_limits():
    catalogue = load_catalogue()
    names = [package.package for package in catalogue]
    assert 0 < len(names) <= 60
    assert len(set(names)) == len(names)
    assert sum(package.megabytes for package in catalogue) <= 1350
    assert sum(sum(package.hours.values()) for package in catalogue) >= 25
    assert not USED_BY_TESTS & set(names)
    for package in catalogue:
        assert package.licence and "NC" not in package.licence and "ND" not in package.licence
        assert set(package.hours) == set(DOMAINS)


def test_rules_cover_every_path_with_a_known_domain():
    for package in load_catalogue():
        assert {domain for _, domain in package.rules} <= {*DOMAINS, SKIP}
        assert package.domain("usr/share/anything/at/all.ogg") in DOMAINS


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
    assert select(load_catalogue(), [name])[0].domain(path) == domain


def test_unknown_package_is_refused_by_name():
    with pytest.raises(CorpusError, match="no-such-package"):
        select(load_catalogue(), ["bb", "no-such-package"])


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
    assert message.startswith("corpora: apt-get and dpkg-deb not found")
    assert "hear_jepa.train.corpus.prepare" in message


@needs_dpkg
def test_mapping_sorts_as_the_rules_do(archive, tmp_path):
    records, _ = debian.fetch([package()], tmp_path / "out")
    debian.write_mapping([package()], records, tmp_path / "domains.tsv")
    mapping = Mapping(tmp_path / "domains.tsv")
    for file in records[0]["files"]:
        origin = mapping(tmp_path, f"chirps/{file['path']}")
        assert origin.domain == package().domain(file["path"])
        if origin.domain != SKIP:
            assert (origin.source, origin.licence) == ("debian:chirps=2.0-1", "CC0-1.0")


@needs_dpkg
def test_command_ends_in_shards(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "load_catalogue", lambda: [package("absent"), package()])
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
def test_given_again_the_command_takes_in_what_was_missing(archive, tmp_path, monkeypatch):
    """The shards of a part are replaced by those of the whole; complete ones are left alone."""
    out, part, whole = tmp_path / "out", package(), package("whistles")
    monkeypatch.setattr(command, "load_catalogue", lambda: [part, whole])
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
