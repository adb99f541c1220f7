"""`hear-jepa embed`.

* The three formats hold the same embeddings, of the same files in the order named, and every failure with its reason;
  they read back as written.
* Killed (SIGKILL) with embeddings written but not entered in the journal, with half a line in it, or
  while the output is written, and run again: nothing is lost, nothing is embedded twice, nothing differs.
* The exit code is 1 if any file failed, 2 for a mistake in the command, else 0.
* Another run's output or parts are not touched unbidden; two runs do not write one output.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import soundfile

from hear_jepa import get_scene_embeddings, get_timestamp_embeddings, load_model
from hear_jepa.cli import main
from hear_jepa.commands import embed as embed_command
from hear_jepa.files.audio import read_audio
from hear_jepa.files.formats import load_embeddings
from hear_jepa.files.store import EmbeddingStore
from hear_jepa.model.checkpoint import save_checkpoint

KILLED_RUN = """
import json, os, signal, sys
from hear_jepa import cli
from hear_jepa.files import formats as embedding_formats
from hear_jepa.files import store as embedding_store
from hear_jepa.files.store import EmbeddingStore

where, after = sys.argv[1], int(sys.argv[2])
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
end = EmbeddingStore.end
def end_or_die(store, event):
    if len(store.done) == after:
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
else:
    EmbeddingStore.end = end_or_die
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory, checkpoint) -> str:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_checkpoint(path, checkpoint)
    return str(path)


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


@pytest.mark.parametrize("where", ["unjournaled", "half a line", "output"])
def test_a_killed_run_goes_on(tmp_path, corpus, weights, monkeypatch, where):
    whole, out = tmp_path / "whole.npz", tmp_path / "out.npz"
    options = ["--kind", "timestamps", "--channels", "separate", "--batch-seconds", "4", "--workers", "1"]
    embed(corpus, whole, weights, *options)
    command = [
        sys.executable,
        "-c",
        KILLED_RUN,
        where,
        "4",
        "embed",
        str(corpus),
        "--out",
        str(out),
        "--model",
        weights,
    ]
    killed = subprocess.run([*command, *options], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL

    again, embed_pieces = [], embed_command.embed_pieces
    monkeypatch.setattr(
        embed_command, "embed_pieces", lambda m, paths, *a: again.extend(paths) or embed_pieces(m, paths, *a)
    )
    assert embed(corpus, out, weights, *options) == 1
    assert len(again) == (0 if where == "output" else 4)  # of 8

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
    assert embed(tmp_path / "*.nothing", tmp_path / "none.npz", weights, "--device", "nonsense") == 2
    assert "nonsense" in capsys.readouterr().err


def test_an_output_is_replaced_only_when_asked(tmp_path, corpus, weights, capsys):
    for name in ["out.npz", "folder"]:
        out = tmp_path / name
        assert embed(corpus / "1.flac", out, weights) == 0
        assert embed(corpus / "2.flac", out, weights) == 2 and "--overwrite" in capsys.readouterr().err
        assert load_embeddings(out).paths == [str(corpus / "1.flac")]
        assert embed(corpus / "2.flac", out, weights, "--overwrite") == 0
        assert load_embeddings(out).paths == [str(corpus / "2.flac")]


def test_parts_of_other_settings_are_not_mixed_in(tmp_path, corpus, weights, capsys):
    model = load_model(weights)
    EmbeddingStore(tmp_path / "out.npz", embed_command.settings_of(model, "scene", "mix")).close()
    assert embed(corpus, tmp_path / "out.npz", weights, "--layers", "1,3") == 2
    assert "embedding_size, layers" in capsys.readouterr().err
    assert embed(corpus, tmp_path / "out.npz", weights, "--layers", "1,3", "--overwrite") == 1
    assert load_embeddings(tmp_path / "out.npz").embeddings.shape == (6, 2 * model.scene_embedding_size)


@pytest.mark.skipif(os.name != "posix", reason="outputs are locked by flock")
def test_two_runs_do_not_write_one_output(tmp_path, corpus, weights, capsys):
    store = EmbeddingStore(tmp_path / "out.npz", embed_command.settings_of(load_model(weights), "scene", "mix"))
    assert embed(corpus, tmp_path / "out.npz", weights) == 2
    assert "another run" in capsys.readouterr().err
    store.close()
    assert embed(corpus, tmp_path / "out.npz", weights) == 1


def test_an_empty_result_is_still_an_output(tmp_path, corpus, weights):
    for name in ["out.npz", "out.parquet", "out"]:
        if name == "out.parquet":
            pytest.importorskip("pyarrow")
        assert embed(corpus / "silent.wav", tmp_path / name, weights, "--kind", "timestamps") == 1
        found = load_embeddings(tmp_path / name)
        assert list(found.failed) == [str(corpus / "silent.wav")] and len(found.embeddings) == 0
