"""Shapes of output, and kinds of input.

* A window holds the pooled columns whose centres lie in it, whatever its length, hop and the format; the last one ends
  with the sound, and none is missing or empty.
* float16 outputs are the float32 ones, rounded. A folder has more entries than files may be open.
* A row of a table is an excerpt: it embeds as the sound cut out by hand; its further columns travel on, of any bytes.
  One that failed is tried again.
* Members of a tar archive embed as the files that they hold; a table may name them.
* Whatever the input, what is in an output is not embedded again.
"""

import csv
import json
import os
import shutil
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

from hear_jepa import Embedder
from hear_jepa.cli import main
from hear_jepa.commands import embed as embed_command
from hear_jepa.errors import OptionError
from hear_jepa.files.arrays import NpyFolder
from hear_jepa.files.formats import load_embeddings
from hear_jepa.files.records import FileRecord, RowFile
from hear_jepa.model.pooling import Pool

NAMES = ("out.npz", "out.parquet", "out")
LANCE = pytest.param("out.lance", marks=pytest.mark.skipif(not find_spec("lance"), reason="needs pylance"))


@pytest.fixture(scope="module")
def sounds(tmp_path_factory, minute) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for number, seconds in enumerate([0.03, 1, 4.3, 12.04]):
        soundfile.write(folder / f"{number}.flac", minute[9000 * number :][: int(16000 * seconds)].numpy(), 16000)
    return folder


def embed(source, out, weights, *options) -> int:
    return main(["embed", str(source), "--out", str(out), "--model", weights, *options])


@pytest.mark.parametrize("pooling", ["mean", "mean+std"])
@pytest.mark.parametrize("window_s, hop_s", [(0.32, 0.32), (1.0, 0.35), (2.0, 2.0), (2.0, 3.0), (60.0, 60.0)])
def test_a_window_pools_the_columns_whose_centres_lie_in_it(sounds, checkpoint, minute, window_s, hop_s, pooling):
    model = Embedder(checkpoint, hop_ms=80, scene_hop_ms=80, pooling=pooling)
    files = list(model.embed_files(sorted(sounds.iterdir()), "windows", window_s=window_s, hop_s=hop_s, batch_s=3))
    assert len(files) == 4
    for file in files:
        audio, _ = soundfile.read(file.path, dtype="float32")
        columns, centres = model.timestamps(torch.from_numpy(audio)[None])
        end_s = len(audio) / 16000
        spans = [(start, min(start + window_s, end_s)) for start in hop_s * numpy.arange(99) if start < end_s]
        full = [span for span in spans if span[1] - span[0] > window_s - 1e-9]
        rest = spans[len(full) :][:1] if not full or full[-1][1] < end_s - 1e-9 else []
        expected, kept = [], []
        for start, end in full + rest:
            inside = columns[0][(centres[0] >= 1000 * start) & (centres[0] < 1000 * (start + window_s))]
            if len(inside):
                pool = Pool(pooling)
                pool.add(inside)
                expected.append(pool.embedding())
                kept.append((start, end))
        numpy.testing.assert_allclose(file.spans_s, kept, atol=1e-9)
        numpy.testing.assert_allclose(file.embeddings[0], torch.stack(expected).numpy(), atol=1e-5, rtol=0)


def test_windows_that_cannot_be_are_refused(sounds, model, weights, tmp_path, capsys):
    for options in [
        {},
        {"window_s": 0.1},
        {"window_s": 5, "hop_s": 0},
        {"window_s": 5.00005},
        {"window_s": float("nan")},
    ]:
        with pytest.raises(OptionError, match="window_s"):
            list(model.embed_files(sounds / "1.flac", "windows", **options))
    assert embed(sounds, tmp_path / "o.npz", weights, "--kind", "windows") == 2
    assert embed(sounds, tmp_path / "o.npz", weights, "--window-s", "5") == 2
    assert embed(sounds, tmp_path / "o.npz", weights, "--hop-s", "0.5") == 2 and "--hop-s" in capsys.readouterr().err
    for out in (["o.npz"], ["parts", "--shard", "0/2"]):
        windows = ["--kind", "windows", "--window-s", "0.1"]
        assert embed(sounds, tmp_path / out[0], weights, *out[1:], *windows) == 2
    assert not [path.name for path in tmp_path.rglob("*") if path.is_file()]  # the right command is not another one


@pytest.mark.parametrize("name", [*NAMES[1:], LANCE])
@pytest.mark.parametrize("kind", ["scene", "timestamps", "windows"])
def test_every_format_holds_the_same(sounds, weights, tmp_path, kind, name):
    options = ["--kind", kind, *(["--window-s", "1.5", "--hop-s", "1"] if kind == "windows" else [])]
    found = []
    for out in (NAMES[0], name):
        for dtype in ("float32", "float16"):
            assert embed(sounds, tmp_path / dtype / out, weights, *options, "--dtype", dtype) == 0
            found.append(load_embeddings(tmp_path / dtype / out))
    first = found[0]
    for number, one in enumerate(found):
        assert one.paths == first.paths and len(one.embeddings) == len(first.embeddings) == 4
        for rows, expected in zip(one.embeddings, first.embeddings, strict=True):
            assert rows.dtype == ("f2" if number % 2 else "f4")
            numpy.testing.assert_array_equal(rows, numpy.asarray(expected).astype(rows.dtype))
        times, none = ("timestamps_ms", "spans_s") if kind == "timestamps" else ("spans_s", "timestamps_ms")
        assert getattr(one, none) is None
        for rows, expected in zip(getattr(one, times), getattr(first, times), strict=True):
            numpy.testing.assert_array_equal(rows, expected)
    if kind == "scene":
        numpy.testing.assert_allclose(first.spans_s[:, 1], [0.03, 1, 4.3, 12.04])
    if kind == "windows":
        assert first.spans_s[2].tolist() == [[0, 1.5], [1, 2.5], [2, 3.5], [3, 4.3]]


def test_a_folder_has_more_entries_than_files_may_be_open(tmp_path):
    resource = pytest.importorskip("resource", reason="needs limits of POSIX")
    numpy.zeros((400, 3), "<f4").tofile(tmp_path / "rows")
    records = [FileRecord(f"{number}.wav", None, 1.0, [(number, 1)]) for number in range(400)]
    settings = {"kind": "scene", "embedding_size": 3}
    NpyFolder.write(tmp_path / "out", records, RowFile(tmp_path / "rows", 3), settings)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest_free := os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 200, hard))
    try:
        assert load_embeddings(tmp_path / "out").embeddings.shape == (400, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_lance_data_set_is_added_to_replaced_and_left_alone(sounds, weights, tmp_path, monkeypatch, capsys):
    lance = pytest.importorskip("lance", reason="needs pylance")
    first, out = tmp_path / "first", tmp_path / "out.lance"
    first.mkdir()
    shutil.copy(sounds / "1.flac", first)
    (first / "broken.wav").write_bytes(b"RIFF")
    assert embed(first, out, weights, "--kind", "timestamps") == 1
    embedded = spy(monkeypatch)
    assert embed(sounds, out, weights, "--kind", "timestamps", "--append") == 1
    assert [sound.path.name for sound in embedded] == ["0.flac", "1.flac", "2.flac", "3.flac"]
    assert embed(first, out, weights, "--kind", "timestamps", "--append") == 1
    assert [sound.path.name for sound in embedded[4:]] == ["broken.wav"]
    found = load_embeddings(out)
    assert len(found.paths) == 5 and list(found.failed) == [str(first / "broken.wav")]
    assert lance.dataset(out).count_rows() == sum(map(len, found.embeddings)) + 1
    lance.dataset(out).delete("channel = 9")  # a version of the user's
    assert embed(first, out, weights, "--overwrite") == 2 and "nothing else" in capsys.readouterr().err


def test_a_format_may_be_named(sounds, weights, tmp_path, capsys):
    assert embed(sounds, tmp_path / "out", weights, "--format", "parquet") == 0
    assert len(load_embeddings(tmp_path / "out.parquet").paths) == 4
    assert embed(sounds, tmp_path / "out.npz", weights, "--format", "parquet") == 2
    assert "names another format" in capsys.readouterr().err


ROWS = [
    {"path": "3.flac", "start_s": 1.5, "end_s": 4.25, "id": "a", "label": "dög, barking"},
    {"path": "3.flac", "start_s": 2, "end_s": None, "id": "b", "label": None},
    {"path": "3.flac", "start_s": None, "end_s": None, "id": "c", "label": "whole"},
    {"path": "1.flac", "start_s": None, "end_s": 0.5, "id": "d", "label": "start"},
    {"path": "1.flac", "start_s": 3, "end_s": 4, "id": "e", "label": "after its end"},
    {"path": "gone.flac", "start_s": 0, "end_s": 4, "id": "f", "label": "nowhere"},
]


def write_table(path, rows):
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_row_of_a_table_is_an_excerpt(sounds, checkpoint, weights, tmp_path, monkeypatch, suffix):
    pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(sounds)
    table, model = tmp_path / f"table{suffix}", Embedder(checkpoint)
    write_table(table, ROWS)
    for name in NAMES:
        for kind in ("scene", "timestamps", "windows"):
            options = ["--kind", kind, *(["--window-s", "0.5"] if kind == "windows" else []), "--overwrite"]
            assert embed(table, tmp_path / name, weights, *options) == 1
            found = load_embeddings(tmp_path / name)
            assert found.columns["id"] == list("abcd") and found.columns["label"] == [
                "dög, barking",
                "",
                "whole",
                "start",
            ]
            assert list(found.failed) == ["1.flac#t=3,4", "gone.flac#t=0,4"]
            assert "ends at 1.00 s" in found.failed["1.flac#t=3,4"]
            for number, (path, start, end) in enumerate(
                [("3.flac", 1.5, 4.25), ("3.flac", 2, None), ("3.flac", 0, None), ("1.flac", 0, 0.5)]
            ):
                audio, _ = soundfile.read(path, dtype="float32")
                audio = audio[int(16000 * start) : None if end is None else int(16000 * end)]
                if kind == "scene":
                    numpy.testing.assert_allclose(found.embeddings[number], model.embed(audio, 16000), atol=1e-5)
                    numpy.testing.assert_allclose(found.spans_s[number], [start, start + len(audio) / 16000])
                elif kind == "timestamps":
                    rows, centres = model.embed(audio, 16000, "timestamps")
                    numpy.testing.assert_allclose(found.embeddings[number], rows, atol=1e-5)
                    numpy.testing.assert_allclose(found.timestamps_ms[number], centres + 1000 * start, atol=1e-3)
                else:
                    assert found.spans_s[number][0].tolist() == [start, start + 0.5]
            embedded = spy(monkeypatch)
            assert embed(table, tmp_path / name, weights, *[o for o in options if o != "--overwrite"], "--append") == 1
            assert {sound.path.name for sound in embedded} == {"1.flac", "gone.flac"}  # what failed is tried again
            assert load_embeddings(tmp_path / name).columns == found.columns


@pytest.mark.parametrize("name", NAMES)
def test_columns_and_reasons_may_have_any_bytes(sounds, weights, tmp_path, name):
    if name == "out.parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / "link.wav").symlink_to(os.fsdecode(b"gone \xff.wav"))
    rows = f"{sounds}/1.flac,d\xf6g\n{tmp_path}/link.wav,\n"
    (tmp_path / "latin 1.csv").write_bytes(b"path,l\xe4bel\n" + rows.encode("latin-1"))
    assert embed(tmp_path / "latin 1.csv", tmp_path / name, weights) == 1
    found = load_embeddings(tmp_path / name)
    assert found.columns == {"l\\xe4bel": ["d\\xf6g"]}
    assert list(found.failed.values()) == ["a broken link to gone \\xff.wav"]


@pytest.mark.parametrize("name", NAMES)
def test_an_excerpt_that_failed_is_tried_again(sounds, weights, tmp_path, name):
    if name == "out.parquet":
        pytest.importorskip("pyarrow")
    sound = tmp_path / "late.flac"
    write_table(tmp_path / "t.csv", [{"path": sound, "start_s": "1.0000001"}, {"path": sounds / "2.flac"}])
    assert embed(tmp_path / "t.csv", tmp_path / name, weights) == 1
    assert list(load_embeddings(tmp_path / name).failed) == [f"{sound}#t=1,inf"]
    shutil.copy(sounds / "3.flac", sound)
    assert embed(tmp_path / "t.csv", tmp_path / name, weights, "--append") == 0
    found = load_embeddings(tmp_path / name)
    excerpts = dict(zip(found.paths, found.excerpts, strict=True))
    assert excerpts == {str(sounds / "2.flac"): None, str(sound): (1.0000001, float("inf"))} and not found.failed


def test_a_line_that_is_no_object_is_refused(tmp_path, weights, capsys):
    (tmp_path / "t.jsonl").write_text('{"path": "a.wav"}\n["b.wav"]\n', encoding="utf-8")
    assert embed(tmp_path / "t.jsonl", tmp_path / "out.npz", weights) == 2
    assert "t.jsonl, row 2: \"['b.wav']\" is no object" in capsys.readouterr().err


@pytest.mark.parametrize(
    "row, message",
    [
        ({"file": "a.wav"}, "no path"),
        ({"path": "a.wav", "start_s": "soon"}, "no seconds"),
        ({"path": "a.wav", "start_s": 3, "end_s": 2}, "no stretch of time"),
        ({"path": "a.wav", "start_s": -1}, "no stretch of time"),
        ({"path": "a.wav", "end_s": "nan"}, "no stretch of time"),
        ({"path": "a.wav", "channel": "1"}, "its own column channel"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, weights, capsys, row, message):
    write_table(tmp_path / "t.csv", [row])
    assert embed(tmp_path / "t.csv", tmp_path / "out.npz", weights) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out.npz").exists()


def spy(monkeypatch):
    embedded, embed_pieces = [], embed_command.embed_pieces
    monkeypatch.setattr(
        embed_command, "embed_pieces", lambda m, paths, *a: embedded.extend(paths) or embed_pieces(m, paths, *a)
    )
    return embedded


def test_members_of_an_archive_embed_as_the_files(sounds, weights, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(sounds, "deep")
        tar.add(__file__, "deep/readme.txt")
    assert embed(tmp_path / "shard.tar", tmp_path / "tar.npz", weights) == 0
    assert embed(sounds, tmp_path / "files.npz", weights) == 0
    inside, outside = load_embeddings(tmp_path / "tar.npz"), load_embeddings(tmp_path / "files.npz")
    assert sorted(inside.paths) == [str(tmp_path / "shard.tar" / "deep" / f"{number}.flac") for number in range(4)]
    for path, rows in zip(inside.paths, inside.embeddings, strict=True):
        number = int(Path(path).stem)
        numpy.testing.assert_allclose(rows, outside.embeddings[number], atol=1e-5)
    embedded = spy(monkeypatch)
    assert embed(tmp_path / "shard.tar", tmp_path / "tar.npz", weights, "--append") == 0 and not embedded
    (tmp_path / "bad.tar").write_bytes(b"nothing" * 999)
    assert embed(tmp_path / "bad.tar", tmp_path / "bad.npz", weights) == 2
