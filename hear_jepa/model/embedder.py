"""Embedder: waveform -> log-mel -> windows of patches -> columns -> scene or timestamp embeddings.

A column is 160 ms of sound: the embeddings of its 5 frequency patches, concatenated, layer after layer. Windows of
one length are encoded together, whichever clip or row of columns they come from, so the cost does not depend on how
sound is spread over clips, and what is encoded never depends on a clip's neighbours.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hear_jepa.errors import OptionError
from hear_jepa.model.checkpoint import Checkpoint
from hear_jepa.model.front_end import LogMel
from hear_jepa.model.grid import HOPS_MS, Window, n_timestamps, plan, timestamps_ms
from hear_jepa.model.vit import patchify

if TYPE_CHECKING:
    from hear_jepa.files.embed import Embedded

PRECISIONS = ("float32", "bfloat16")
SPECTROGRAM_CHUNK = 3000  # frames (30 s) of log-mel computed at once: bounds the memory of a long recording


class Embedder(nn.Module):
    """What `load_model` returns. Embeds 16 kHz mono audio; keeps no state between calls, so threads may share it.

    checkpoint: the encoder, its front end and the layers it serves;
    hop_ms: distance of timestamps, one of 10, 20, 40, 80, 160;
    scene_hop_ms: distance of the columns whose mean is a scene, likewise: 160 takes each part of a clip once, as the
        paper does; finer ones take it at several alignments to the patches, for as many times the work;
    layers: 1 … depth, negative counting from the last (-1), an int or several, whose outputs are concatenated;
    precision: "float32", or "bfloat16" to run the encoder (never the front end) under autocast;
    batch_windows: windows of the trained duration (2.08 s) encoded at once: bounds the memory.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        hop_ms: int = 40,
        layers: int | Sequence[int] | None = None,
        precision: str = "float32",
        batch_windows: int = 16,
        scene_hop_ms: int | None = None,
    ):
        super().__init__()
        self.hop_ms = check_hop(hop_ms)
        served = checkpoint.served.scene_hop_ms if scene_hop_ms is None else scene_hop_ms
        self.scene_hop_ms = check_hop(served, "scene_hop_ms")
        self.layers = check_layers(checkpoint.layers if layers is None else layers, checkpoint.encoder.depth)
        self.precision = check_precision(precision)
        self.batch_windows = check_batch_windows(batch_windows)
        self.log_mel = LogMel(checkpoint.front_end)
        self.encoder = checkpoint.build()
        self.sample_rate: int = checkpoint.front_end.sample_rate
        column_size = checkpoint.encoder.n_freq_patches * checkpoint.encoder.width
        self.scene_embedding_size: int = len(self.layers) * column_size
        self.timestamp_embedding_size: int = self.scene_embedding_size
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where embeddings are returned."""
        return self.encoder.pos_embed.device

    @property
    def max_columns(self) -> int:
        """Columns of a window: the trained duration."""
        return self.encoder.config.n_time_patches

    def hop_of(self, kind: str) -> int:
        """Distance in ms of the columns that embeddings of a kind, "scene" or "timestamps", are made of."""
        return self.scene_hop_ms if kind == "scene" else self.hop_ms

    def forward(self, audio: Tensor) -> Tensor:
        """Scene embeddings of [B, samples]: [B, scene_embedding_size]."""
        return self.scenes(audio)

    @torch.no_grad()
    def scenes(self, clips: Sequence[Tensor] | Tensor) -> Tensor:
        """Mean over time of each clip's columns, `scene_hop_ms` apart. clips: 1-D waveforms of any lengths, or
        [B, samples]."""
        embeddings = torch.zeros(len(clips), self.scene_embedding_size, device=self.device)
        for number, _, columns in self.encode_clips(clips, self.scene_hop_ms):
            embeddings[number] += columns.sum(0)
        counts = [n_timestamps(len(clip), self.scene_hop_ms) for clip in clips]
        return embeddings / torch.tensor(counts, device=self.device)[:, None]

    @torch.no_grad()
    def timestamps(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """[B, samples] -> embeddings [B, n_timestamps, size] and their centres [B, n_timestamps] in milliseconds."""
        centres = timestamps_ms(audio.shape[1], self.hop_ms).to(self.device)
        embeddings = torch.empty(len(audio), len(centres), self.timestamp_embedding_size, device=self.device)
        for number, window, columns in self.encode_clips(audio, self.hop_ms):
            embeddings[number, window.timestamps] = columns
        return embeddings, centres.expand(len(audio), -1).clone()

    def embed(self, waveform: Tensor, sample_rate: int, kind: str = "scene") -> Tensor | tuple[Tensor, Tensor]:
        """One recording, [samples] or [channels, samples], at any rate: mixed to mono and resampled, then embedded.

        Returns the scene embedding [size], or for kind "timestamps" embeddings [n, size] and their centres [n] in ms.
        """
        from hear_jepa.files.waveform import embed_waveform  # built on this class

        return embed_waveform(self, waveform, sample_rate, kind)

    def embed_files(self, paths: Iterable[str | Path], kind: str = "scene", **options) -> Iterator["Embedded"]:
        """Embed many files; yields each when it is done. See `hear_jepa.files.embed.embed_files`."""
        from hear_jepa.files.embed import embed_files

        return embed_files(self, paths, kind, **options)

    def embed_stream(self, blocks: Iterable[Tensor], sample_rate: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Embed a recording while it is being heard. See `hear_jepa.files.live.embed_stream`."""
        from hear_jepa.files.live import embed_stream

        return embed_stream(self, blocks, sample_rate or self.sample_rate)

    @torch.no_grad()
    def encode_clips(self, clips: Sequence[Tensor] | Tensor, hop_ms: int) -> Iterator[tuple[int, Window, Tensor]]:
        """Encode 1-D clips of any lengths, their windows batched together.

        Yields, for every window of every clip (see `windows.plan`), the clip's number, the window, and the embeddings
        of its new columns [n, size]. The windows of one clip come in no promised order.
        """
        waiting: dict[int, list[tuple[int, Window, Tensor]]] = defaultdict(list)  # by number of columns
        for number, clip in enumerate(clips):
            windows = plan(len(clip), hop_ms, self.max_columns)
            first_frame = min(window.start_frame for window in windows)
            last_frame = max(window.start_frame + window.n_frames for window in windows)
            spectrogram = self.spectrogram(clip, first_frame, last_frame - first_frame)
            for window in windows:
                start = window.start_frame - first_frame
                batch = waiting[window.n_columns]
                batch.append((number, window, spectrogram[:, start : start + window.n_frames]))
                if len(batch) * window.n_columns >= self.batch_windows * self.max_columns:
                    yield from self._encode_batch(waiting.pop(window.n_columns))
        for batch in waiting.values():
            yield from self._encode_batch(batch)

    @torch.no_grad()
    def encode_windows(self, spectrograms: Tensor) -> Tensor:
        """Log-mel windows [N, mels, 16·T], T at most `max_columns` -> columns [N, T, size], float32."""
        patches = patchify(spectrograms)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            outputs = self.encoder(patches, layers=self.layers)
        n_freq = self.encoder.config.n_freq_patches
        return torch.cat([layer.float().unflatten(1, (-1, n_freq)).flatten(2) for layer in outputs], dim=2)

    @torch.no_grad()
    def spectrogram(self, clip: Tensor, first_frame: int, n_frames: int) -> Tensor:
        """Log-mel [mels, n_frames] of a 1-D clip, silence outside it, computed a chunk at a time."""
        audio = clip[None].to(self.device, torch.float32)
        result = torch.empty(self.log_mel.config.n_mels, n_frames, device=self.device)
        for start in range(0, n_frames, SPECTROGRAM_CHUNK):
            count = min(SPECTROGRAM_CHUNK, n_frames - start)
            result[:, start : start + count] = self.log_mel.frames(audio, first_frame + start, count)[0]
        return result

    def _encode_batch(self, batch: list[tuple[int, Window, Tensor]]) -> Iterator[tuple[int, Window, Tensor]]:
        columns = self.encode_windows(torch.stack([spectrogram for _, _, spectrogram in batch]))
        for (number, window, _), embedded in zip(batch, columns, strict=True):
            yield number, window, embedded[window.first_new :]


def check_hop(hop_ms: int, name: str = "hop_ms") -> int:
    """Raise `OptionError` unless columns can be `hop_ms` apart."""
    if isinstance(hop_ms, bool) or hop_ms not in HOPS_MS:
        raise OptionError(f"{name} must be one of {', '.join(map(str, HOPS_MS))}, not {hop_ms!r}")
    return int(hop_ms)


def check_layers(layers: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Layers as numbers 1 … depth; negative ones count from the last."""
    chosen = [layers] if isinstance(layers, int) else layers
    numbers = isinstance(chosen, Sequence) and all(type(layer) is int for layer in chosen)
    if not numbers or not chosen or not all(1 <= abs(layer) <= depth for layer in chosen):
        raise OptionError(f"layers must be in 1 … {depth} or -{depth} … -1, one or a list, not {layers!r}")
    return tuple(layer if layer > 0 else depth + 1 + layer for layer in chosen)


def check_precision(precision: str) -> str:
    """Raise `OptionError` unless the encoder can run in `precision`."""
    if precision not in PRECISIONS:
        raise OptionError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    return precision


def check_batch_windows(batch_windows: int) -> int:
    """Raise `OptionError` unless it is a positive number of windows."""
    if type(batch_windows) is not int or batch_windows < 1:
        raise OptionError(f"batch_windows must be a whole number of at least 1, not {batch_windows!r}")
    return batch_windows
