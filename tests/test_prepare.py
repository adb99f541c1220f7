"""From files to shards.

* Files of every format become mono 16-bit clips in their domain's shards, which hold what the files sound; long files
  are split and nothing is lost; the manifest's counts, hours, and checksums are those of the shards.
* Silence, clipping, NaN, too short, unreadable and duplicate material, and what sounds in an excluded folder, also
  re-encoded, resampled or cut, is left out, each listed with its reason.
* Killed at any write and run again, which repeats no finished file, and with any number of workers, the shards and the
  manifest are the same bytes; a finished folder is left alone.
* The mapping gives domain, source and licence by path; folders that cannot be prepared are refused with the remedy.
"""

import hashlib
import io
import itertools
import json
import os
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import soundfile

from hear_jepa.errors import CorpusError
from hear_jepa.train.corpus import packing, staging
from hear_jepa.train.corpus import prepare as prepare_module
from hear_jepa.train.corpus.__main__ import main
from hear_jepa.train.corpus.domains import Mapping
from hear_jepa.train.corpus.prepare import prepare

RATE = 16000


def sound(seed: int, seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """Harmonic notes over noise, different for every seed: float32, 1-D."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    notes = rng.uniform(150, 900, size=int(seconds * 5) + 1)[(time * 5).astype(int)]
    phase = 2 * np.pi * np.cumsum(notes) / rate
    tones = sum(np.sin(k * phase) / k for k in (1, 2, 3, 5))
    return (0.15 * tones + 0.02 * rng.normal(size=len(time))).astype(np.float32)


def write_tree(folder, files: dict[str, np.ndarray], rate: int = RATE) -> None:
    for name, samples in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        # as integers, so that a FLAC and a WAV of one sound hold the same samples
        soundfile.write(folder / name, np.rint(np.clip(samples, -1, 0.9999) * 32768).astype(np.int16), rate)


def read_shards(folder) -> dict[str, tuple[np.ndarray, dict]]:
    """{path of the source and start: (samples, description)} of all shards."""
    clips = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar}
        for name in content:
            if name.endswith(".flac"):
                description = json.loads(content[name.replace(".flac", ".json")])
                samples, rate = soundfile.read(io.BytesIO(content[name]), dtype="int16")
                assert rate == RATE and samples.ndim == 1 and shard.name.startswith(description["domain"])
                clips[f"{description['path']}@{description['start_s']:g}"] = samples, description
    return clips


def digests(folder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def quietly(sources, out, **options):
    return prepare(sources, out, **{"workers": 1, "progress": False, **options})


def test_every_format_ends_in_its_domain(tmp_path):
    source = tmp_path / "source"
    music = {f"music/{name}": sound(i, rate=44100) for i, name in enumerate(("a.wav", "b.flac", "c.mp3"))}
    write_tree(source, music, 44100)
    write_tree(source, {"speech/d.ogg": np.stack([sound(4), -0.5 * sound(4)], axis=1)})
    soundfile.write(source / "speech/e.opus", sound(5), RATE, format="OGG", subtype="OPUS")
    expected = {"music": 3, "speech": 2}
    if shutil.which("ffmpeg"):
        for name in ("f.m4a", "g.g722"):
            command = ["ffmpeg", "-v", "error", "-i", source / "music/a.wav", "-ar", "16000", "-ac", "1"]
            subprocess.run([*command, source / "speech" / name], check=True)
        expected["speech"] = 4
    manifest = quietly([source], tmp_path / "out")
    assert {name: domain["clips"] for name, domain in manifest.domains.items()} == expected and not manifest.skipped
    clips = read_shards(tmp_path / "out")
    assert len(clips) == sum(expected.values())
    assert all(abs(len(samples) - 2 * RATE) < 2000 for samples, _ in clips.values())
    mono = clips["speech/d.ogg@0"][0] / 32768
    assert np.corrcoef(mono[1000:31000], sound(4)[1000:31000])[0, 1] > 0.9
    assert abs(mono.std() / sound(4).std() - 0.25) < 0.05  # the mean of both channels


def test_what_is_left_out_is_listed_with_its_reason(tmp_path):
    good, holed = sound(0), sound(1)
    holed[100] = np.nan
    clipped = np.where(sound(2) > 0, 1.0, -1.0)
    files = {"a/good.wav": good, "b/copy.flac": good, "a/short.wav": good[:3999], "a/clipped.wav": clipped}
    write_tree(tmp_path, files | {"a/silent.wav": good * 1e-4, "a/offset.wav": 0 * good + 0.3})
    soundfile.write(tmp_path / "a/holed.wav", holed, RATE, subtype="FLOAT")
    (tmp_path / "a/text.wav").write_text("no sound at all\n" * 50)
    manifest = quietly([tmp_path], tmp_path / "out")
    reasons = {item["path"].split(" from ")[0]: item["reason"] for item in manifest.skipped}
    for name, reason in (
        ("a/short.wav", "shorter"),
        ("a/silent.wav", "silent"),
        ("a/offset.wav", "silent"),
        ("a/clipped.wav", "clipped"),
        ("a/holed.wav", "not finite"),
        ("a/text.wav", "unreadable"),
    ):
        assert reasons.pop(name).startswith(reason)
    ((duplicate, reason),) = reasons.items()
    assert {duplicate, reason.removeprefix("duplicate of ")} == {"a/good.wav", "b/copy.flac"}
    ((samples, _),) = read_shards(tmp_path / "out").values()
    np.testing.assert_array_equal(samples, soundfile.read(tmp_path / "a/good.wav", dtype="int16")[0])


def test_long_files_are_split_and_join_again(tmp_path):
    write_tree(tmp_path / "source", {"long.wav": sound(0, 65.125)})
    quietly([tmp_path / "source"], tmp_path / "out")
    clips = read_shards(tmp_path / "out")
    parts = [clips[f"long.wav@{start}"][0] for start in (0, 30, 60)]
    assert [len(part) for part in parts] == [480000, 480000, 82000]
    whole, _ = soundfile.read(tmp_path / "source/long.wav", dtype="int16")
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_the_manifest_describes_the_shards(tmp_path):
    domains = ["rain", "talk", "rain", "rain", "talk"]
    files = {f"{domain}/{i}.wav": sound(i, 1 + i / 3) for i, domain in enumerate(domains)}
    write_tree(tmp_path / "source", files)
    manifest = quietly([tmp_path / "source"], tmp_path / "out", shard_mb=0.05)
    out, clips = tmp_path / "out", read_shards(tmp_path / "out")
    written = json.loads((out / "manifest.json").read_text())
    assert written["format"] == "hear_jepa-shards" and written["shards"] == [vars(shard) for shard in manifest.shards]
    assert {shard.file: shard.sha256 for shard in manifest.shards} == {
        name: digest for name, digest in digests(out).items() if name.endswith(".tar")
    }
    assert len(manifest.shards) > 2 and sum(shard.clips for shard in manifest.shards) == 5
    for domain in ("rain", "talk"):
        mine = [samples for samples, description in clips.values() if description["domain"] == domain]
        hours = sum(map(len, mine)) / RATE / 3600
        entry = manifest.domains[domain]
        assert entry["clips"] == len(mine) and entry["hours"] == pytest.approx(hours)
        assert manifest.sources[domain]["domains"][domain]["hours"] == pytest.approx(hours)
    assert sum(manifest.hours.values()) == pytest.approx(sum(shard.hours for shard in manifest.shards))


class Kill(BaseException):
    """Not caught by anything, as SIGKILL is not."""


def crash_at(monkeypatch, moment: int) -> None:
    """Die at the `moment`-th file that is added to a tar, or moved to its place, before or after it."""
    writes = itertools.count(1)

    def dying(write):
        def dies(*arguments):
            number = next(writes)
            if number == 2 * moment:
                raise Kill
            write(*arguments)
            if number == 2 * moment + 1:
                raise Kill

        return dies

    for module in (staging, packing):
        monkeypatch.setattr(module, "add_member", dying(module.add_member))
    monkeypatch.setattr(staging.os, "replace", dying(os.replace))


def test_killed_at_any_write_the_rerun_makes_the_same_bytes(tmp_path, monkeypatch):
    files = {f"{'xyz'[i % 3]}/{i}.wav": sound(i, 0.5 + i / 8) for i in range(7)} | {"x/copy.wav": sound(3, 0.875)}
    write_tree(tmp_path / "source", files)
    quietly([tmp_path / "source"], tmp_path / "once", shard_mb=0.02)
    expected = digests(tmp_path / "once")
    assert len(expected) > 5
    killed = 0
    for moment in itertools.count(0):
        with monkeypatch.context() as patch:
            crash_at(patch, moment)
            try:
                quietly([tmp_path / "source"], tmp_path / "again", shard_mb=0.02)
            except Kill:
                killed += 1
        quietly([tmp_path / "source"], tmp_path / "again", shard_mb=0.02)
        assert digests(tmp_path / "again") == expected, moment
        shutil.rmtree(tmp_path / "again")
        if killed <= moment:
            break
    assert killed > 15


def test_a_kill_loses_no_finished_file(tmp_path, monkeypatch):
    """What was staged is not decoded again, unless a power cut has shortened it or the settings are others."""
    write_tree(tmp_path / "source", {f"x/{i}.wav": sound(i, 0.5) for i in range(4)})
    with monkeypatch.context() as patch, pytest.raises(Kill):
        patch.setattr(prepare_module, "pack", lambda *_: (_ for _ in ()).throw(Kill()))
        quietly([tmp_path / "source"], tmp_path / "out")
    cut = sorted((tmp_path / "out/staged").glob("*.tar"))[0]
    cut.write_bytes(cut.read_bytes()[:3000])
    decoded, stage = [], staging.stage
    monkeypatch.setattr(prepare_module, "stage", lambda file, *rest: decoded.append(file.staged) or stage(file, *rest))
    quietly([tmp_path / "source"], tmp_path / "out")
    assert decoded == [cut] and not (tmp_path / "out/staged").exists()


def test_shards_are_at_the_rate_asked_for(tmp_path):
    rate = 32000
    write_tree(tmp_path / "source", {"x/0.wav": sound(0, 1.0, 32000)}, 32000)
    manifest = quietly([tmp_path / "source"], tmp_path / "out", rate=rate)
    assert manifest.sample_rate == rate and manifest.hours["x"] == pytest.approx(1 / 3600)
    with tarfile.open(tmp_path / "out/x-000000.tar") as tar:
        flac = next(tar.extractfile(member).read() for member in tar if member.name.endswith(".flac"))
    samples, found = soundfile.read(io.BytesIO(flac), dtype="int16")
    assert found == rate and len(samples) == rate


def test_files_of_one_name_and_size_below_several_sources_are_all_taken(tmp_path):
    for day in range(2):  # as recorders write them
        write_tree(tmp_path / f"day{day}", {f"rec/{i}.wav": sound(10 * day + i, 0.5) for i in range(3)})
    manifest = quietly([tmp_path / "day0", tmp_path / "day1"], tmp_path / "out")
    assert manifest.domains["rec"]["clips"] == 6 and not manifest.skipped


def test_workers_and_a_kill_before_the_input_changed_do_not_change_the_shards(tmp_path, monkeypatch):
    write_tree(tmp_path / "source", {f"x/{i}.wav": sound(i, 0.5) for i in range(5)})
    with monkeypatch.context() as patch, pytest.raises(Kill):
        crash_at(patch, 6)
        quietly([tmp_path / "source"], tmp_path / "killed")
    write_tree(tmp_path / "source", {"x/5.wav": sound(5, 0.5)})
    for name, workers in (("one", 1), ("two", 2), ("killed", 1)):
        quietly([tmp_path / "source"], tmp_path / name, workers=workers)
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == digests(tmp_path / "killed")


def test_a_finished_folder_is_left_alone_and_foreign_shards_are_refused(tmp_path):
    write_tree(tmp_path / "source", {"x/0.wav": sound(0), "x/1.wav": sound(1)})
    first = quietly([tmp_path / "source"], tmp_path / "out")
    stamp = (tmp_path / "out/x-000000.tar").stat().st_mtime_ns
    assert quietly([tmp_path / "source"], tmp_path / "out") == first
    assert (tmp_path / "out/x-000000.tar").stat().st_mtime_ns == stamp
    write_tree(tmp_path / "source", {"x/2.wav": sound(2)})
    with pytest.raises(CorpusError, match="already holds shards.*--out"):
        quietly([tmp_path / "source"], tmp_path / "out")
    (tmp_path / "out/manifest.json").unlink()
    with pytest.raises(CorpusError, match="x-000000.tar is in the way"):
        quietly([tmp_path / "source"], tmp_path / "out")


def test_what_was_left_out_for_want_of_ffmpeg_is_not_taken_for_complete(tmp_path, monkeypatch):
    write_tree(tmp_path / "source", {"x/0.wav": sound(0)})
    (tmp_path / "source/x/prompt.g722").write_bytes(bytes(8000))
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda tool: None if tool == "ffmpeg" else which(tool))
    first = quietly([tmp_path / "source"], tmp_path / "out")
    assert ["needs ffmpeg" in item["reason"] for item in first.skipped] == [True]
    assert quietly([tmp_path / "source"], tmp_path / "out") == first
    monkeypatch.setattr(shutil, "which", lambda tool: f"/usr/bin/{tool}")
    with pytest.raises(CorpusError, match="made without ffmpeg"):
        quietly([tmp_path / "source"], tmp_path / "out")


def test_excluded_sounds_are_recognised(tmp_path):
    kept = {f"x/kept{i}.wav": sound(100 + i, 3.0) for i in range(8)}
    write_tree(tmp_path / "source", kept | {"x/same.wav": sound(0, 4.0), "x/cut.wav": sound(1, 6.0)[RATE + 77 :]})
    write_tree(tmp_path / "source", {"x/around.wav": np.concatenate([sound(50), sound(2, 4.0), sound(51)])})
    write_tree(tmp_path / "source", {"x/lossy.ogg": 0.5 * sound(3, 4.0, 44100)}, 44100)
    write_tree(tmp_path / "tasks", {"0.flac": sound(0, 4.0), "1.wav": sound(1, 6.0), "2.wav": sound(2, 4.0)})
    write_tree(tmp_path / "tasks", {"deep/3.wav": sound(3, 4.0, 44100)}, 44100)
    manifest = quietly([tmp_path / "source"], tmp_path / "out", exclude=[tmp_path / "tasks"])
    excluded = {item["path"].split(" from ")[0]: item["reason"] for item in manifest.skipped}
    assert excluded.keys() == {"x/same.wav", "x/cut.wav", "x/around.wav", "x/lossy.ogg"}
    assert excluded["x/lossy.ogg"].startswith("excluded") and excluded["x/lossy.ogg"].endswith("3.wav")
    assert {key.split("@")[0] for key in read_shards(tmp_path / "out")} == kept.keys()


def test_the_mapping_decides_domain_source_and_licence(tmp_path):
    write_tree(tmp_path / "source", {f"{name}.wav": sound(i) for i, name in enumerate(("a/b/1", "a/2", "a/3", "c/4"))})
    write_tree(tmp_path / "source", {"d/5.wav": sound(4), "d/6.wav": sound(5), "d/7.wav": sound(6)})
    rows = ["a/2.wav\train\tfield\tCC0", "a/b/*\tskip\t\t", "a/*\tstreet noise\tcity\tCC-BY-4.0"]
    rows += ["d/5.wav\train\tone\tGPL | MIT", "d/6.wav\train\tone\tCC0", "d/7.wav\train\tone\tGPL | MIT"]
    mapping = tmp_path / "domains.tsv"
    mapping.write_text("\n".join(["pattern\tdomain\tsource\tlicence", *rows]) + "\n")
    manifest = quietly([tmp_path / "source"], tmp_path / "out", domains=mapping)
    clips = read_shards(tmp_path / "out")
    origins = {key: [clip[1][name] for name in ("domain", "source", "licence")] for key, clip in clips.items()}
    assert {key: origin for key, origin in origins.items() if key.startswith("a")} == {
        "a/2.wav@0": ["rain", "field", "CC0"],
        "a/3.wav@0": ["street-noise", "city", "CC-BY-4.0"],
    }
    assert {item["path"] for item in manifest.skipped} == {"a/b/1.wav", "c/4.wav"}
    assert manifest.sources["city"]["licence"] == "CC-BY-4.0"
    assert manifest.sources["one"]["licence"] in ("GPL | MIT | CC0", "CC0 | GPL | MIT")  # each once


def test_unusable_folders_and_mappings_are_refused(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CorpusError, match="empty: no audio"):
        quietly([empty], tmp_path / "out")
    (empty / "text.txt").touch()
    assert main(["files", str(empty), "--out", str(tmp_path / "out")]) == 2
    assert "no audio" in capsys.readouterr().err
    for option, value in (("--rate", "-16000"), ("--workers", "-1")):
        assert main(["files", str(empty), "--out", str(tmp_path / "out"), option, value]) == 2
        assert f"{option} is {value}" in capsys.readouterr().err
    with pytest.raises(CorpusError, match="nowhere: no such folder"):
        quietly([tmp_path / "nowhere"], tmp_path / "out")
    write_tree(tmp_path / "source", {"x/0.wav": np.zeros(RATE), "x/1.wav": np.zeros(2 * RATE)})
    with pytest.raises(CorpusError, match="no usable audio: all 2 files.*silent"):
        quietly([tmp_path / "source"], tmp_path / "out")
    (tmp_path / "bad.tsv").write_text("x/*,music\n")
    with pytest.raises(CorpusError, match="bad.tsv.*pattern, domain"):
        Mapping(tmp_path / "bad.tsv")
    (tmp_path / "none.tsv").write_text("pattern\tdomain\ny/*\tmusic\n")
    with pytest.raises(CorpusError, match="none.tsv.*leaves out all 2 files"):
        quietly([tmp_path / "source"], tmp_path / "out", domains=tmp_path / "none.tsv")
