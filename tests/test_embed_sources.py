"""What a user may name to be embedded.

* Files, folders, patterns and lists of them, each file once, in the order named.
* A name that is not there stands for itself; nothing at all, or a list that cannot be read, is an error.
"""

from pathlib import Path

import pytest

from hear_jepa.errors import OptionError
from hear_jepa.files.find import find_sources


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ["a/one.wav", "a/deep/two.FLAC", "a/notes.md", "b/three.mp3", "b/[odd] name.ogg"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def names(paths):
    return [path.as_posix() for path in find_sources(paths)]


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
    Path("list.txt").write_text("b/three.mp3\n\na\nb/*.ogg\nmissing.wav\n", encoding="utf-8")
    assert names(["list.txt"]) == ["b/three.mp3", "a/deep/two.FLAC", "a/one.wav", "b/[odd] name.ogg", "missing.wav"]


def test_what_is_missing_stands_for_itself(folder):
    assert names(["gone.wav", "a/one.wav"]) == ["gone.wav", "a/one.wav"]


def test_nothing_found_is_an_error(folder):
    (folder / "empty").mkdir()
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    for paths, message in [
        (["empty", "*.aiff"], "no sound in empty, "),
        (["no.txt"], "no.txt"),
        (["binary.txt"], "UTF-8"),
    ]:
        with pytest.raises(OptionError, match=message):
            find_sources(paths)
