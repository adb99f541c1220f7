"""Embedding on a Ray cluster.

* A cluster of two workers, one of them killed in the middle, gives what one process gives, to the bit: nothing is lost,
  nothing is there twice.
* The actor gives a pipeline of Ray Data the rows that `hear-jepa embed` writes, of files and of waveforms; none of an
  empty batch. What it cannot embed it refuses.
"""

import os
import signal
import threading
import time
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

from hear_jepa import load_model
from hear_jepa.cli import main
from hear_jepa.errors import OptionError
from hear_jepa.files import ray as engine
from hear_jepa.files.formats import load_embeddings
from hear_jepa.files.shards import Shard

ray = pytest.importorskip("ray", reason="needs Ray")
N_SOUNDS = 150  # two shares


@pytest.fixture(scope="module")
def sounds(tmp_path_factory, minute):
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(N_SOUNDS):
        soundfile.write(folder / f"{number:03d}.wav", minute[5000 * number :][: 20000 + 40 * number].numpy(), 16000)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


@pytest.fixture(scope="module")
def cluster():
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    path = os.environ.get("PYTHONPATH", "")
    environment = {"PYTHONPATH": f"{Path(engine.__file__).parents[2]}:{path}", "OMP_NUM_THREADS": "1"}
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=80 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": environment},
    )
    yield
    ray.shutdown()


def kill_a_writer(out: Path, killed: list[int]) -> None:
    """Kill the first process that has embedded some files of a share, and not all of them."""
    end = time.monotonic() + 120
    while not killed and time.monotonic() < end:
        for journal in out.glob("*.parts/journal.jsonl"):
            for link in Path("/proc").glob("[0-9]*/fd/*"):
                if link.parts[2] != str(os.getpid()) and points_to(link, journal) and journal.stat().st_size:
                    os.kill(int(link.parts[2]), signal.SIGKILL)
                    return killed.append(journal.read_bytes().count(b"\n"))
        time.sleep(0.01)


def points_to(link: Path, file: Path) -> bool:
    try:
        return os.readlink(link) == str(file)
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the worker to kill in /proc")
def test_a_cluster_with_a_killed_worker_is_one_process(tmp_path, sounds, weights, cluster, capsys):
    command = ["embed", str(sounds), "--model", weights, "--kind", "timestamps", "--hop-ms", "20", "--out"]
    out, killed = tmp_path / "out", []
    killer = threading.Thread(target=kill_a_writer, args=(out, killed), daemon=True)
    killer.start()
    assert main([*command, str(out), "--engine", "ray"]) == 1
    assert killed and 0 < killed[0] < N_SOUNDS // 2, "no worker was killed in the middle"
    assert f"{N_SOUNDS} of {N_SOUNDS + 1} files" in capsys.readouterr().out
    assert main(["embed", "--status", str(out)]) == 0 and "2 of 2" in capsys.readouterr().out

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main([*command, str(tmp_path / "one.npz")]) == 1
    torch.set_num_threads(threads)
    found, one = load_embeddings(out), load_embeddings(tmp_path / "one.npz")
    order = [found.paths.index(path) for path in one.paths]
    assert sorted(order) == list(range(len(found.paths))) == list(range(N_SOUNDS)) and found.failed == one.failed
    for number, place in enumerate(order):
        numpy.testing.assert_array_equal(found.embeddings[place], one.embeddings[number])

    assert main([*command, str(out), "--engine", "ray"]) == 2 and "finished" in capsys.readouterr().err
    assert main([*command, str(out), "--engine", "ray", "--shard", "0/2"]) == 2


def test_a_share_that_kills_every_worker_stops_no_other(cluster, monkeypatch):
    def crash(shard, sounds):
        if shard.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return shard.index

    monkeypatch.setattr(engine, "RETRIES", 1)
    done = []
    with pytest.raises(OptionError, match="shares 1 were killed 2 times"):
        for shard, result in engine.run_tasks(crash, {Shard(number, 3): [] for number in range(3)}):
            done.append((shard.index, result))
    assert sorted(done) == [(0, 0), (2, 2)]


def test_an_actor_adds_the_rows_to_a_pipeline(tmp_path, sounds, weights, cluster):
    data = pytest.importorskip("ray.data")
    paths = [str(sounds / name) for name in ("000.wav", "broken.wav", "149.wav")]
    options = {"model": weights, "kind": "windows", "files": {"window_s": 0.5}}
    rows = data.from_items([{"path": path, "label": Path(path).stem} for path in paths]).map_batches(
        engine.JepaActor, fn_constructor_kwargs=options, batch_size=2, concurrency=1
    )
    rows = sorted(rows.take_all(), key=lambda row: (row["label"], row["start_s"]))
    assert (
        main(
            [
                "embed",
                *paths,
                "--model",
                weights,
                "--out",
                str(tmp_path / "o.npz"),
                "--kind",
                "windows",
                "--window-s",
                "0.5",
            ]
        )
        == 1
    )
    one = load_embeddings(tmp_path / "o.npz")
    good = [row for row in rows if not row["error"]]
    assert [row["label"] for row in rows if row["error"]] == ["broken"]
    assert [row["path"] for row in good] == [path for path, e in zip(one.paths, one.embeddings, strict=True) for _ in e]
    numpy.testing.assert_array_equal([row["embedding"] for row in good], numpy.concatenate(one.embeddings))
    numpy.testing.assert_array_equal([[row["start_s"], row["end_s"]] for row in good], numpy.concatenate(one.spans_s))


@pytest.mark.parametrize("kind", ["scene", "timestamps"])
def test_an_actor_takes_waveforms(weights, minute, kind):
    actor, model = engine.JepaActor("audio", kind, weights), load_model(weights)
    clips = [minute[:9000].numpy(), minute[None, 9000:40000].numpy(), numpy.full(4000, numpy.nan)]
    audio = numpy.empty(3, object)
    audio[:] = clips
    rows = actor({"audio": audio, "sample_rate": numpy.array([16000, 8000, 16000]), "id": numpy.arange(3)})
    assert "audio" not in rows and len({len(column) for column in rows.values()}) == 1
    for number, rate in ((0, 16000), (1, 8000)):
        expected = model.embed(torch.from_numpy(clips[number]), rate, kind)
        expected = expected[None] if kind == "scene" else expected[0]
        numpy.testing.assert_array_equal(rows["embedding"][rows["id"] == number], expected)
        assert not rows["error"][rows["id"] == number].any()
    assert "NaN" in rows["error"][-1] and numpy.isnan(rows["embedding"][-1]).all() and list(rows["id"]).count(2) == 1


def test_an_actor_refuses_what_it_cannot_embed(weights):
    with pytest.raises(OptionError, match="mixes channels"):
        engine.JepaActor(model=weights, files={"channels": "separate"})
    sound = numpy.sin(numpy.arange(16000))
    audio = numpy.empty(2, object)
    audio[:] = [(32767 * sound).astype("i2"), sound]
    rows = engine.JepaActor("audio", model=weights)({"audio": audio, "sample_rate": numpy.array([16000, 16000])})
    assert "int16" in rows["error"][0] and numpy.isnan(rows["embedding"][0]).all()
    assert not rows["error"][1] and numpy.isfinite(rows["embedding"][1]).all()


@pytest.mark.parametrize("kind, times", [("scene", ["start_s", "end_s"]), ("timestamps", ["timestamp_ms"])])
def test_an_actor_takes_an_empty_batch(weights, kind, times):
    actor = engine.JepaActor(kind=kind, model=weights)
    rows = actor({"path": numpy.array([], str), "id": numpy.array([], int)})
    assert sorted(rows) == sorted(["path", "id", "embedding", "error", *times])
    assert rows["embedding"].shape == (0, load_model(weights).size_of(kind)) and not any(map(len, rows.values()))
