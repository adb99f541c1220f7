"""From shards to batches of crops.

* A crop is a part of one clip, sample for sample; a short clip is repeated in a circle; a shorter one is strung
  together with others of its domain; clips come in proportion to their length, domains as weighted.
* Both backends: same seed same batches, another seed others, and a stream started at batch k is bit-equal to one that
  came to k by itself.
* From memory, the rows of W ranks joined are the rows of one rank; streaming, no two processes read the same shard, nor
  the same clip where shards are too few.
* Streamed crops come from all clips, from any URL that WebDataset opens; a resumed run does not open the shards that it
  is past.
* A damaged shard or clip costs only itself and is counted; a run without its samples, a folder without audio, shards
  without manifest or with another's are refused with the remedy.
* The statistics are those of the log-mel, weighted as the crops are; plain folders give the same.
"""

import itertools
import json
import logging

import numpy as np
import pytest
import soundfile
import torch

from hear_jepa.errors import CorpusError
from hear_jepa.model.front_end import FrontEndConfig, LogMel
from hear_jepa.train.corpus.prepare import prepare
from hear_jepa.train.data import stream
from hear_jepa.train.data.crops import CropRule
from hear_jepa.train.data.sampler import DataConfig, corpus_statistics, crop_stream

RATE = 16000
SAMPLES = 33520  # of 208 frames


def numbered(clip: int, length: int) -> np.ndarray:
    """Samples that tell their clip (the last three decimals) whatever their place (which only rises)."""
    return (np.arange(length) // 1000 * 1000 % 30000 + clip).astype(np.int16)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Fourteen noises of three domains, of 0.4 to 9 s."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    lengths = {"rain": [5.0, 3.0, 9.0, 2.5], "talk": [4.0, 2.2, 6.0, 3.5, 2.6, 2.8], "game": [0.4, 0.5, 0.7, 1.5]}
    for domain, seconds in lengths.items():
        (folder / domain).mkdir()
        for i, duration in enumerate(seconds):
            level = 1000 * (1 + list(lengths).index(domain))
            samples = rng.normal(0, level, int(duration * RATE)).clip(-30000, 30000).astype(np.int16)
            soundfile.write(folder / domain / f"{i}.wav", samples, RATE)
    return folder


@pytest.fixture(scope="module")
def shards(sounds, tmp_path_factory):
    """They, prepared, two or three clips a shard."""
    out = tmp_path_factory.mktemp("shards")
    prepare([sounds], out, workers=1, shard_mb=0.15, progress=False)
    return out


def take(count: int, config: DataConfig, **options) -> list[torch.Tensor]:
    """The first batches of a stream."""
    options = {"batch_size": 6, "n_samples": SAMPLES, "seed": 1, **options}
    return list(itertools.islice(crop_stream(config, **options), count))


def backends(shards) -> list[DataConfig]:
    streamed = [DataConfig(str(shards), backend="stream", workers=workers, crops_per_clip=2) for workers in (0, 2)]
    return [DataConfig(str(shards), backend="memory"), *streamed]


# ---------------------------------------------------------------- the rule


def rule(lengths: list[int], samples: int) -> CropRule:
    clips = [numbered(i, length) for i, length in enumerate(lengths)]
    return CropRule(np.array(lengths), lambda clip, start, count: clips[clip][start : start + count], samples)


def test_a_long_clip_gives_any_part_of_itself():
    clip = np.arange(500, dtype=np.int16)
    draw = CropRule(np.array([500]), lambda _, start, count: clip[start : start + count], 100).draw
    starts = set()
    for seed in range(3000):
        crop = draw(np.random.default_rng(seed))
        np.testing.assert_array_equal(crop, np.arange(crop[0], crop[0] + 100))
        starts.add(int(crop[0]))
    assert min(starts) == 0 and max(starts) == 400 and len(starts) > 380


def test_a_short_clip_is_repeated_in_a_circle():
    clip = np.arange(60, dtype=np.int16)
    draw = CropRule(np.array([60]), lambda _, start, count: clip[start : start + count], 100).draw
    crops = [draw(np.random.default_rng(seed)) for seed in range(500)]
    for crop in crops:
        np.testing.assert_array_equal(crop, (crop[0] + np.arange(100)) % 60)
    assert {int(crop[0]) for crop in crops} == set(range(60))


def test_shorter_clips_are_strung_together():
    lengths = [30, 10, 49, 80]  # the last is not short enough for company
    heard = set()
    for seed in range(300):
        crop = rule(lengths, 100).draw(np.random.default_rng(seed))
        clips = crop % 1000
        heard |= set(clips.tolist())
        if 3 in clips:
            assert (clips == 3).all()
        else:
            runs = [(int(clip), len(list(run))) for clip, run in itertools.groupby(clips)]
            assert all(length % lengths[clip] == 0 for clip, length in runs[1:-1])
    assert heard == {0, 1, 2, 3}


def test_clips_come_in_proportion_to_their_length():
    lengths = [1000, 3000, 6000]
    drawn = [rule(lengths, 500).draw(np.random.default_rng(seed))[0] % 1000 for seed in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.1, 0.3, 0.6], atol=0.03)


# ---------------------------------------------------------------- both backends


def test_batches_have_the_shape_and_the_samples_of_the_corpus(shards, sounds):
    whole = [soundfile.read(path, dtype="float32")[0] for path in sounds.glob("[rt]*/*.wav")]
    for config in backends(shards):
        config = DataConfig(**{**vars(config), "domain_weights": {"rain": 1, "talk": 1}})
        batch = torch.cat(take(2, config))
        assert batch.shape == (12, SAMPLES) and batch.dtype == torch.float32
        for crop in batch.numpy():
            places = [(clip, np.flatnonzero(clip[: len(clip) - SAMPLES + 1] == crop[0])) for clip in whole]
            assert any(np.array_equal(clip[i : i + SAMPLES], crop) for clip, starts in places for i in starts)


def test_a_stream_is_its_seed_and_resumes_bit_equal(shards):
    for config in backends(shards):
        batches = take(12, config)
        assert all(map(torch.equal, batches, take(12, config)))
        assert not torch.equal(batches[0], take(1, config, seed=2)[0])
        assert len(torch.cat(batches).unique(dim=0)) == 72
        for start in (1, 7, 10):
            assert all(map(torch.equal, batches[start:], take(12 - start, config, start_batch=start)))


def test_two_ranks_from_memory_are_one(shards):
    config = DataConfig(str(shards), backend="memory")
    whole = take(4, config, batch_size=6)
    ranks = [take(4, config, batch_size=2, rank=rank, world_size=3) for rank in range(3)]
    for index, batch in enumerate(whole):
        assert torch.equal(torch.cat([rank[index] for rank in ranks]), batch)


def domain_of(crop: torch.Tensor) -> str:
    """By its level: rain is noise of deviation 1000, talk of 2000, game of 3000."""
    return {1: "rain", 2: "talk", 3: "game"}[round(crop.std().item() * 32.768)]


def test_domains_come_as_weighted(shards):
    for backend in ("memory", "stream"):
        config = DataConfig(str(shards), backend=backend, workers=0, domain_weights={"rain": 3, "game": 1})
        heard = [domain_of(crop) for batch in take(50, config, batch_size=10) for crop in batch]
        assert set(heard) == {"rain", "game"} and abs(heard.count("rain") / 500 - 0.75) < 0.07
    seconds = {"rain": 19.5, "talk": 21.1, "game": 3.1}
    heard = [domain_of(crop) for batch in take(50, DataConfig(str(shards)), batch_size=10) for crop in batch]
    for domain, duration in seconds.items():
        assert abs(heard.count(domain) / 500 - duration / sum(seconds.values())) < 0.07


def test_gain_is_drawn_within_its_bounds(shards):
    plain, loud = (torch.cat(take(10, DataConfig(str(shards), gain_db=gain))) for gain in (0.0, 6.0))
    gains = 20 * torch.log10(loud.std(dim=1) / plain.std(dim=1))
    torch.testing.assert_close(loud, plain * 10 ** (gains[:, None] / 20), atol=1e-5, rtol=1e-4)
    assert gains.abs().max() <= 6.01 and gains.min() < -3 and gains.max() > 3


# ---------------------------------------------------------------- streaming


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The shards that are opened, in order."""
    names, original = [], stream._open
    monkeypatch.setattr(stream, "_open", lambda url: names.append(url.rpartition("/")[2]) or original(url))
    return names


def domain_stream(shards, domain: str, unit: int, units: int) -> stream.DomainStream:
    everything = json.loads((shards / "manifest.json").read_text())["shards"]
    listed = [shard for shard in everything if shard["domain"] == domain]
    config = DataConfig(str(shards), open_shards=1, crops_per_clip=1)
    return stream.DomainStream(config, listed, SAMPLES, 0, unit, units, {"shards": 0, "clips": 0})


def test_processes_share_out_shards_without_overlap(shards, opened):
    names = {path.name for path in shards.glob("talk-*.tar")}
    assert len(names) > 2
    of_unit = []
    for unit in range(2):
        opened.clear()
        talk = domain_stream(shards, "talk", unit, 2)
        for index in range(sum(talk._crops_in(talk._shards_of(group)) for group in range(talk._groups_per_epoch))):
            talk.draw(index, np.random.default_rng(index))
        assert len(opened) == len(set(opened))
        of_unit.append(set(opened))
    assert of_unit[0] | of_unit[1] == names and not of_unit[0] & of_unit[1]


def test_processes_share_out_clips_where_shards_are_too_few(shards):
    heard = []
    for unit in range(4):
        game = domain_stream(shards, "game", unit, 4)
        game.draw(0, np.random.default_rng(0))
        heard += game._rule._lengths.tolist()
    assert sorted(heard) == [6400, 8000, 11200, 24000]


def test_every_clip_is_streamed_and_earlier_groups_are_not_opened(shards, sounds, opened):
    options = {"backend": "stream", "workers": 0, "open_shards": 1, "crops_per_clip": 8}
    config = DataConfig(str(shards), domain_weights={"talk": 1}, **options)
    clips = [soundfile.read(path, dtype="float32")[0] for path in sounds.glob("talk/*.wav")]
    unheard = {clip[len(clip) // 2 :][:20].tobytes() for clip in clips}
    for batch in take(40, config):
        for crop in batch.numpy():
            unheard -= {middle for middle in unheard if middle in crop.tobytes()}
    assert not unheard
    whole = list(opened)
    opened.clear()
    take(1, config, start_batch=39)
    assert len(opened) <= 2 and opened == whole[-len(opened) :]


def test_a_url_is_opened_by_webdataset(shards):
    local = DataConfig(str(shards), backend="stream", workers=0)
    for source in (f"file://{shards}", f"pipe:cat {shards}/{{shard}}"):
        remote = DataConfig(source, workers=0)
        assert all(map(torch.equal, take(3, local), take(3, remote)))
        assert corpus_statistics(remote) == corpus_statistics(local)


# ---------------------------------------------------------------- what goes wrong


def copy_of(shards, folder):
    folder.mkdir()
    for path in shards.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("backend", ["memory", "stream"])
def test_damage_costs_only_itself_and_is_counted(shards, tmp_path, backend, caplog):
    damaged = copy_of(shards, tmp_path / "damaged")
    truncated, missing, noise = sorted(damaged.glob("talk-*.tar"))[:3]
    truncated.write_bytes(truncated.read_bytes()[:40000])
    missing.unlink()
    content = bytearray(noise.read_bytes())
    content[512 : 512 + 4096] = bytes(4096)  # the header of its first FLAC
    noise.write_bytes(content)
    config = DataConfig(str(damaged), backend=backend, workers=0, domain_weights={"talk": 1}, open_shards=1)
    with caplog.at_level(logging.WARNING):
        batches = crop_stream(config, batch_size=4, n_samples=SAMPLES, seed=0)
        crops = torch.cat([next(batches) for _ in range(30)])
    assert {domain_of(crop) for crop in crops} == {"talk"}
    assert sum(batches.skipped.values()) >= 3
    for name in (truncated.name, missing.name):
        assert any(name in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("backend", ["memory", "stream"])
def test_nothing_readable_is_an_error(shards, tmp_path, backend):
    damaged = copy_of(shards, tmp_path / "damaged")
    for path in damaged.glob("*.tar"):
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CorpusError, match="damaged"):
        take(1, DataConfig(str(damaged), backend=backend, workers=0))


def test_unusable_sources_are_refused(shards, tmp_path):
    def refused(message: str, source, **options):
        with pytest.raises(CorpusError, match=message):
            take(1, DataConfig(str(source), **options))

    refused("nowhere: no such folder", tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("empty: neither manifest.json nor any audio", empty)
    (empty / "notes.txt").touch()
    refused("empty: neither manifest.json nor any audio", empty)
    (empty / "manifest.json").write_text('{"format": "their-shards", "version": 1}')
    refused("manifest.json is not a manifest of hear_jepa-shards.*prepare", empty)
    (empty / "manifest.json").write_text('{"format": "hear_jepa-shards", "version": 99}')
    refused("manifest.json has version 99", empty)
    (empty / "manifest.json").write_text('{"format": "hear_jepa-sh')
    refused("manifest.json is not JSON", empty)
    unfinished = copy_of(shards, tmp_path / "unfinished")
    (unfinished / "manifest.json").unlink()
    refused("unfinished holds shards without manifest.json.*run it again", unfinished)
    refused("names music; .* has game, rain, talk", shards, domain_weights={"music": 1.0})
    refused("not all 0", shards, domain_weights={"rain": 0.0})
    refused("only be read with --data.backend memory", tmp_path, backend="stream")


# ---------------------------------------------------------------- statistics and plain folders


def test_statistics_are_those_of_the_log_mel(shards, sounds):
    log_mel, values = LogMel(FrontEndConfig(mean=0.0, std=1.0)), {"rain": [], "talk": [], "game": []}
    for path in sounds.glob("*/*.wav"):
        audio = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        values[path.parent.name].append(log_mel(audio[None]).flatten())
    everything = torch.cat([value for domain in values.values() for value in domain])
    for source in (shards, sounds):
        mean, std = corpus_statistics(DataConfig(str(source)))
        assert mean == pytest.approx(everything.mean().item(), abs=0.01)  # by hours, which frames round up
        assert std == pytest.approx(everything.std().item(), abs=0.01)
        mean, std = corpus_statistics(DataConfig(str(source), domain_weights={"game": 2.0}))
        assert mean == pytest.approx(torch.cat(values["game"]).mean().item(), abs=1e-3)
        assert std == pytest.approx(torch.cat(values["game"]).std().item(), abs=1e-3)


def test_a_plain_folder_is_decoded_once(sounds, tmp_path):
    config = DataConfig(str(sounds), cache_dir=tmp_path, domain_weights={"game": 1, "rain": 1})
    batches = take(3, config)
    assert {domain_of(crop) for crop in torch.cat(batches)} == {"game", "rain"}
    (cache,) = tmp_path.glob("*.int16")
    stamp = cache.stat().st_mtime_ns
    assert all(map(torch.equal, batches, take(3, config)))
    assert cache.stat().st_mtime_ns == stamp


def test_unreadable_files_of_a_plain_folder_are_counted(sounds, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "good.wav").write_bytes((sounds / "rain/0.wav").read_bytes())
    (folder / "bad.wav").write_bytes(b"RIFF, they said")
    assert crop_stream(DataConfig(str(folder)), batch_size=1, n_samples=SAMPLES, seed=0).skipped == {"items": 1}
