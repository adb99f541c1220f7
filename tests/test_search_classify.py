"""Finding and labelling sounds:

* search lists what an independent computation finds nearest, whole files or stretches with their times, no two of
  which overlap; a stretch is found where it was; another model than the index's is refused;
* a head labels new sounds; its file gives the probabilities of scikit-learn's fit; its score is that of files it did
  not see; labels of parts become stretches with their times, excerpts of a table keep theirs; what cannot be is
  said.
"""

import csv
import io
import tarfile
from pathlib import Path

import numpy
import pytest
import soundfile
import torch
from conftest import random_checkpoint

from hear_jepa.cli import main
from hear_jepa.errors import AudioError, OptionError
from hear_jepa.explore.classify import cross_validate, train
from hear_jepa.explore.excerpt import read_excerpt
from hear_jepa.explore.head import Head, load_head
from hear_jepa.explore.labels import LabelTable
from hear_jepa.explore.points import Point, clock, load_points
from hear_jepa.explore.search import search
from hear_jepa.explore.similarity import Standardiser
from hear_jepa.files.formats import load_embeddings
from hear_jepa.model.checkpoint import save_checkpoint

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights):
    """Six hums, six hisses and a file that is no sound; a recording of both kinds; all embedded, as both kinds."""
    folder = tmp_path_factory.mktemp("sounds")
    generator, rate = numpy.random.default_rng(0), 16000
    (folder / "clips").mkdir()
    (folder / "long").mkdir()

    def hum(hertz, seconds):
        return 0.3 * numpy.sin(2 * numpy.pi * hertz * numpy.arange(int(rate * seconds)) / rate)

    def hiss(seconds):
        return 0.2 * generator.normal(size=int(rate * seconds))

    for number in range(6):
        soundfile.write(folder / "clips" / f"hum{number}.wav", hum(150 + 10 * number, 0.5 + 0.1 * number), rate)
        soundfile.write(folder / "clips" / f"hiss{number}.wav", (number + 1) / 6 * hiss(0.5 + 0.1 * number), rate)
    for number in range(3):
        parts = [hum(170 + number, 1.0), hiss(1.5), hum(190 - number, 1.5)]
        soundfile.write(folder / "long" / f"{number}.wav", numpy.concatenate(parts), rate)
    (folder / "broken.wav").write_bytes(b"nothing")
    model = ["--model", weights]
    assert main(["embed", str(folder / "clips"), "--out", str(folder / "clips.npz"), *model]) == 0
    more = ["--kind", "timestamps", "--hop-ms", "80"]
    assert main(["embed", str(folder / "long"), "--out", str(folder / "long.npz"), *more, *model]) == 0
    return folder


@pytest.fixture
def model(weights):
    return ["--model", weights]


def table(text):
    return list(csv.DictReader(io.StringIO(text)))


def write_labels(path, rows, columns="path,label"):
    path.write_text("\n".join([columns, *rows]), encoding="utf-8")
    return str(path)


def test_search_finds_the_nearest_files_of_the_same_model(folder, model, tmp_path, capsys):
    query = folder / "clips" / "hum2.wav"
    assert main(["search", str(folder / "clips.npz"), str(query), "-k", "12", *model]) == 0
    hits = table(capsys.readouterr().out)
    found = load_embeddings(folder / "clips.npz")
    standard = numpy.asarray(found.embeddings, "f8")
    standard = (standard - standard.mean(0)) / standard.std(0)
    wanted = standard[found.paths.index(str(query))]
    cosines = standard @ wanted / numpy.linalg.norm(standard, axis=1) / numpy.linalg.norm(wanted)
    assert [hit["path"] for hit in hits] == [found.paths[i] for i in numpy.argsort(-cosines)]
    assert [float(hit["cosine"]) for hit in hits] == pytest.approx(sorted(cosines, reverse=True), abs=6e-4)
    assert all("hum" in hit["path"] for hit in hits[:6])
    assert (hits[0]["start_s"], hits[0]["end_s"]) == ("0.000", "0.700")
    save_checkpoint(tmp_path / "other.safetensors", random_checkpoint(seed=1))
    other = ["--model", str(tmp_path / "other.safetensors")]
    assert main(["search", str(folder / "clips.npz"), str(query), *other]) == 2
    assert "another model" in capsys.readouterr().err
    assert main(["embed", str(query), "--out", str(tmp_path / "one.npz"), *model]) == 0
    assert main(["search", str(tmp_path / "one.npz"), str(query), *model]) == 2
    assert "one embedding" in capsys.readouterr().err


def test_search_finds_a_stretch_where_it_was(folder, model):
    query = folder / "long" / "1.wav"
    hits = search(folder / "long.npz", query, 40, model[1], start_s=1.2, end_s=1.8)
    best = hits[0].point
    assert hits[0].cosine > 0.9999 and best.path == str(query)
    assert abs(best.start_s - 1.2) <= 0.08 and abs(best.end_s - 1.8) <= 0.08
    assert {hit.point.path for hit in hits[:3]} == {str(folder / "long" / f"{n}.wav") for n in range(3)}
    assert all(hit.point.start_s > 0.9 and hit.point.end_s < 2.6 for hit in hits[:3])  # the hisses
    assert len(hits) >= 15  # of 0.6 s in 3 × 4 s
    stretches = sorted((hit.point.path, hit.point.start_s, hit.point.end_s) for hit in hits)
    for (path, _, end_s), (next_path, start_s, _) in zip(stretches[:-1], stretches[1:], strict=True):
        assert path != next_path or end_s <= start_s + 1e-6
    assert search(folder / "long.npz", folder / "clips" / "hum1.wav", 1, model[1])[0].cosine > 0.5
    short = search(folder / "long.npz", query, 1, model[1], start_s=1.21, end_s=1.22)[0]
    assert short.cosine > 0.9999 and abs(short.point.start_s - 1.2) <= 0.08
    with pytest.raises(AudioError, match=r"ends at 4.00 s"):
        search(folder / "long.npz", query, 1, model[1], start_s=4.5)


def test_a_head_labels_new_sounds(folder, model, tmp_path, capsys):
    rows = [f"{kind}{number}.wav,{kind}" for number in range(4) for kind in ("hum", "hiss")]
    labels = write_labels(tmp_path / "labels.csv", [*rows, "gone.wav,hum"])
    head, picture = str(tmp_path / "head.safetensors"), tmp_path / "confusion.png"
    pytest.importorskip("matplotlib")
    arguments = ["train", labels, str(folder / "clips.npz"), "--out", head, "--picture", str(picture)]
    assert main(["classify", *arguments]) == 0
    assert "100.0% of 8 examples of 8 files" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    sounds = [str(folder / "clips" / "*[45].wav"), str(folder / "broken.wav")]
    out = tmp_path / "scores.csv"
    assert main(["classify", "apply", head, *sounds, "--all-labels", "--out", str(out), *model]) == 1
    assert "broken.wav" in capsys.readouterr().err
    scored = table(out.read_text(encoding="utf-8"))
    expected = {f"{kind}{number}.wav": kind for number in (4, 5) for kind in ("hum", "hiss")}
    assert {row["path"].rsplit("/", 1)[1]: row["label"] for row in scored} == expected
    for row in scored:
        assert float(row["score"]) == float(row[row["label"]]) > 0.5
        assert float(row["hum"]) + float(row["hiss"]) == pytest.approx(1, abs=0.0011)


@pytest.mark.parametrize("kinds", [2, 4])
def test_a_saved_head_is_the_fit(folder, tmp_path, kinds):
    from sklearn.linear_model import LogisticRegression

    names = [f"kind {number % kinds}" for number in range(12)]
    found = load_embeddings(folder / "clips.npz")
    rows = [f"{path.rsplit('/', 1)[1]},{name}" for path, name in zip(found.paths, names, strict=True)]
    train(write_labels(tmp_path / "labels.csv", rows), folder / "clips.npz").head.save(tmp_path / "head.safetensors")
    standard = Standardiser.of(found.embeddings)(found.embeddings)
    expected = LogisticRegression(C=0.01, max_iter=1000).fit(standard, names).predict_proba(standard)
    head = load_head(tmp_path / "head.safetensors")
    assert head.labels == tuple(sorted(set(names)))
    numpy.testing.assert_allclose(head.probabilities(found.embeddings), expected, atol=2e-3)


def test_labels_of_parts_become_stretches(folder, model, tmp_path, capsys):
    times = [("hum", 0, 1), ("hiss", 1, 2.5), ("hum", 2.5, "")]
    rows = [f"{number}.wav,{name},{start},{end}" for number in range(2) for name, start, end in times]
    labels = write_labels(tmp_path / "labels.csv", [*rows, "1.wav,,3,4"], "path,label,start_s,end_s")
    head = str(tmp_path / "head.safetensors")
    assert main(["classify", "train", labels, str(folder / "long.npz"), "--out", head]) == 0
    assert "6 examples of 2 files" in capsys.readouterr().out
    assert main(["classify", "apply", head, str(folder / "long" / "2.wav"), *model]) == 0
    stretches = table(capsys.readouterr().out)
    assert [row["label"] for row in stretches] == ["hum", "hiss", "hum"]
    assert [float(row["start_s"]) for row in stretches] == pytest.approx([0, 1, 2.5], abs=0.17)
    assert stretches[0]["end_s"] == stretches[1]["start_s"] and float(stretches[2]["end_s"]) == pytest.approx(
        4, abs=0.1
    )


@pytest.mark.parametrize("kind", ["scene", "timestamps"])
def test_a_table_of_excerpts_labels_its_excerpts(folder, model, tmp_path, capsys, kind):
    times = [("low", 0, 1), ("hiss", 1, 2.5), ("high", 2.5, 4)]
    rows = [f"{folder}/long/{n}.wav,{name},{start},{end}" for n in range(3) for name, start, end in times]
    excerpts = write_labels(tmp_path / "table.csv", rows, "path,label,start_s,end_s")
    index, head = str(tmp_path / "e.npz"), str(tmp_path / "head.safetensors")
    assert main(["embed", excerpts, "--out", index, "--kind", kind, *model]) == 0
    points = load_points(index).points
    assert not any(point.whole for point in points)
    spans = numpy.array([(point.start_s, point.end_s) for point in points])
    numpy.testing.assert_allclose(spans, 3 * [(start, end) for _, start, end in times], atol=0.05)
    assert main(["classify", "train", excerpts, index, "--out", head]) == 0
    assert load_head(head).labels == ("high", "hiss", "low") and load_head(head).score["examples"] == 9
    capsys.readouterr()
    assert main(["classify", "apply", head, excerpts, *model]) == 0
    scored = [(float(row["start_s"]), float(row["end_s"])) for row in table(capsys.readouterr().out)]
    if kind == "scene":
        assert sorted(scored) == sorted(3 * [(start, end) for _, start, end in times])


def test_windows_are_searched_and_labelled(folder, model, tmp_path, capsys):
    index, head = str(folder / "windows.parquet"), str(tmp_path / "head.safetensors")
    pytest.importorskip("pyarrow")
    windows = ["--kind", "windows", "--window-s", "1", "--hop-s", "0.5", "--dtype", "float16"]
    assert main(["embed", str(folder / "long"), "--out", index, *windows, *model]) == 0
    hits = search(index, folder / "long" / "1.wav", 9, model[1], start_s=1.5, end_s=2.5)
    assert all(hit.point.start_s in (1.0, 1.5) for hit in hits[:3])  # the hisses
    assert {hit.point.path for hit in hits[:3]} == {str(folder / "long" / f"{n}.wav") for n in range(3)}
    spans = sorted((hit.point.path, hit.point.start_s) for hit in hits)
    assert all(a[0] != b[0] or b[1] - a[1] >= 1 for a, b in zip(spans[:-1], spans[1:], strict=True))
    rows = [f"{n}.wav,{name},{start},{end}" for n in range(2) for name, start, end in [("hum", 0, 1), ("hiss", 1, 2.5)]]
    labels = write_labels(tmp_path / "labels.csv", rows, "path,label,start_s,end_s")
    assert main(["classify", "train", labels, index, "--out", head]) == 0
    capsys.readouterr()
    assert main(["classify", "apply", head, str(folder / "long" / "2.wav"), *model]) == 0
    scored = {float(row["start_s"]): row["label"] for row in table(capsys.readouterr().out)}
    assert scored[0.0] == "hum" and scored[1.0] == scored[1.5] == "hiss" and scored[3.0] == "hum"


def test_members_of_archives_are_read(folder, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(folder / "long" / "1.wav", "in/1.wav")
    inside, outside = read_excerpt(tmp_path / "a.tar" / "in" / "1.wav", 1.0, 2.0), folder / "long" / "1.wav"
    assert torch.equal(inside, read_excerpt(outside, 1.0, 2.0))
    for gone in (tmp_path / "a.tar" / "in" / "2.wav", tmp_path / "2.wav"):
        with pytest.raises(AudioError, match="2.wav"):
            read_excerpt(gone)


def test_the_score_is_of_unseen_files():
    """Embeddings that say the file, and nothing of the label: pieces of one file on both sides would give 100 %."""
    generator = numpy.random.default_rng(0)
    files = numpy.arange(200) // 5
    features = 10 * generator.normal(size=(40, 30))[files] + generator.normal(size=(200, 30))
    targets = generator.permutation(numpy.arange(40) % 2)[files]
    confusion = cross_validate(features.astype("f4"), targets, [str(file) for file in files], ["a", "b"])
    assert confusion.sum() == 200 and (confusion.sum(1) == numpy.bincount(targets)).all()
    assert confusion.diagonal().sum() < 140


def test_a_fold_may_leave_one_label_to_learn_from():
    """Two of three files hold one label each: without the third and one of them, a head sees one label."""
    files, targets = [*"xxx", *"yyy", *"zzzz"], numpy.array([0, 0, 0, 1, 1, 1, 0, 0, 1, 1])
    features = numpy.random.default_rng(0).normal(size=(10, 4)).astype("f4")
    assert cross_validate(features, targets, files, ["a", "b"]).sum(1).tolist() == [5, 5]


def test_labels_that_will_not_do(folder, tmp_path):
    for rows, message in [
        (["gone.wav,hum"], "no path in"),
        (["hum1.wav,hum", "hum2.wav,hum"], "all labelled sounds are 'hum'"),
        (["hum1.wav,hum", "hum2.wav,hum", "hiss1.wav,hiss"], "one file of 'hiss'"),
        (["hum1.wav,hum", "hum1.wav,hiss"], "both 'hum' and 'hiss'"),
    ]:
        with pytest.raises(OptionError, match=message):
            train(write_labels(tmp_path / "labels.csv", rows), folder / "clips.npz")


def test_labels_are_found_by_path_and_time(tmp_path):
    path = write_labels(tmp_path / "a.csv", ["a.wav,any", "dogs/a.wav,dog", "b.wav,bird"])
    labels = LabelTable(path)
    files = ["x/dogs/a.wav", "x/cats/a.wav", "b.wav", "c.wav"]
    assert labels.of_points([Point(file, whole=True) for file in files]) == ["dog", "any", "bird", ""]
    with pytest.raises(OptionError, match="c.wav"):
        labels.of_points([Point("c.wav", whole=True)])
    timed = LabelTable(write_labels(tmp_path / "b.csv", ["a.wav,x,0,2", "a.wav,y,2,4"], "path,label,start_s,end_s"))
    assert timed.of_points([Point("a.wav", 0, 1.5, 2.4), Point("a.wav", 0, 1.5, 2.6)]) == ["x", "y"]
    assert timed.of_point(Point("a.wav", 0, 0, 4, whole=True)) == ""
    for text in ("name;kind\na.wav;x\n", "path,label,start_s,end_s\na.wav,x,3,2\n", "path,label\na.wav\n"):
        (tmp_path / "c.csv").write_text(text, encoding="utf-8")
        with pytest.raises(OptionError, match="path and label"):
            LabelTable(tmp_path / "c.csv")


def test_a_file_that_is_no_head_is_refused(weights, tmp_path):
    (tmp_path / "text").write_text("head")
    for path in (tmp_path / "gone", tmp_path / "text", Path(weights)):
        with pytest.raises(OptionError, match="classify train"):
            load_head(path)
    Head(("a", "b"), numpy.zeros((3, 4)), numpy.zeros(3), {"embedding_size": 4}, {}).save(tmp_path / "odd")
    with pytest.raises(OptionError, match="damaged"):
        load_head(tmp_path / "odd")


def test_clocks():
    assert [clock(seconds) for seconds in (0, 59.96, 83.4, 3600)] == ["0:00.0", "1:00.0", "1:23.4", "1:00:00.0"]
