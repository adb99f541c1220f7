"""How much of an embedding is the sound, and how much is where it lies in a window: two measures.

    import soundfile, torch, hear_jepa
    from hear_jepa.evaluation.position import place_consistency, position_share
    model = hear_jepa.load_model()
    recordings = [torch.from_numpy(soundfile.read(path, dtype="float32")[0]) for path in paths]  # mono, 16 kHz
    position_share(model, recordings)  # 0: columns do not tell their place in a window; 1: they tell nothing else
    place_consistency(model, recordings[0], start_s=10)  # 1: a second embeds alike wherever windows are cut

Give recordings that are longer than a window (2 s): a short clip often begins with its event, and then the sound itself
differs from place to place.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hear_jepa.errors import AudioError
from hear_jepa.model.embedder import Embedder

FEWEST_CROPS = 200
BATCH = 32  # crops embedded at once


@torch.no_grad()
def position_share(model: Embedder, recordings: Sequence[Tensor], n_crops: int = 256, seed: int = 0) -> float:
    """Share of the variance of the served columns that their index in the window explains, over random crops.

    recordings: 1-D waveforms at the model's rate, each at least a window long; n_crops: at least 200.
    Raises `AudioError`.
    """
    if n_crops < FEWEST_CROPS:
        raise AudioError(f"{n_crops} crops are too few to tell a share of 1 %: take at least {FEWEST_CROPS}")
    samples = model.grid.window_frames * model.grid.hop_length
    crops = random_crops(recordings, samples, n_crops, seed)
    return explained_share(torch.cat([model.columns(batch).cpu() for batch in crops.split(BATCH)]))


def explained_share(columns: Tensor) -> float:
    """Share of the variance of columns [N, T, D] that their index t explains, in 0 … 1, all dimensions together.

    It is corrected for chance: the means over N crops differ a little even where the index tells nothing.
    """
    columns = columns.double()
    between = columns.mean(0).var(0).sum()  # of the T means
    within = columns.var(0).mean(0).sum()  # of the crops, at each index
    between = (between - within / len(columns)).clamp(min=0)
    return float(between / (between + within).clamp(min=1e-12))


def random_crops(recordings: Sequence[Tensor], samples: int, count: int, seed: int = 0) -> Tensor:
    """[count, samples], from one recording after another, at random places. Raises `AudioError` for a short one."""
    generator = torch.Generator().manual_seed(seed)
    crops = []
    for number in range(count):
        recording = recordings[number % len(recordings)]
        if len(recording) < samples:
            raise AudioError(f"recording {number} has {len(recording)} samples: a window needs {samples}; leave it out")
        start = int(torch.randint(len(recording) - samples + 1, (), generator=generator))
        crops.append(recording[start : start + samples])
    return torch.stack(crops)


@torch.no_grad()
def place_consistency(model: Embedder, recording: Tensor, start_s: float, length_s: float = 1.0) -> float:
    """Mean cosine of a second's embeddings to their mean, the windows cut at every column around it.

    The recording is embedded again and again, each time without one column more of its beginning, until windows are cut
    as at first: so the second lies at every place of a window, and across seams, with the same sound around it. Its
    embedding is the mean of the columns that lie in it, less the mean column of the recording. Raises `AudioError`.
    """
    grid = model.grid
    column = grid.patch_frames * grid.hop_length  # samples
    first, last = round(start_s * grid.sample_rate), round((start_s + length_s) * grid.sample_rate)
    if first < grid.columns * column or last > len(recording):
        raise AudioError(
            f"the stretch from {start_s} to {start_s + length_s} s must begin after a window "
            f"({grid.columns * column / grid.sample_rate:g} s) and end in the recording"
        )
    embedded, everything = [], []
    for dropped in range(grid.columns):
        columns = model.columns(recording[None, dropped * column :])[0].double()
        starts = (dropped + torch.arange(len(columns), device=columns.device)) * column
        everything.append(columns.mean(0))
        embedded.append(columns[(starts >= first) & (starts + column <= last)].mean(0))
    centred = torch.stack(embedded) - torch.stack(everything).mean(0)
    return float(F.cosine_similarity(centred, centred.mean(0, keepdim=True)).mean())
