"""A recording that comes in blocks.

* Blocks of any lengths give the embeddings and centres of the whole, at every hop, also where the recording is shorter
  than a column or ends on a window border; at another rate, those of the whole resampled.
* What is complete is given at once; what is kept of the past does not grow; a bad block is refused.
"""

import pytest
import torch

from hear_jepa import Embedder, get_timestamp_embeddings
from hear_jepa.errors import AudioError
from hear_jepa.files.live import WindowStream
from hear_jepa.files.resample import resample

EXACT = {"rtol": 0, "atol": 1e-5}
LENGTHS = [1, 79, 80, 1199, 1200, 3760, 3761, 16000, 33279, 33280, 33281, 16000 * 7 + 13]


def joined(model, blocks, **options):
    parts = list(model.embed_stream(blocks, **options))
    return torch.cat([embeddings for embeddings, _ in parts]), torch.cat([centres for _, centres in parts])


@pytest.mark.parametrize("hop_ms", [10, 40, 160])
@pytest.mark.parametrize("block", [97, 16000])
def test_blocks_embed_as_the_whole(checkpoint, minute, hop_ms, block):
    model = Embedder(checkpoint, hop_ms=hop_ms)
    for n_samples in LENGTHS if block > 97 else LENGTHS[:6:2]:
        audio = minute[:n_samples]
        expected, timestamps = get_timestamp_embeddings(audio[None], model)
        embeddings, centres = joined(model, audio.split(block))
        torch.testing.assert_close(embeddings, expected[0], **EXACT)
        assert torch.equal(centres.float(), timestamps[0])


def test_another_rate_is_resampled_without_seams(model, minute):
    audio = minute[:100000]
    expected, _ = get_timestamp_embeddings(resample(audio[None], 44100), model)
    embeddings, _ = joined(model, audio.split(1234), sample_rate=44100)
    torch.testing.assert_close(embeddings, expected[0], **EXACT)


def test_timestamps_come_as_soon_as_their_window_is_full(model, minute):
    heard_ms, centres = 0, []

    def blocks():
        nonlocal heard_ms
        for block in minute[:160000].split(1600):
            yield block
            heard_ms += 100
            # The block has been embedded when the next is asked for: nothing older than a window may be missing.
            latest = centres[-1] if centres else 0
            assert heard_ms - latest <= 2080 + 160 + 100

    for _, new in model.embed_stream(blocks()):
        centres += new.tolist()
    assert centres[-1] > 9900


def test_the_past_is_let_go(model, minute):
    stream, largest = WindowStream(model, 40), 0
    for block in minute.split(16000):
        stream.feed(block)
        kept = sum(audio.numel() for audio in stream._audio) + (
            0 if stream._spectrogram is None else stream._spectrogram.numel()
        )
        largest = max(largest, kept)
    assert largest < 80 * 3000 + 5 * 16000  # a few seconds, of a minute


def test_a_bad_block_is_refused(model):
    with pytest.raises(AudioError, match="NaN"):
        list(model.embed_stream([torch.zeros(5000), torch.tensor([float("nan")])]))
    with pytest.raises(AudioError, match="int16"):
        list(model.embed_stream([torch.zeros(5000, dtype=torch.int16)]))
    with pytest.raises(AudioError, match="one channel"):
        list(model.embed_stream([torch.zeros(2, 5000)]))
    assert list(model.embed_stream([])) == []
