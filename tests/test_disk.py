"""Files that are whole or not there.

* A writer that fails or is killed (SIGKILL) leaves the file, or folder, that was there before, at every moment.
* What a killed writer left is removed by the next process that writes there; what a living one writes is not.
* JSON is read back as it was written, also a name whose bytes are no UTF-8.
* A lock is held by one; it is free when its holder was killed; its file does not stay.
"""

import itertools
import os
import subprocess
import sys
from contextlib import suppress

import pytest

from hear_jepa.disk import atomic_path, locked, read_json, remove_abandoned, temporary_folder, write_json
from hear_jepa.errors import LockError

PRELUDE = "import sys, time; from hear_jepa.disk import atomic_path, locked\n"
WRITER = """
with atomic_path(sys.argv[1]) as path:
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""
HOLDER = """
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def start(code, path):
    process = subprocess.Popen([sys.executable, "-c", PRELUDE + code, str(path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def kill(process):
    process.kill()
    process.wait()
    process.stdout.close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_writer_leaves_what_was_there(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"), atomic_path(path) as temporary:
        assert temporary.suffix == ".txt"
        temporary.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and names(tmp_path) == ["file.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "new" / "folder"
    for text in ("old", "new"):
        with atomic_path(path) as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
        assert names(path) == [text] and names(path.parent) == ["folder"]


def test_what_a_killed_writer_left_goes_and_a_living_ones_stays(tmp_path):
    path = tmp_path / "state.pt"
    path.write_text("old")
    killed, living = start(WRITER, path), start(WRITER, path)
    kill(killed)
    assert len(names(tmp_path)) == 3 and path.read_text() == "old"
    with atomic_path(tmp_path / "other") as temporary:  # any writer in this folder
        temporary.write_text("new")
    assert len(names(tmp_path)) == 3  # the killed writer's folder went, the other file came
    kill(living)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == ["other", "state.pt"]


@pytest.mark.parametrize("moment", range(7))
def test_a_writer_that_is_killed_while_it_removes_its_folder_leaves_what_the_next_one_removes(
    tmp_path, monkeypatch, moment
):
    calls = itertools.count()

    def before_the_kill(function):
        def remove(*arguments, **options):
            if next(calls) >= moment:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return remove

    with monkeypatch.context() as killed:
        with suppress(KeyboardInterrupt), temporary_folder(tmp_path / "out") as folder:
            for name in ("a", "lock.d", "z"):
                (folder / name).mkdir()
                (folder / name / "file").touch()
            for remove in ("unlink", "rmdir"):
                killed.setattr(os, remove, before_the_kill(getattr(os, remove)))
        assert folder.exists()
    remove_abandoned(tmp_path)
    assert names(tmp_path) == []


def test_folders_of_others_are_left_alone(tmp_path):
    for name in (".mine.part", ".notes.abcdefgh.part", "plain.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").touch()
    remove_abandoned(tmp_path)
    assert len(names(tmp_path)) == 3


def test_a_lock_is_held_by_one_and_freed_by_a_kill(tmp_path):
    path = tmp_path / "out.lock"
    holder = start(HOLDER, path)
    with pytest.raises(LockError, match=r"out.lock is held by another process"), locked(path):
        pass
    with pytest.raises(LockError), locked(path, timeout_s=0.2):
        pass
    kill(holder)
    with locked(path), pytest.raises(LockError), locked(path):  # in one process too
        pass
    assert names(tmp_path) == []


def test_json_is_read_back_also_with_a_name_that_is_no_utf_8(tmp_path):
    content = {"skipped": [{"path": "b\udcff.wav", "reason": 'schön "\\udcff"\n'}]}
    write_json(tmp_path / "file.json", content)
    assert read_json(tmp_path / "file.json") == content
