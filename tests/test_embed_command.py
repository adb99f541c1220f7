"""`hear-jepa embed`.

* The three formats hold the same embeddings, of the same files in the order named, and every failure with its reason;
  they read back as written.
* Killed (SIGKILL) with embeddings written but not entered in the journal, with half a line in it, or
  while the output is written or the parts are removed, and run again: nothing is lost, nothing is embedded twice,
  nothing differs.
* The exit code is 1 if any file failed, 2 for a mistake in the command, else 0.
* Nothing but an earlier output of ours, with nothing foreign in it, is ever replaced, and that only when asked; an
  output is, holds, or lies in no input. Two runs do not write one output.
* Parts belong to their command line, which resumes them, also with --overwrite. `--append` adds what is new or changed,
  and embeds nothing twice.
* What can be refused is refused before the model loads, and leaves nothing behind.
* Whatever is not finite, in or out, is a failure by name. Odd files are listed, control characters escaped.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import soundfile

from hear_jepa import Embedder, get_scene_embeddings, get_timestamp_embeddings, load_model
from hear_jepa.cli import main
from hear_jepa.commands import embed as embed_command
from hear_jepa.errors import AudioError
from hear_jepa.files.audio import read_audio
from hear_jepa.files.formats import load_embeddings
from hear_jepa.files.store import EmbeddingStore

KILLED_RUN = """
import json, os, signal, sys
from hear_jepa import cli, disk
from hear_jepa.files import formats as embedding_formats
from hear_jepa.files import store as embedding_store
from hear_jepa.files.store import EmbeddingStore

where, after = sys.argv[1], int(sys.argv[2])
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
end = EmbeddingStore.end
def end_or_die(store, event):
    if len(store.records) == after:
        if where == "unjournaled":
            store._journal.write = die
        else:
            write = store._journal.write
            def write_half(line):
                write(line[: len(line) // 2])
                store._journal.flush()
                die()
            store._journal.write = write_half
    end(store, event)
if where == "output":
    embedding_store.write_output = lambda *arguments: (embedding_formats.write_output(*arguments), die())
elif where == "removal":
    rmtree = disk.shutil.rmtree
    def remove_some_and_die(folder, **options):
        if folder.name == "parts":
            os.unlink(folder / "journal.jsonl")
            die()
        rmtree(folder, **options)
    disk.shutil.rmtree = remove_some_and_die
else:
    EmbeddingStore.end = end_or_die
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, minute) -> Path:
    """Seven recordings, one of them stereo, one unreadable, one silent."""
    folder = tmp_path_factory.mktemp("sounds")
    for number, seconds in enumerate([0.05, 1, 2.5, 9, 1.3]):
        soundfile.write(folder / f"{number}.flac", minute[9000 * number :][: int(16000 * seconds)].numpy(), 16000)
    soundfile.write(folder / "stéréo.wav", minute[:40000].reshape(20000, 2).numpy(), 22050)
    soundfile.write(folder / "silent.wav", numpy.zeros(8000), 16000)
    (folder / "broken.wav").write_bytes(b"RIFF....")
    return folder


def embed(corpus, out, weights, *options) -> int:
    return main(["embed", str(corpus), "--out", str(out), "--model", weights, *options])


@pytest.mark.parametrize("name", ["out.npz", "out.parquet", "out"])
@pytest.mark.parametrize("kind", ["scene", "timestamps"])
def test_every_format_holds_what_the_hear_functions_give(tmp_path, corpus, weights, name, kind):
    if name == "out.parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / name
    assert embed(corpus, out, weights, "--kind", kind, "--hop-ms", "80") == 1
    found = load_embeddings(out)
    model = load_model(weights, hop_ms=80)
    good = [path for path in sorted(corpus.iterdir()) if path.name not in ("silent.wav", "broken.wav")]
    assert found.paths == [str(path) for path in good] and found.channels == [0] * len(good)
    assert set(found.failed) == {str(corpus / "silent.wav"), str(corpus / "broken.wav")}
    assert "silent" in found.failed[str(corpus / "silent.wav")] and found.settings["kind"] == kind
    for number, path in enumerate(good):
        audio, _ = read_audio(path, mono=True)
        if kind == "scene":
            expected = get_scene_embeddings(audio, model)[0]
        else:
            (expected,), (timestamps,) = get_timestamp_embeddings(audio, model)
            assert numpy.array_equal(found.timestamps_ms[number].astype("f4"), timestamps.numpy())
        numpy.testing.assert_allclose(found.embeddings[number], expected.numpy(), atol=1e-5, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # no parts left


def killed_run(where, after, source, out, weights, *options) -> None:
    """A run that is killed where said, after so many files."""
    command = [sys.executable, "-c", KILLED_RUN, where, str(after), "embed", str(source), "--out", str(out)]
    killed = subprocess.run([*command, "--model", weights, *options], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()


@pytest.mark.parametrize("where", ["unjournaled", "half a line", "output", "removal"])
def test_a_killed_run_is_resumed(tmp_path, corpus, weights, monkeypatch, where):
    whole, out = tmp_path / "whole.npz", tmp_path / "out.npz"
    options = ["--kind", "timestamps", "--channels", "separate", "--batch-seconds", "4", "--workers", "1"]
    embed(corpus, whole, weights, *options)
    killed_run(where, 4, corpus, out, weights, *options)

    again = spy(monkeypatch)
    if where == "removal":  # the output is finished, and stays so
        assert embed(corpus, out, weights, *options) == 2 and not again
        assert embed(corpus, out, weights, "--append", *options) == 1
        assert {path.name for path in again} == {"broken.wav", "silent.wav"}
    else:
        assert embed(corpus, out, weights, *options) == 1
        assert len(again) == (0 if where == "output" else 4)  # of 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "whole.npz"]

    expected, found = load_embeddings(whole), load_embeddings(out)
    assert found.paths == expected.paths and found.channels == expected.channels and found.failed == expected.failed
    for one, other in zip(found.embeddings, expected.embeddings, strict=True):
        numpy.testing.assert_allclose(one, other, atol=1e-5, rtol=0)
    for one, other in zip(found.timestamps_ms, expected.timestamps_ms, strict=True):
        assert numpy.array_equal(one, other)


def test_exit_codes_and_summary(tmp_path, corpus, weights, capsys):
    assert embed(corpus / "1.flac", tmp_path / "good.npz", weights) == 0
    assert "1 of 1 files" in capsys.readouterr().out
    assert embed(corpus, tmp_path / "some.npz", weights) == 1
    printed = capsys.readouterr()
    assert "6 of 8 files" in printed.out and "broken.wav: " in printed.err and "silent.wav: silent" in printed.err
    assert embed(corpus, tmp_path / "out.mp4", weights) == 2
    assert ".parquet" in capsys.readouterr().err
    assert embed(corpus, tmp_path / "none.npz", weights, "--device", "nonsense") == 2
    assert "nonsense" in capsys.readouterr().err


def test_an_output_is_replaced_only_when_asked(tmp_path, corpus, weights, capsys):
    for name in ["out.npz", "folder", "out.parquet"]:
        out = tmp_path / name
        assert embed(corpus / "1.flac", out, weights) == 0
        assert embed(corpus / "2.flac", out, weights) == 2 and "--append" in capsys.readouterr().err
        assert load_embeddings(out).paths == [str(corpus / "1.flac")]
        assert embed(corpus / "2.flac", out, weights, "--overwrite") == 0
        assert load_embeddings(out).paths == [str(corpus / "2.flac")]


def snapshot(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [[], ["--overwrite"], ["--append"]])
def test_nothing_but_our_outputs_is_ever_replaced(tmp_path, corpus, weights, capsys, options):
    rec, sound = tmp_path / "rec", corpus / "1.flac"
    shutil.copytree(corpus, rec)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years")
    (tmp_path / "notes.npz").write_text("not ours")
    numpy.savez(tmp_path / "data.npz", embeddings=numpy.zeros(3))
    (tmp_path / "link").symlink_to(tmp_path / "thesis")
    assert embed(sound, tmp_path / "ours", weights) == embed(sound, tmp_path / "ours.npz", weights) == 0
    (tmp_path / "ours" / "mine.txt").write_text("added by hand")
    arrays = dict(numpy.load(tmp_path / "ours.npz"))
    numpy.savez(tmp_path / "ours.npz", **arrays, mine=numpy.zeros(7))
    (tmp_path / "free.parts").mkdir()
    (tmp_path / "free.parts" / "mine.txt").write_text("mine")
    before = snapshot(tmp_path)
    for source, out in [
        (rec, rec),
        (rec, tmp_path),
        (rec, rec / "out.npz"),
        (rec / "1.flac", rec),
        (sound, tmp_path / "thesis"),
        (sound, tmp_path / "link"),
        (sound, tmp_path / "notes.npz"),
        (sound, tmp_path / "data.npz"),
        (sound, tmp_path / "ours"),
        (sound, tmp_path / "ours.npz"),
        (sound, tmp_path / "free"),
        (sound, rec / "2.flac"),
    ]:
        assert embed(source, out, weights, *options) == 2, out
        assert "overwrite" not in capsys.readouterr().err, out  # never advise what destroys
        assert snapshot(tmp_path) == before, out


def test_files_are_added_only_when_asked_and_once(tmp_path, corpus, weights, monkeypatch, capsys):
    rec, embedded = tmp_path / "rec", spy(monkeypatch)
    rec.mkdir()
    for name in ("0.flac", "1.flac", "2.flac", "broken.wav"):
        shutil.copy(corpus / name, rec)
    for name in ("out.npz", "out.parquet", "out"):
        out = tmp_path / name
        for kind in ("scene", "timestamps"):
            options = ("--kind", kind, "--overwrite", "--channels", "separate")
            assert embed(rec, out, weights, *options) == 1
            shutil.copy(corpus / "stéréo.wav", rec)
            shutil.copy(corpus / "3.flac", rec / "1.flac")  # another recording under a name that is there
            embedded.clear()
            assert embed(rec, out, weights, "--append", "--kind", kind, "--channels", "separate") == 1
            assert [path.name for path in embedded] == [
                "1.flac",
                "broken.wav",
                "stéréo.wav",
            ]
            found = load_embeddings(out)
            assert embed(rec, tmp_path / "all.npz", weights, *options) == 1
            expected = load_embeddings(tmp_path / "all.npz")
            assert found.paths == expected.paths and found.channels == expected.channels == [0] * 3 + [0, 1]
            assert found.failed == expected.failed
            for one, other in zip(found.embeddings, expected.embeddings, strict=True):
                numpy.testing.assert_allclose(one, other, atol=1e-5, rtol=0)
            embedded.clear()
            assert embed(rec / "0.flac", out, weights, "--append", "--kind", kind, "--channels", "separate") == 1
            assert not embedded and load_embeddings(out).paths == found.paths  # what is not named again stays
            shutil.copy(corpus / "1.flac", rec)
            (rec / "stéréo.wav").unlink()
    capsys.readouterr()
    assert embed(rec, out, weights, "--append", "--kind", "timestamps", "--hop-ms", "80") == 2
    assert "other settings (channels, hop_ms)" in capsys.readouterr().err


def test_parts_belong_to_their_command_line(tmp_path, corpus, weights, capsys):
    out = tmp_path / "out.npz"
    killed_run("half a line", 3, corpus, out, weights)
    assert embed(corpus, out, weights, "--layers", "1,3") == 2
    assert "embedding_size, layers" in capsys.readouterr().err
    assert embed(corpus / "4.flac", out, weights) == 2 and "other inputs" in capsys.readouterr().err
    assert not out.exists()
    embed(corpus / "4.flac", out, weights, "--append")
    found = load_embeddings(out)
    assert len(found.paths) + len(found.failed) == 4  # three of the killed run, and this one
    killed_run("half a line", 3, corpus, out, weights, "--overwrite")
    assert load_embeddings(out).paths == found.paths  # until the new one is there
    assert embed(corpus / "4.flac", out, weights, "--overwrite") == 0
    assert load_embeddings(out).paths == [str(corpus / "4.flac")] and not Path(f"{out}.parts").exists()


def test_two_runs_do_not_write_one_output(tmp_path, corpus, weights, capsys):
    out = tmp_path / "out.npz"
    assert embed(corpus / "1.flac", out, weights) == 0
    with EmbeddingStore(out, ["x"], overwrite=True) as store:
        store.start({"kind": "scene", "embedding_size": 3})
        before = snapshot(tmp_path)
        for options in ([], ["--overwrite"], ["--append"]):
            assert embed(corpus, out, weights, *options) == 2
            assert "another run" in capsys.readouterr().err and snapshot(tmp_path) == before
    assert load_embeddings(out).paths == [str(corpus / "1.flac")]
    assert embed(corpus, out, weights, "--overwrite") == 1


def test_what_can_be_refused_is_refused_before_the_model_loads(tmp_path, corpus, weights, monkeypatch, capsys):
    (tmp_path / "there.npz").write_text("something")
    monkeypatch.setattr(embed_command, "load_model", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for source, out, message in [
        (corpus, tmp_path / "out.parquet", "pip install pyarrow"),
        (corpus, tmp_path / "out.mp4", ".npz, .parquet or .lance"),
        (corpus, tmp_path / "there.npz", "exists"),
        (corpus / "nofolder", tmp_path / "out.npz", "there is no file or folder"),
        (tmp_path / "*.wav", tmp_path / "out.npz", "there is no file or folder"),
    ]:
        assert embed(source, out, weights) == 2 and message in capsys.readouterr().err
    assert embed(corpus, tmp_path / "out.npz", weights, "--address", "auto") == 2
    assert "--engine ray" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]


def test_a_full_disk_is_refused_and_resumed_from(tmp_path, corpus, weights, monkeypatch, capsys):
    out, embedded = tmp_path / "out.npz", spy(monkeypatch)
    with monkeypatch.context() as full:
        full.setattr(embed_command.EmbeddingStore, "end", no_space_after(3))
        assert embed(corpus, out, weights) == 2
        printed = capsys.readouterr().err.splitlines()
        assert "No space left on device" in printed[-1] and not out.exists()
    embedded.clear()
    assert embed(corpus, out, weights) == 1 and len(embedded) == 5 and len(load_embeddings(out).paths) == 6


def no_space_after(count):
    end = EmbeddingStore.end

    def end_or_fail(store, event):
        if len(store.records) == count:
            raise OSError(28, "No space left on device", "embeddings.bin")
        return end(store, event)

    return end_or_fail


def test_an_interrupted_run_says_how_to_resume(tmp_path, corpus, weights, monkeypatch, capsys):
    out = tmp_path / "out.npz"
    with monkeypatch.context() as stop:
        stop.setattr(embed_command.EmbeddingStore, "end", interrupt_after(2))
        assert embed(corpus, out, weights) == 130
    assert "resumes after 2 of 8 files" in capsys.readouterr().err and not out.exists()
    assert embed(corpus, out, weights) == 1 and len(load_embeddings(out).paths) == 6


def test_a_run_that_replaces_is_resumed_by_the_same_command(tmp_path, corpus, weights, monkeypatch, capsys):
    out, replace = tmp_path / "out.npz", ["--overwrite"]
    for first, second, n_left in [
        (replace, replace, 6),
        (replace, [*replace, "--channels", "separate"], 8),
        ([], replace, 8),
    ]:
        out.unlink(missing_ok=True)
        with monkeypatch.context() as stop:
            stop.setattr(embed_command.EmbeddingStore, "end", interrupt_after(2))
            assert embed(corpus, out, weights, *first) == 130
        assert "the same command resumes" in capsys.readouterr().err
        with monkeypatch.context() as spied:
            embedded = spy(spied)
            assert embed(corpus, out, weights, *second) == 1 and len(embedded) == n_left
        assert len(set(load_embeddings(out).paths)) == 6


def interrupt_after(count):
    end = EmbeddingStore.end

    def end_or_stop(store, event):
        if len(store.records) == count:
            raise KeyboardInterrupt
        return end(store, event)

    return end_or_stop


def test_odd_files_are_listed(tmp_path, corpus, weights, capsys):
    """A truncated one, one too loud, a headerless one, links that lead nowhere or in a circle, names of any bytes."""
    rec = tmp_path / "rec"
    rec.mkdir()
    whole = (corpus / "stéréo.wav").read_bytes()
    (rec / "cut.wav").write_bytes(whole[: len(whole) // 2])
    loud = numpy.full(9000, 1e30, "f4")
    soundfile.write(rec / "loud.wav", loud, 16000, subtype="FLOAT")
    (rec / "phone.gsm").write_bytes(b"\xd0" * 330)
    (rec / "text.au").write_text("no sound " * 999)
    (rec / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (rec / "circle").symlink_to(rec)
    odd_name = os.fsdecode(b"\xff\x1b[31m\n.wav")
    (rec / odd_name).write_bytes(whole)
    out = tmp_path / "out.npz"
    assert embed(rec, out, weights) == 1
    printed = capsys.readouterr()
    found = load_embeddings(out)
    assert [Path(path).name for path in found.paths] == ["cut.wav", "\\xff\x1b[31m\n.wav"]
    assert "2 of 5 files" in printed.out
    assert "1 embedded as far as they go" in printed.err and "declares 0.91 s, only 0.45 s are there" in printed.err
    assert "loud.wav: samples of 1e+30" in printed.err and "gone.wav: a broken link to" in printed.err
    assert "1 left out" in printed.err and "phone.gsm" in printed.err and "\x1b" not in printed.err
    names = "\n".join(sorted(str(path) for path in rec.iterdir() if path.name[0] == "\udcff" or path.name == "cut.wav"))
    assert embed(rec, out, weights, "--overwrite", "--truncated", "fail") == 1
    assert "cut.wav: truncated: its header declares" in capsys.readouterr().err
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + os.fsencode(str(rec / "cut.wav")) + b"\r\n")
    assert names and embed(tmp_path / "list.txt", tmp_path / "listed.npz", weights) == 0


def test_embeddings_that_are_not_finite_are_failures(tmp_path, corpus, checkpoint, monkeypatch):
    model = Embedder(checkpoint)
    encode = model.encode_windows

    def damaged(spectrograms):
        columns = encode(spectrograms)
        columns[0, 0, 0] = float("nan")
        return columns

    monkeypatch.setattr(model, "encode_windows", damaged)
    path = corpus / "1.flac"
    audio = read_audio(path)[0]
    for kind in ("scene", "timestamps"):
        (file,) = model.embed_files(path, kind)
        assert "not finite" in file.error and not file.embeddings
        with pytest.raises(AudioError, match="not finite"):
            model.embed(audio, 16000, kind)
    for function in (get_scene_embeddings, get_timestamp_embeddings):
        with pytest.raises(AudioError, match="not finite"):
            function(audio, model)
    with pytest.raises(AudioError, match="not finite"):
        list(model.embed_stream([audio[0]]))


def spy(monkeypatch) -> list[Path]:
    """The files that are embedded from now on."""
    embedded, embed_pieces = [], embed_command.embed_pieces
    monkeypatch.setattr(
        embed_command, "embed_pieces", lambda m, paths, *a: embedded.extend(paths) or embed_pieces(m, paths, *a)
    )
    return embedded


def test_an_empty_result_is_still_an_output(tmp_path, corpus, weights):
    for name in ["out.npz", "out.parquet", "out"]:
        if name == "out.parquet":
            pytest.importorskip("pyarrow")
        assert embed(corpus / "silent.wav", tmp_path / name, weights, "--kind", "timestamps") == 1
        found = load_embeddings(tmp_path / name)
        assert list(found.failed) == [str(corpus / "silent.wav")] and len(found.embeddings) == 0
