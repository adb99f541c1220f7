"""A picture of what a model hears in a recording: log-mel, patch embeddings as colours, self-similarity over time."""

import torch
from torch import Tensor

from hear_jepa.figures import new_figure
from hear_jepa.model.embedder import Embedder

LONGEST_S = 60.0  # of a recording: more is not legible


def patch_colours(patches: Tensor) -> Tensor:
    """[T, F, D] embeddings of patches -> [F, T, 3] in 0 … 1: their first three principal components.

    Each component is stretched over the range of its values but the outermost 2 % on either side.
    """
    flat = patches.flatten(0, 1).double()
    flat = flat - flat.mean(0)
    components = min(3, *flat.shape)
    _, _, directions = torch.linalg.svd(flat, full_matrices=False)
    values = flat @ directions[:components].T
    values = torch.nn.functional.pad(values, (0, 3 - components))
    low, high = values.quantile(0.02, dim=0), values.quantile(0.98, dim=0)
    colours = ((values - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    return colours.unflatten(0, patches.shape[:2]).transpose(0, 1).float()


def self_similarity(embeddings: Tensor) -> Tensor:
    """[n, size] -> [n, n]: cosine of every two, after the mean over the recording is taken off (it is in them all)."""
    centred = torch.nn.functional.normalize(embeddings - embeddings.mean(0), dim=1)
    return centred @ centred.T


def draw(model: Embedder, audio: Tensor, start_s: float = 0.0, title: str = ""):
    """A figure of [samples] at the model's rate: log-mel, patches in colours, self-similarity of the timestamps."""
    log_mel = model.log_mel(audio[None])[0]
    grid = model.grid
    with torch.no_grad():
        columns = model.columns(audio[None])[0]
    first_ms = grid.centres_ms(len(audio), grid.column_ms, 0, 1).item()
    n_freq, width = grid.rows, model.encoder.config.width
    patches = columns[:, -n_freq * width :].unflatten(1, (n_freq, width))  # of the last of the served layers
    embeddings, centres = model.timestamps(audio[None])
    similarity, centres = self_similarity(embeddings[0]), centres[0] / 1000 + start_s

    end_s = start_s + len(audio) / model.sample_rate
    figure = new_figure(9, 11)
    sound, colours, alike = figure.subplots(3, 1, height_ratios=(1, 1, 2.4))
    bands = (-0.5, log_mel.shape[0] - 0.5)
    half_frame = grid.frame_ms / 2000
    frames = (start_s - half_frame, start_s - half_frame + log_mel.shape[1] * grid.frame_ms / 1000, *bands)
    image = sound.imshow(log_mel.numpy(), origin="lower", aspect="auto", extent=frames, cmap="magma")
    figure.colorbar(image, ax=sound, label="log-mel, standardised", pad=0.01)
    sound.set_title(f"{title}: log-mel")
    left = start_s + (first_ms - grid.column_ms / 2) / 1000
    extent = (left, left + len(patches) * grid.column_ms / 1000, *bands)
    colours.imshow(
        patch_colours(patches).numpy(), origin="lower", aspect="auto", extent=extent, interpolation="nearest"
    )
    # The louder, the brighter: the colours alone would hide where the sound is.
    low, high = log_mel.flatten().quantile(0.05), log_mel.flatten().quantile(0.995)
    darkness = 0.75 * (1 - ((log_mel - low) / (high - low).clamp(min=1e-6)).clamp(0, 1))
    look = {"extent": frames, "cmap": "gray", "alpha": darkness.numpy()}
    colours.imshow(torch.zeros_like(log_mel).numpy(), origin="lower", aspect="auto", **look)
    colours.set_title("patch embeddings: first three principal components as red, green, blue")
    for axes in (sound, colours):
        axes.set(xlim=(start_s, end_s), ylim=bands, xlabel="time (s)", ylabel="frequency (Hz)")
        places, labels = mel_ticks(model)
        axes.set_yticks(places, labels)
    half_hop = model.hop_ms / 2000
    edges = (centres[0].item() - half_hop, centres[-1].item() + half_hop)
    image = alike.imshow(similarity.numpy(), origin="lower", extent=edges * 2, cmap="RdBu_r", vmin=-1, vmax=1)
    figure.colorbar(image, ax=alike, label="cosine, the mean embedding taken off", pad=0.01)
    alike.set(title=f"self-similarity of the timestamp embeddings, every {model.hop_ms} ms")
    alike.set(xlabel="time (s)", ylabel="time (s)")
    return figure


def mel_ticks(model: Embedder, wanted=(250, 500, 1000, 2000, 4000, 7500)) -> tuple[list[float], list[str]]:
    """Where, in mel bands, frequencies in Hz lie, and their labels: measured on the filters that the model uses."""
    centres = model.log_mel.row_centres()
    places = [int(torch.searchsorted(centres, torch.tensor(float(f)))) for f in wanted]
    bands = []
    for place, frequency in zip(places, wanted, strict=True):
        upper = min(max(place, 1), len(centres) - 1)
        below, above = centres[upper - 1].item(), centres[upper].item()
        bands.append(upper - 1 + (frequency - below) / max(above - below, 1e-9))
    return bands, [str(frequency) for frequency in wanted]
