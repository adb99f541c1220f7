"""From shards to batches of crops.

* A crop is a part of one clip; short ones are repeated or strung together; clips come in proportion to their length,
  domains as weighted; mixtures have the signal-to-noise ratio asked for.
* Both backends: same seed same batches, another seed others, and a stream started at batch k is bit-equal to one that
  came to k by itself; ranks and processes share the corpus out.
* What is damaged costs only itself and is counted; what cannot be used is refused with the remedy; every wait ends.
* Mean and standard deviation are those of the log-mel of the crops, domains weighted as in training.
"""

import itertools
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from training_runs import small_run

from hear_jepa.errors import CorpusError, OptionError
from hear_jepa.model.front_end import FrontEndConfig, LogMel
from hear_jepa.train import loop
from hear_jepa.train.corpus.prepare import prepare
from hear_jepa.train.data import normalisation, sampler, stream
from hear_jepa.train.data.ahead import Ahead
from hear_jepa.train.data.crops import BatchPlan, CropRule
from hear_jepa.train.data.manifest import Manifest, parse_manifest
from hear_jepa.train.data.normalisation import normalised
from hear_jepa.train.data.sampler import DataConfig, crop_stream, domain_shares
from hear_jepa.train.data.synthetic import EVENTS, SyntheticSound
from hear_jepa.train.metrics_log import read_metrics
from hear_jepa.train.run_state import LATEST, read_state

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
    """The same, prepared, two or three clips a shard."""
    out = tmp_path_factory.mktemp("shards")
    prepare([sounds], out, workers=1, shard_mb=0.15, progress=False)
    return out


def take(count: int, config: DataConfig, **options) -> list[torch.Tensor]:
    """The first batches of a stream."""
    options = {"batch_size": 6, "n_samples": SAMPLES, "seed": 1, **options}
    with closing(crop_stream(config, **options)) as crops:
        return list(itertools.islice(crops, count))


def backends(shards) -> list[DataConfig]:
    streamed = DataConfig(str(shards), backend="stream", workers=0, crops_per_clip=2)
    return [DataConfig(str(shards), backend="decoded"), streamed]


# ---------------------------------------------------------------- the rule


def rule(lengths: list[int], samples: int) -> CropRule:
    clips = [numbered(i, length) for i, length in enumerate(lengths)]
    return CropRule(np.array(lengths), lambda clip, start, count: clips[clip][start : start + count], samples)


@pytest.mark.parametrize(("length", "starts"), [(500, 401), (60, 60)])
def test_a_crop_is_any_part_of_a_clip_and_a_short_one_is_repeated_in_a_circle(length, starts):
    clip = np.arange(length, dtype=np.int16)
    draw = CropRule(np.array([length]), lambda _, start, count: clip[start : start + count], 100).draw
    crops = [draw(np.random.default_rng(seed)) for seed in range(3000)]
    for crop in crops:
        np.testing.assert_array_equal(crop, (crop[0] + np.arange(100)) % length)
    found = {int(crop[0]) for crop in crops}
    assert found <= set(range(starts)) and {0, starts - 1} <= found and len(found) > 0.95 * starts


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


def test_processes_make_what_one_thread_makes_in_their_turns(shards):
    """Two processes, started at batch 3: batch k is that of number k mod 2."""
    options = {"backend": "stream", "crops_per_clip": 2}
    started_at_3 = take(3, DataConfig(str(shards), workers=2, **options), start_batch=3)
    manifest = parse_manifest((shards / "manifest.json").read_bytes(), "manifest.json")
    shares = domain_shares(DataConfig(), manifest.hours)
    listed = tuple(tuple(shard for shard in manifest.shards if shard.domain == domain) for domain in shares)
    config = DataConfig(str(shards), crops_per_clip=2, open_shards=2)
    plan = BatchPlan(tuple(shares.values()), 6, 1, 0, 1, config)
    both = [stream.StreamedBatches(listed, plan, SAMPLES, RATE, 0)(turn, 2) for turn in (0, 1)]
    expected = [next(both[index % 2])[0] for index in range(6)]
    assert all(map(torch.equal, expected[3:], started_at_3))


def test_processes_make_the_same_crops_of_decoded_audio_as_a_thread(shards):
    config = DataConfig(str(shards), backend="decoded", domain_weights={"rain": 1, "synthetic": 1}, mix_share=1)
    by_a_thread = take(5, config, start_batch=3)
    options = {"batch_size": 6, "n_samples": SAMPLES, "seed": 1, "start_batch": 3}
    with closing(crop_stream(replace(config, workers=2), **options)) as by_processes:
        assert all(batch.equal(next(by_processes)) for batch in by_a_thread)
        assert len(multiprocessing.active_children()) == 2


def test_ranks_of_decoded_audio_are_one_rank(shards):
    config = DataConfig(str(shards), backend="decoded")
    whole = take(4, config, batch_size=6)
    ranks = [take(4, config, batch_size=2, rank=rank, world_size=3) for rank in range(3)]
    for index, batch in enumerate(whole):
        assert torch.equal(torch.cat([rank[index] for rank in ranks]), batch)


def domain_of(crop: torch.Tensor) -> str:
    """By its level: rain is noise of deviation 1000, talk of 2000, game of 3000."""
    return {1: "rain", 2: "talk", 3: "game"}[round(crop.std().item() * 32.768)]


def test_domains_come_as_weighted(shards):
    for backend in ("decoded", "stream"):
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


# ---------------------------------------------------------------- sound made on the fly, and mixtures


def test_synthetic_sound_is_a_function_of_its_generator_and_unlike_from_crop_to_crop():
    for rate in (RATE, 32000):
        sound = SyntheticSound(SAMPLES, rate)
        crops = [sound.draw(np.random.default_rng(seed)) for seed in range(60)]
        assert all(crop.shape == (SAMPLES,) and crop.dtype == np.int16 for crop in crops)
        np.testing.assert_array_equal(crops[7], sound.draw(np.random.default_rng(7)))
        peaks = np.abs(np.array(crops, dtype=np.int32)).max(axis=1)
        assert peaks.min() > 900 and peaks.max() < 32000
        spectra = np.abs(np.fft.rfft(np.array(crops, dtype=np.float32), axis=1)) ** 2
        centroids = (spectra * np.arange(spectra.shape[1])).sum(axis=1) / spectra.sum(axis=1) * rate / SAMPLES
        assert centroids.min() < 300 and centroids.max() > 1500
        noise = sound.noise(np.random.default_rng(0))
        assert noise.shape == (SAMPLES,) and noise.std() == pytest.approx(1.0, abs=0.05)
    for event, seed, samples in itertools.product(set(EVENTS), range(20), (320, 5000, 33520)):
        wave = event(np.random.default_rng(seed), samples, RATE)
        assert wave.shape == (samples,) and np.isfinite(wave).all() and np.abs(wave).max() > 0, (event, seed, samples)


@pytest.mark.parametrize("backend", ["decoded", "stream"])
def test_the_synthetic_domain_is_weighted_and_resumes(shards, backend):
    config = DataConfig(str(shards), backend=backend, workers=0, domain_weights={"rain": 1, "synthetic": 1})
    batches = take(5, config)
    assert all(map(torch.equal, batches[3:], take(2, config, start_batch=3)))
    of_rain = sum(abs(crop.std().item() * 32768 - 1000) < 40 for crop in torch.cat(batches))
    assert 5 <= of_rain <= 25


@pytest.mark.parametrize("backend", ["decoded", "stream"])
def test_mixtures_have_the_ratio_asked_for_and_resume(shards, backend):
    plain = DataConfig(str(shards), backend=backend, workers=0, domain_weights={"rain": 1})
    mixing = replace(plain, mix_share=0.5, mix_snr_db=(3.0, 9.0))
    mixed, clean = take(12, mixing), torch.cat(take(12, plain))
    assert all(map(torch.equal, mixed[5:], take(7, mixing, start_batch=5)))
    if backend == "stream":  # there the other crops are taken from the same groups
        return
    other = torch.cat(mixed) - clean
    with_other = other.abs().amax(dim=1) > 0
    assert 24 <= with_other.sum() <= 48
    ratio = 20 * torch.log10(clean.square().mean(1).sqrt() / other.square().mean(1).sqrt())[with_other]
    assert ratio.min() > 2.9 and ratio.max() < 9.1 and ratio.std() > 1


# ---------------------------------------------------------------- streaming


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The shards that are opened, in order."""
    names, original = [], stream._open
    monkeypatch.setattr(stream, "_open", lambda url: names.append(url.rpartition("/")[2]) or original(url))
    return names


def heard(crops: torch.Tensor, clips: list[np.ndarray]) -> set[int]:
    """Which of the clips sound in the crops [N, samples]: their middles do."""
    middles = [clip[len(clip) // 2 :][:20].tobytes() for clip in clips]
    return {index for crop in crops.numpy() for index, middle in enumerate(middles) if middle in crop.tobytes()}


def test_every_clip_is_streamed_and_ranks_share_out_shards_or_clips_where_these_are_too_few(shards, sounds, opened):
    options = {"workers": 0, "open_shards": 1, "crops_per_clip": 8}
    for domain, ranks in (("talk", 1), ("talk", 2), ("game", 4)):
        clips = [soundfile.read(path, dtype="float32")[0] for path in sorted(sounds.glob(f"{domain}/*.wav"))]
        names = sorted(path.name for path in shards.glob(f"{domain}-*.tar"))
        config = DataConfig(str(shards), "stream", domain_weights={domain: 1}, **options)
        clips_of, shards_of = [], []
        for rank in range(ranks):
            opened.clear()
            clips_of += heard(torch.cat(take(40, config, rank=rank, world_size=ranks)), clips)
            shards_of += opened[: len(names) // ranks]  # in the first epoch; the next deals them out anew
        assert set(clips_of) == set(range(len(clips)))
        assert len(clips_of) == len(clips) or domain == "talk"
        assert len(set(shards_of)) == len(shards_of) > 1 or domain == "game"
        assert sorted(shards_of) == names or ranks > 1


def test_a_resumed_stream_opens_no_earlier_group(shards, opened):
    config = DataConfig(str(shards), "stream", workers=0, domain_weights={"talk": 1}, open_shards=1, crops_per_clip=8)
    take(40, config)
    whole = list(opened)
    opened.clear()
    take(1, config, start_batch=39)
    assert len(opened) <= 2 and opened == whole[-len(opened) :]


def test_a_url_is_opened_by_webdataset(shards):
    local = DataConfig(str(shards), backend="stream", workers=0)
    for source in (f"file://{shards}", f"pipe:cat {shards}/{{shard}}"):
        remote = DataConfig(source, workers=0)
        assert all(map(torch.equal, take(3, local), take(3, remote)))


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("backend", ["decoded", "stream"])
def test_damage_costs_only_its_shard_and_is_counted(shards, tmp_path, backend, caplog):
    damaged = shutil.copytree(shards, tmp_path / "damaged")
    truncated, missing, altered, whole = sorted(damaged.glob("talk-*.tar"))[:4]
    truncated.write_bytes(truncated.read_bytes()[:40000])
    missing.unlink()
    content = bytearray(altered.read_bytes())
    content[-2000] ^= 1  # in the padding: no FLAC is touched, but the file is not the one that the manifest describes
    altered.write_bytes(content)
    config = DataConfig(str(damaged), backend=backend, workers=0, domain_weights={"talk": 1}, open_shards=1)
    with closing(crop_stream(config, batch_size=4, n_samples=SAMPLES, seed=0)) as crops:
        batches = torch.cat([next(crops) for _ in range(30)])
    assert {domain_of(crop) for crop in batches} == {"talk"}
    assert sum(crops.skipped.values()) >= 3
    assert all(path.name in caplog.text for path in (truncated, missing, altered)) and whole.name not in caplog.text
    for left, path in ((2, altered), (1, missing), (0, truncated)):  # prepared again, as the message says
        shutil.copyfile(shards / path.name, path)
        with closing(crop_stream(config, batch_size=4, n_samples=SAMPLES, seed=0)) as crops:
            assert len(next(crops)) == 4 and (backend == "stream" or sum(crops.skipped.values()) == left)


@pytest.mark.parametrize(("backend", "workers"), [("decoded", 0), ("stream", 0), ("stream", 1)])
def test_nothing_readable_is_an_error(shards, tmp_path, backend, workers):
    damaged = shutil.copytree(shards, tmp_path / "damaged")
    for path in damaged.glob("*.tar"):
        path.unlink()
    with pytest.raises(CorpusError, match="damaged or missing"):
        take(1, DataConfig(str(damaged), backend=backend, workers=workers))


WRONG = {  # field of the error -> how a manifest goes wrong
    "sample_rate": lambda m: m.update(sample_rate=-16000),
    "shards": lambda m: m.update(shards=[]),
    "domains": lambda m: m["domains"].pop("talk"),
    "domains.rain.clips": lambda m: m["domains"]["rain"].update(clips=7),
    "domains.rain.hours": lambda m: m["domains"]["rain"].update(hours=float("nan")),
    "domains.rain.log_mel.mean": lambda m: m["domains"]["rain"].update(log_mel={"mean": float("nan"), "std": 1.0}),
    "domains.rain": lambda m: m["domains"].update(rain=4),
    "domains.music": lambda m: m["domains"].update(music={"clips": 0, "hours": 0}),
    "log_mel.std": lambda m: m.update(log_mel={"mean": -7.0, "std": float("inf")}),
    "sources": lambda m: m.update(sources=[]),
    "skipped": lambda m: m.update(skipped="none"),
}
WRONG_SHARD = {
    "clips": [0, -1, "3", 2.0, None, True],
    "hours": [0, -0.1, "1", None, float("inf")],
    "file": ["../a.tar", "/etc/a.tar", "a/b.tar", "pipe:touch a.tar", "http://host/a.tar", "..\\a.tar", "", 3, None],
    "domain": ["", "../rain", 4, None],
    "sha256": ["abc", 5, "g" * 64],
}


def test_every_wrong_manifest_is_refused_by_its_field(shards):
    text = (shards / "manifest.json").read_text()
    assert isinstance(parse_manifest(text, "m"), Manifest)
    changes = list(WRONG.items())
    for name, values in WRONG_SHARD.items():
        changes += [(f"shards.1.{name}", lambda m, n=name, v=v: m["shards"][1].update({n: v})) for v in values]
    for field, change in changes:
        manifest = json.loads(text)
        change(manifest)
        with pytest.raises(CorpusError) as caught:
            parse_manifest(json.dumps(manifest), "m")
        assert str(caught.value).startswith(f"m: {field} is "), (field, str(caught.value))
    old, repeated = json.loads(text), json.loads(text)
    for part in (old, *old["domains"].values()):
        part["log_mel"] = {"mean": -7.0, "std": 4.0}  # as older versions wrote them
    assert parse_manifest(json.dumps(old), "old").shards
    repeated["shards"].append(repeated["shards"][0])
    with pytest.raises(CorpusError, match="m: shards is .*listed once"):
        parse_manifest(json.dumps(repeated), "m")


# ---------------------------------------------------------------- every wait ends


def silent(turn: int, turns: int):
    time.sleep(1000)
    yield turn


def dying(turn: int, turns: int):
    yield turn
    yield turn + turns  # there is room for one item: that this one was put shows that the first was taken
    os._exit(3)


def failing(turn: int, turns: int):
    raise CorpusError("no such sound")
    yield turn


def test_waits_end():
    """On an error, where nothing comes, on a stop, and where a process dies."""
    for workers in (0, 1):
        with pytest.raises(CorpusError, match="no such sound"):
            next(Ahead(failing, workers, 2, 60))
    with pytest.raises(CorpusError, match="no crops for 0.5 s"):
        next(Ahead(silent, 0, 2, 0.5))
    items = Ahead(silent, 0, 2, 60)
    items.stop_requested = lambda: True
    with pytest.raises(StopIteration):
        next(items)
    items = Ahead(dying, 1, 1, 120)
    assert next(items) == 0
    with pytest.raises(CorpusError, match="has died"):
        list(items)


def test_sigterm_ends_a_run_that_waits_for_its_crops(sixteen_clips, tmp_path, monkeypatch):
    """Five batches come, then never again; the run saves its state and ends."""
    config, done = small_run(sixteen_clips, tmp_path / "run"), threading.Event()

    def stalling(make):
        def made(turn, turns):
            yield from itertools.islice(make(turn, turns), 5)
            while [line["step"] for line in read_metrics(config.out)][-1:] != [5]:
                if done.wait(0.05):
                    return
            time.sleep(0.5)  # until the loop waits
            os.kill(os.getpid(), signal.SIGTERM)
            done.wait()

        return made

    monkeypatch.setattr(sampler, "Ahead", lambda make, *options: Ahead(stalling(make), *options))
    monkeypatch.setattr(loop, "normalised", lambda front_end, *_: front_end)
    try:
        assert loop.train(replace(config, data=replace(config.data, timeout_s=120))) == config.out / LATEST
        assert read_state(config.out / LATEST)["step"] == 5
    finally:
        done.set()


def test_unusable_sources_are_refused(shards, tmp_path):
    def refused(message: str, source, sample_rate=RATE, **options):
        with pytest.raises((CorpusError, OptionError), match=message):
            take(1, DataConfig(str(source), **options), sample_rate=sample_rate)

    refused("nowhere: no such folder", tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("empty: neither manifest.json nor any audio", empty)
    (empty / "notes.txt").touch()
    refused("empty: neither manifest.json nor any audio", empty)
    (empty / "manifest.json").write_text('{"format": "their-shards", "version": 1}')
    refused("manifest.json is not a manifest of hear_jepa-shards.*train.corpus", empty)
    (empty / "manifest.json").write_text('{"format": "hear_jepa-shards", "version": 99}')
    refused("manifest.json has version 99", empty)
    (empty / "manifest.json").write_text('{"format": "hear_jepa-sh')
    refused("manifest.json is not JSON", empty)
    unfinished = shutil.copytree(shards, tmp_path / "unfinished")
    (unfinished / "manifest.json").unlink()
    refused("unfinished holds shards without manifest.json.*run it again", unfinished)
    refused("names music; .* has game, rain, talk; there is synthetic too", shards, domain_weights={"music": 1.0})
    refused("s3://bucket/manifest.json: cannot be opened", "s3://bucket")
    refused("not all 0", shards, domain_weights={"rain": 0.0})
    refused("at 16000 Hz, the front end at 32000 Hz: .*--rate 32000", shards, sample_rate=32000)
    refused("--data.crops-per-clip is 0", shards, crops_per_clip=0)
    refused("--data.mix-share is 1.5", shards, mix_share=1.5)
    refused("--data.timeout-s is nan", shards, timeout_s=float("nan"))
    refused("only be read with --data.backend decoded", tmp_path, backend="stream")


# ---------------------------------------------------------------- normalisation and plain folders


def test_normalisation_is_that_of_the_crops_domains_as_weighted(shards, sounds, monkeypatch):
    monkeypatch.setattr(normalisation, "BATCH_SIZE", 48)
    front_end = FrontEndConfig(n_fft=1024, mean=0.0, std=1.0)
    log_mel, n_samples = LogMel(front_end), front_end.n_samples(208)
    weights, found = {"game": 1.0, "rain": 2.0}, {}
    for source, backend in ((shards, "decoded"), (shards, "stream"), (sounds, "decoded")):
        data = DataConfig(str(source), domain_weights=weights, backend=backend)
        measured = normalised(front_end, data, 208, seed=1)
        crops = torch.cat(take(2, replace(data, workers=0), batch_size=48, n_samples=n_samples))
        values = log_mel.valid(crops).double()
        assert measured.mean == pytest.approx(values.mean().item(), abs=1e-4)
        assert measured.std == pytest.approx(values.std().item(), abs=1e-3)
        assert replace(measured, mean=0.0, std=1.0) == front_end
        found[str(source), backend] = measured
    assert found[str(shards), "decoded"] == normalised(
        front_end, DataConfig(str(shards), domain_weights=weights), 208, 1
    )
    means = [measured.mean for measured in found.values()]
    assert max(means) - min(means) < 0.3  # other crops of the same sounds


def test_a_plain_folder_is_decoded_once(sounds, tmp_path):
    config = DataConfig(str(sounds), cache_dir=tmp_path, domain_weights={"game": 1, "rain": 1})
    batches = take(3, config)
    assert {domain_of(crop) for crop in torch.cat(batches)} == {"game", "rain"}
    (cache,) = tmp_path.glob("*.int16")
    stamp = cache.stat().st_mtime_ns
    assert all(map(torch.equal, batches, take(3, config)))
    assert cache.stat().st_mtime_ns == stamp
    cache.unlink()  # it is made again
    assert all(map(torch.equal, batches, take(3, config)))


def test_unreadable_files_of_a_plain_folder_are_counted(sounds, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "good.wav").write_bytes((sounds / "rain/0.wav").read_bytes())
    (folder / "bad.wav").write_bytes(b"RIFF, they said")
    assert crop_stream(DataConfig(str(folder)), batch_size=1, n_samples=SAMPLES, seed=0).skipped == {"items": 1}
