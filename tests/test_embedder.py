"""Claims about embeddings of real and synthetic audio:

* a clip embeds the same alone, beside loud or silent neighbours, in threads, and whatever `batch_windows` is;
* a scene is the mean of the timestamps `scene_hop_ms` apart, at any length; finer hops hold the rows of coarser ones;
* a click moves only the embeddings of the window it is in, and most those within one hop of it;
* on either side of a window's border stand the embeddings that a clip cut there gives: no padding takes part; silence
  appended to a clip leaves all timestamps but those of the last window alone;
* layers concatenate, bfloat16 stays near float32, and memory does not grow with batch times length.
"""

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch

from hear_jepa import Embedder, get_scene_embeddings, get_timestamp_embeddings

EXACT = dict(rtol=0, atol=1e-5)


def timestamps(audio, model):
    return get_timestamp_embeddings(audio[None], model)[0][0]


def test_a_clip_embeds_alike_alone_and_beside_any_neighbour(model, minute):
    for seconds, gain in itertools.product((0.3, 1.07, 2.74, 5.0), (0.0, 1.0, 30.0)):
        n = int(16000 * seconds)
        clip, neighbour = minute[16000:][:n], minute[-n:] * gain
        batch = torch.stack([neighbour, clip, -neighbour, neighbour.flip(0)])
        alone = get_scene_embeddings(clip[None], model)[0]
        torch.testing.assert_close(get_scene_embeddings(batch, model)[1], alone, **EXACT)
        together, centres = get_timestamp_embeddings(batch, model)
        torch.testing.assert_close(together[1], timestamps(clip, model), **EXACT)
        assert together.shape[:2] == centres.shape and (centres == centres[0]).all()


def test_clips_of_unlike_lengths_embed_together_as_alone(model, recordings):
    lengths = (33281, 9000, 16000, 160, 40000, 12, 16000, 2000)
    clips = [clip[:length] for clip, length in zip(recordings * 2, lengths, strict=True)]
    together = model.scenes(clips)
    for clip, scene in zip(clips, together, strict=True):
        torch.testing.assert_close(scene, get_scene_embeddings(clip[None], model)[0], **EXACT)


def test_batch_windows_bounds_the_batch_and_changes_nothing(checkpoint, minute):
    sizes = []
    model = Embedder(checkpoint, batch_windows=2)
    encode = model.encoder.forward
    model.encoder.forward = lambda patches, **options: sizes.append(patches.shape) or encode(patches, **options)
    audio = minute[:200000]
    torch.testing.assert_close(timestamps(audio, model), timestamps(audio, Embedder(checkpoint)), **EXACT)
    assert max(shape[0] * shape[1] for shape in sizes) <= 2 * 65
    sizes.clear()
    get_scene_embeddings(minute[:64000].view(8, 8000), model)  # 3 columns each: 8 of them are a batch of 2 full windows
    assert [tuple(shape[:2]) for shape in sizes] == [(8, 15)]


@pytest.mark.parametrize("hop_ms", [None, 160, 40])
def test_a_scene_is_the_mean_of_timestamps_at_any_length(checkpoint, minute, hop_ms):
    model = Embedder(checkpoint, hop_ms=hop_ms or 160, scene_hop_ms=hop_ms)
    for n_samples in (1, 2, 80, 160, 400, 2544, 33279, 33280, 33281, 100000):
        audio = minute[5000 : 5000 + n_samples]
        embeddings, centres = get_timestamp_embeddings(audio[None], model)
        assert embeddings.shape == (1, model.grid.n_timestamps(n_samples, model.hop_ms), 480)
        assert centres.shape == embeddings.shape[:2] and centres.min() >= 0 and centres.max() <= n_samples / 16
        scene = get_scene_embeddings(audio[None], model)[0]
        torch.testing.assert_close(scene, embeddings[0].mean(0), **EXACT)
        assert scene.shape == (model.scene_embedding_size,) and scene.isfinite().all()


def test_the_checkpoint_says_how_far_apart_the_columns_of_a_scene_are(checkpoint, minute):
    finer = replace(checkpoint, served=replace(checkpoint.served, scene_hop_ms=40))
    asked = Embedder(checkpoint, scene_hop_ms=40).scenes(minute[None, :20000])
    assert Embedder(finer).scenes(minute[None, :20000]).equal(asked)
    assert not Embedder(finer, scene_hop_ms=160).scenes(minute[None, :20000]).allclose(asked, atol=1e-3)


def test_finer_hops_hold_the_timestamps_of_coarser_ones(model, checkpoint, minute):
    audio = minute[None, :100000]
    by_hop = {}
    for hop_ms in model.grid.hops_ms:
        embeddings, centres = get_timestamp_embeddings(audio, Embedder(checkpoint, hop_ms=hop_ms))
        by_hop[hop_ms] = dict(zip(centres[0].tolist(), embeddings[0], strict=True))
    for coarse in model.grid.hops_ms[1:]:
        shared = [centre for centre in by_hop[coarse] if centre in by_hop[10]]
        assert len(shared) >= len(by_hop[coarse]) - 1
        for centre in shared:
            torch.testing.assert_close(by_hop[coarse][centre], by_hop[10][centre], **EXACT)


@pytest.mark.parametrize("hop_ms", [20, 40, 80, 160])
def test_a_click_shows_within_one_hop_of_its_time(checkpoint, hop_ms):
    model = Embedder(checkpoint, hop_ms=hop_ms)
    quiet = 1e-3 * torch.randn(5 * 16000, generator=torch.Generator().manual_seed(0))
    before, centres = get_timestamp_embeddings(quiet[None], model)
    for at_ms in (500, 1200, 2085, 3333):
        clicked = quiet.clone()
        clicked[16 * at_ms : 16 * at_ms + 32] += 0.9
        change = (timestamps(clicked, model) - before[0]).norm(dim=1)
        touched = centres[0][change > 0.5 * change.max()]  # all columns that hold the click, and they alone
        assert (touched.max() + touched.min()).item() / 2 == pytest.approx(at_ms, abs=hop_ms)
        assert (touched - at_ms).abs().max() <= 80 + 13  # half a column and half an analysis window
        assert change[(centres[0] - at_ms).abs() > 2080 + 80].max() < 1e-4


def test_at_a_window_border_stand_the_embeddings_of_its_two_windows_and_no_padding(checkpoint, minute):
    """Row 0 is cut at 2080 ms: its frames there are those of the sound around it, with real samples on both sides."""
    model = Embedder(checkpoint, hop_ms=160)
    audio = minute[: 2 * 33280]
    columns, mel = timestamps(audio, model), model.spectrogram(audio, 0, 416)
    first = 160 * (208 - 16) - 200
    around = audio[None, first : first + model.log_mel.config.n_samples(32)]
    torch.testing.assert_close(model.log_mel.valid(around)[0], mel[:, 208 - 16 : 208 + 16], rtol=0, atol=1e-4)
    torch.testing.assert_close(model.encode_windows(mel[None, :, :208])[0], columns[:13], **EXACT)
    torch.testing.assert_close(model.encode_windows(mel[None, :, 208:])[0], columns[13:], **EXACT)


@pytest.mark.parametrize("hop_ms", [40, 160])
def test_trailing_silence_reaches_no_further_back_than_the_last_window(checkpoint, minute, hop_ms):
    model = Embedder(checkpoint, hop_ms=hop_ms)
    clip = minute[: 7 * 16000]  # windows end at 2.08, 4.16, 6.24 s
    alone, centres = get_timestamp_embeddings(clip[None], model)
    padded = timestamps(torch.cat([clip, torch.zeros(48000)]), model)[: alone.shape[1]]
    whole = centres[0] < 6240 - 80
    torch.testing.assert_close(padded[whole], alone[0][whole], **EXACT)


def test_padding_is_not_encoded(model, minute):
    """A remainder of less than half a column gives no patch, so silence there changes nothing but the last frames."""
    sound = minute[:16000].clone()  # 1 s: the columns end at 960 ms, their last frame hears up to 965 ms
    changed = sound.clone()
    changed[16 * 970 :] = 0
    torch.testing.assert_close(
        get_scene_embeddings(sound[None], model), get_scene_embeddings(changed[None], model), **EXACT
    )


def test_layers_are_concatenated_in_the_order_asked(checkpoint, minute):
    audio = minute[None, :20000]
    first, last = (get_scene_embeddings(audio, Embedder(checkpoint, layers=layer)) for layer in (1, -1))
    both = Embedder(checkpoint, layers=[-1, 1])
    assert both.scene_embedding_size == both.timestamp_embedding_size == 960
    torch.testing.assert_close(get_scene_embeddings(audio, both), torch.cat([last, first], 1), **EXACT)
    assert not torch.allclose(first, last, atol=0.1)


def test_bfloat16_is_near_float32_and_returns_float32(checkpoint, model, minute):
    audio = minute[None, :50000]
    half = get_scene_embeddings(audio, Embedder(checkpoint, precision="bfloat16"))
    full = get_scene_embeddings(audio, model)
    assert half.dtype == torch.float32
    assert 1e-5 < (half - full).norm() / full.norm() < 0.03


def test_threads_get_what_they_would_get_alone(model, minute, tmp_path):
    """Scenes, timestamps, waveforms that are resampled, streams and files, at once."""
    clips = [minute[7000 * number :][: 9000 + 6000 * number] for number in range(6)]
    for number, clip in enumerate(clips):
        soundfile.write(tmp_path / f"{number}.wav", clip.numpy(), 22050)

    def files(number):
        found = model.embed_files([tmp_path / f"{n}.wav" for n in range(number + 1)])
        return torch.cat([torch.as_tensor(file.embeddings) for file in sorted(found, key=lambda file: file.path)])

    work = [
        lambda number: model.scenes(clips[number][None]),
        lambda number: model.timestamps(clips[number][None])[0],
        lambda number: model.embed(clips[number], 22050),
        lambda number: torch.cat([rows for rows, _ in model.embed_stream(clips[number].split(3000))]),
        files,
    ]
    jobs = [(function, number) for number in range(len(clips)) for function in work]
    alone = [function(number) for function, number in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda job: job[0](job[1]), jobs))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


MEMORY = """
import resource, sys, torch
sys.path.insert(0, sys.argv[1])
from conftest import random_checkpoint
from hear_jepa import Embedder, get_scene_embeddings
from hear_jepa.model.vit import ViTConfig
torch.set_num_threads(1)
model = Embedder(random_checkpoint(ViTConfig(width=384, depth=1, heads=6)))
get_scene_embeddings(torch.randn(1, 640000) / 10, model)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
get_scene_embeddings(torch.randn(1, 300 * 16000) / 10, model)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_memory_of_five_minutes_is_that_of_its_sound_and_spectrogram():
    """Sound and log-mel are 19 + 10 MB; encoding the 145 windows at once would take 150 MB and more."""
    command = [sys.executable, "-c", MEMORY, str(Path(__file__).parent)]
    grown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(grown) < 100_000, f"{grown} KiB"


def test_a_long_recordings_spectrogram_is_computed_in_chunks_that_join(model, minute):
    whole = model.spectrogram(minute, -8, 5000)
    for first in (-8, 2985, 4900):  # around and behind the joint at 2992
        expected = model.log_mel.frames(minute[None], first, 20)[0]
        torch.testing.assert_close(whole[:, first + 8 : first + 28], expected, rtol=0, atol=1e-5)
