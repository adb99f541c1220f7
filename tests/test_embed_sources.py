"""What a user may name to be embedded.

* Files, folders, patterns and lists of them, each file once, in the order named.
* A path that is not there, nothing at all, or a list that cannot be read, is an error; a line of a list stands for
  itself. Headerless files are asked for. Links are followed once; what cannot be followed is named.
* An output that is, holds, or lies in an input is refused.
"""

import os
from pathlib import Path

import pytest

from hear_jepa.errors import OptionError
from hear_jepa.files.find import check_out, find_sources


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ["a/one.wav", "a/deep/two.FLAC", "a/notes.md", "b/three.mp3", "b/[odd] name.ogg"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(paths):
    return [path.as_posix() for path in find_sources(paths).files]


def test_files_folders_and_patterns(folder):
    assert names(["a"]) == ["a/deep/two.FLAC", "a/one.wav"]
    assert names(["b/three.mp3", "a"]) == ["b/three.mp3", "a/deep/two.FLAC", "a/one.wav"]
    assert names(["a/one.wav", "a"]) == ["a/one.wav", "a/deep/two.FLAC"]
    assert names(["**/*.wav", "*/three*"]) == ["a/one.wav", "b/three.mp3"]
    assert names(["*"]) == ["a/deep/two.FLAC", "a/one.wav", "b/[odd] name.ogg", "b/three.mp3"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(folder):
    assert names(["b/[odd] name.ogg"]) == ["b/[odd] name.ogg"]


def test_a_file_named_outright_needs_no_known_suffix(folder):
    assert names(["a/notes.md"]) == ["a/notes.md"]


def test_a_list_names_files_folders_and_patterns(folder):
    lost = ["missing.wav", "b/missing [1].wav", "b/*.aiff"]
    lines = ["b/three.mp3", "", "a", "b/*.ogg", *lost]
    Path("list.txt").write_text("\n".join(lines), encoding="utf-8")
    found = ["b/three.mp3", "a/deep/two.FLAC", "a/one.wav", "b/[odd] name.ogg"]
    assert names(["list.txt"]) == found + lost  # whoever opens them says that they are not there


def test_a_path_that_is_not_there_is_an_error(folder):
    for missing in ("gone.wav", "gone/", "*.aiff"):
        with pytest.raises(OptionError, match="there is no file or folder"):
            find_sources([missing, "a/one.wav"])


def test_what_has_no_header_is_left_out_unless_asked_for(folder):
    Path("a/phone.g722").touch()
    found = find_sources(["a"])
    assert names(["a"]) == ["a/deep/two.FLAC", "a/one.wav"] and found.left_out == [Path("a/phone.g722")]
    assert Path("a/phone.g722") in find_sources(["a"], headerless=True).files
    assert names(["a/phone.g722"]) == ["a/phone.g722"]
    Path("phones").mkdir()
    Path("a/phone.g722").rename("phones/phone.g722")
    with pytest.raises(OptionError, match="--headerless"):
        find_sources(["phones"])


def test_links_are_followed_once_and_what_cannot_be_read_is_named(folder, monkeypatch):
    Path("b/again").symlink_to("../a")
    Path("a/deep/circle").symlink_to("..")
    Path("b/gone.wav").symlink_to("nowhere.wav")
    assert names(["b"]) == ["b/[odd] name.ogg", "b/again/deep/two.FLAC", "b/again/one.wav", "b/gone.wav", "b/three.mp3"]
    scandir = os.scandir

    def deny(path):
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    assert names(["a"]) == ["a/deep", "a/one.wav"]  # whoever opens it says why


@pytest.mark.parametrize(
    "out, allowed",
    [("a", False), ("a/out.npz", False), (".", False), ("a/one.wav", False)]
    + [("b/out.npz", True), ("out", True), ("a.npz", True)],
)
def test_an_output_is_holds_or_lies_in_no_input(folder, out, allowed):
    for named in (["a"], ["a/one.wav", "a"]):
        roots = find_sources(named).roots
        if allowed:
            check_out(out, roots)
        else:
            with pytest.raises(OptionError, match="--out"):
                check_out(out, roots)


def test_nothing_found_is_an_error(folder):
    (folder / "empty").mkdir()
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    for paths, message in [
        (["empty"], "no sound in empty: "),
        (["no.txt"], "no.txt"),
        (["binary.txt"], "UTF-8"),
    ]:
        with pytest.raises(OptionError, match=message):
            find_sources(paths)
