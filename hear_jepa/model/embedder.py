"""Embedder: waveform -> log-mel -> windows of patches -> columns -> scene or timestamp embeddings.

A column is as wide as a patch (160 ms in the paper): the embeddings of its frequency patches, concatenated, layer after
layer. `WindowBatcher` is the one place where windows are encoded: those of one length together, whichever recording or
phase they come from, so the cost does not depend on how sound is spread over recordings, and what is encoded never
depends on a recording's neighbours.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hear_jepa.errors import AudioError, OptionError
from hear_jepa.model.checkpoint import Checkpoint, weights_sha256
from hear_jepa.model.front_end import LogMel
from hear_jepa.model.grid import Grid, Window
from hear_jepa.model.pooling import POOLINGS, Pool, Whitening
from hear_jepa.model.vit import patchify
from hear_jepa.options import check_name

if TYPE_CHECKING:
    from hear_jepa.files.embed import Embedded

PRECISIONS = ("float32", "bfloat16")
SPECTROGRAM_CHUNK = 3000  # frames (30 s) of log-mel computed at once: bounds the memory of a long recording
WAITING_BATCHES = 4  # of windows too few of their length to be encoded yet
# Encoded at once: products of fewer rows may be summed in another order, which shows in the last bit.
FEWEST_COLUMNS = 8
DEFAULT_HOP_MS = 40  # HEAR suggests at most 50

Key = TypeVar("Key", bound=Hashable)


class Embedder(nn.Module):
    """What `load_model` returns. Embeds mono audio at `sample_rate`; keeps no state between calls, so threads may share
    it.

    checkpoint: the encoder, its front end and what it serves;
    hop_ms: distance of timestamps, one of `grid.hops_ms`; by default 40, or a column where that is shorter;
    scene_hop_ms: distance of the columns that a scene is made of, likewise: a column's width takes each part of a clip
        once, as the paper does; finer ones take it at several phases, for as many times the work;
    layers: 0 … depth, 0 for the embedded patches, negative counting from the last (-1): an int, or several, whose
        outputs are concatenated;
    precision: "float32", or "bfloat16" to run the encoder (never the front end) under autocast;
    batch_windows: windows of the trained duration encoded at once: bounds the memory;
    pooling: of a scene's columns, "mean" or "mean+std" (mean and standard deviation, twice the size);
    whiten: apply the checkpoint's whitening to scenes, for nearest neighbours and search; layers and pooling must be
        those that it was measured with. Timestamps are never whitened.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        hop_ms: int | None = None,
        layers: int | Sequence[int] | None = None,
        precision: str = "float32",
        batch_windows: int = 16,
        scene_hop_ms: int | None = None,
        pooling: str | None = None,
        whiten: bool = False,
    ):
        super().__init__()
        self.grid: Grid = checkpoint.grid
        default_hop = DEFAULT_HOP_MS if DEFAULT_HOP_MS in self.grid.hops_ms else self.grid.column_ms
        self.hop_ms = self.grid.check_hop(default_hop if hop_ms is None else hop_ms)
        served_hop = checkpoint.served.scene_hop_ms if scene_hop_ms is None else scene_hop_ms
        self.scene_hop_ms = self.grid.check_hop(served_hop, "scene_hop_ms")
        self.pooling = check_name(checkpoint.served.pooling if pooling is None else pooling, POOLINGS, "pooling")
        self.layers = check_layers(checkpoint.layers if layers is None else layers, checkpoint.encoder.depth)
        self.precision = check_name(precision, PRECISIONS, "precision")
        self.batch_windows = check_batch_windows(batch_windows)
        self.log_mel = LogMel(checkpoint.front_end)
        self.encoder = checkpoint.build()
        self.sample_rate: int = self.grid.sample_rate
        self.timestamp_embedding_size: int = len(self.layers) * self.grid.rows * checkpoint.encoder.width
        self.whitening = self._whitening_of(checkpoint) if whiten else None
        pooled_size = POOLINGS[self.pooling] * self.timestamp_embedding_size
        self.scene_embedding_size: int = self.whitening.size if self.whitening else pooled_size
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where embeddings are returned."""
        return self.encoder.pos_embed.device

    def _apply(self, fn, *arguments, **options):
        """What every move and cast goes through. Raises OptionError for those after which nothing could be embedded."""
        moved = fn(torch.zeros(1, dtype=torch.float32))
        if moved.dtype != torch.float32:
            raise OptionError(
                f"an embedder's weights stay float32, not {moved.dtype}: for speed, "
                "load_model(..., precision='bfloat16') runs the encoder under autocast"
            )
        if moved.is_meta:
            raise OptionError("the meta device holds no weights to embed with: move the model to cpu, cuda or mps")
        return super()._apply(fn, *arguments, **options)

    def _whitening_of(self, checkpoint: Checkpoint) -> Whitening:
        if checkpoint.whitening is None:
            raise OptionError("the checkpoint has no whitening: make one by `hear-jepa whiten`, or leave whiten out")
        if self.layers != checkpoint.layers or self.pooling != checkpoint.served.pooling:
            raise OptionError(
                f"the whitening is of layers {list(checkpoint.layers)} and pooling {checkpoint.served.pooling}: "
                "leave these options out, or whiten"
            )
        return Whitening(checkpoint.whitening.mean, checkpoint.whitening.maps)  # this model's, which may move

    def pool(self) -> Pool:
        """An empty scene."""
        return Pool(self.pooling, self.whitening)

    def hop_of(self, kind: str) -> int:
        """Distance in ms of the columns that embeddings of a kind, "scene", "timestamps" or "windows", are made of."""
        return self.hop_ms if kind == "timestamps" else self.scene_hop_ms

    def size_of(self, kind: str) -> int:
        """Size of an embedding of a kind; windows are pooled as scenes are."""
        return self.timestamp_embedding_size if kind == "timestamps" else self.scene_embedding_size

    def weights_sha256(self, kind: str) -> str:
        """SHA-256 of the weights that embeddings of a kind depend on: the encoder's, and a scene's whitening."""
        parts = [self.encoder] if kind == "timestamps" or self.whitening is None else [self.encoder, self.whitening]
        return weights_sha256({name: tensor.cpu() for part in parts for name, tensor in part.state_dict().items()})

    # ---------------------------------------------------------------- embeddings

    def forward(self, audio: Tensor) -> Tensor:
        """Scene embeddings of [B, samples]: [B, scene_embedding_size]."""
        return self.scenes(audio)

    @torch.no_grad()
    def scenes(self, clips: Sequence[Tensor] | Tensor) -> Tensor:
        """Pooled columns of each clip, `scene_hop_ms` apart: [clips, scene_embedding_size].

        clips: 1-D waveforms of any lengths, or [B, samples]. Raises `AudioError` where an embedding is not finite.
        """
        pools = [self.pool() for _ in range(len(clips))]
        for number, _, columns in self.encode_clips(clips, self.scene_hop_ms):
            pools[number].add(columns)
        return check_finite(torch.stack([pool.embedding() for pool in pools]))

    @torch.no_grad()
    def timestamps(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """[B, samples] -> embeddings [B, n_timestamps, size] and their centres [B, n_timestamps] in milliseconds.

        Raises `AudioError` where an embedding is not finite.
        """
        centres = self.grid.timestamps_ms(audio.shape[1], self.hop_ms).to(self.device)
        return check_finite(self.columns(audio, self.hop_ms)), centres.expand(len(audio), -1).clone()

    def columns(self, audio: Tensor, hop_ms: int | None = None) -> Tensor:
        """[B, samples] -> columns [B, n_timestamps, size], `hop_ms` apart (a column's width by default).

        Differentiable, for fine-tuning: `model.encoder.requires_grad_(True).train()` first.
        """
        hop_ms = self.grid.check_hop(self.grid.column_ms if hop_ms is None else hop_ms)
        count = self.grid.n_timestamps(audio.shape[1], hop_ms)
        size = self.timestamp_embedding_size
        columns = torch.empty(len(audio), count, size, device=self.device, dtype=torch.float32)
        for number, window, embedded in self.encode_clips(audio, hop_ms):
            columns[number, window.timestamps] = embedded
        return columns

    @overload
    def embed(self, waveform: Tensor, sample_rate: int, kind: Literal["scene"] = "scene") -> Tensor: ...
    @overload
    def embed(self, waveform: Tensor, sample_rate: int, kind: Literal["timestamps"]) -> tuple[Tensor, Tensor]: ...
    @overload
    def embed(self, waveform: Tensor, sample_rate: int, kind: str) -> Tensor | tuple[Tensor, Tensor]: ...
    def embed(self, waveform: Tensor, sample_rate: int, kind: str = "scene") -> Tensor | tuple[Tensor, Tensor]:
        """One recording, [samples] or [channels, samples], at any rate: mixed to mono and resampled, then embedded.

        Returns the scene embedding [size], or for kind "timestamps" embeddings [n, size] and their centres [n] in ms.
        """
        from hear_jepa.files.embed import embed_waveform  # built on this class

        return embed_waveform(self, waveform, sample_rate, kind)

    def embed_files(self, paths: Iterable[str | Path], kind: str = "scene", **options) -> Iterator["Embedded"]:
        """Embed many files; yields each when it is done. See `hear_jepa.files.embed.embed_files`."""
        from hear_jepa.files.embed import embed_files

        return embed_files(self, paths, kind, **options)

    def embed_stream(self, blocks: Iterable[Tensor], sample_rate: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Embed a recording while it arrives. See `hear_jepa.files.live.embed_stream`."""
        from hear_jepa.files.live import embed_stream

        return embed_stream(self, blocks, sample_rate or self.sample_rate)

    # ---------------------------------------------------------------- the engine

    def encode_clips(self, clips: Sequence[Tensor] | Tensor, hop_ms: int) -> Iterator[tuple[int, Window, Tensor]]:
        """Encode 1-D clips of any lengths, their windows batched together.

        Yields, for every window of every clip (see `Grid.plan`), the clip's number, the window, and the embeddings of
        its new columns [n, size]. The windows of one clip come in no promised order.
        """
        batcher: WindowBatcher[int] = WindowBatcher(self)
        for number, clip in enumerate(clips):
            windows = self.grid.plan(len(clip), hop_ms)
            first_frame = min(window.start_frame for window in windows)
            last_frame = max(window.start_frame + window.n_frames for window in windows)
            spectrogram = self.spectrogram(clip, first_frame, last_frame - first_frame)
            for window in windows:
                start = window.start_frame - first_frame
                yield from batcher.add(number, window, spectrogram[:, start : start + window.n_frames])
        yield from batcher.flush()

    def encode_windows(self, spectrograms: Tensor, visible: Tensor | None = None) -> Tensor:
        """Log-mel windows [N, mels, T · patch_frames], T at most `grid.columns` -> columns [N, T, size], float32.

        visible: bool [N, T], the columns that the others may attend to; all of them without it.
        """
        patches = patchify(spectrograms, self.grid.patch_mels, self.grid.patch_frames)
        visible = None if visible is None else visible.repeat_interleave(self.grid.rows, dim=1)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            outputs = self.encoder(patches, layers=self.layers, visible=visible)
        return torch.cat([layer.float().unflatten(1, (-1, self.grid.rows)).flatten(2) for layer in outputs], dim=2)

    @torch.no_grad()
    def spectrogram(self, clip: Tensor, first_frame: int, n_frames: int) -> Tensor:
        """Log-mel [mels, n_frames] of a 1-D clip, silence outside it, computed a chunk at a time."""
        audio = clip[None].to(self.device, torch.float32)
        result = torch.empty(self.grid.n_mels, n_frames, device=self.device, dtype=torch.float32)
        for start in range(0, n_frames, SPECTROGRAM_CHUNK):
            count = min(SPECTROGRAM_CHUNK, n_frames - start)
            result[:, start : start + count] = self.log_mel.frames(audio, first_frame + start, count)[0]
        return result


class WindowBatcher(Generic[Key]):
    """Collects windows of any recordings until a batch of one length is full, and encodes it.

    What waits is bounded, however many lengths there are. `batch_columns`: columns encoded at once, by default those of
    the embedder's `batch_windows`.
    """

    def __init__(self, embedder: Embedder, batch_columns: float | None = None):
        self._embedder = embedder
        self._batch_columns = batch_columns or embedder.batch_windows * embedder.grid.columns
        self._waiting: dict[int, list[tuple[Key, Window, Tensor]]] = defaultdict(list)  # by number of columns

    def add(self, key: Key, window: Window, spectrogram: Tensor) -> Iterator[tuple[Key, Window, Tensor]]:
        """Take a window of the recording `key` and its log-mel [mels, frames].

        Yields (key, window, its new columns [n, size]) of every window that this makes encoded.
        """
        batch = self._waiting[window.n_columns]
        batch.append((key, window, spectrogram))
        if len(batch) * window.n_columns >= self._batch_columns:
            yield from self._encode(window.n_columns)
        while self._waiting_columns() >= WAITING_BATCHES * self._batch_columns:
            yield from self._encode(max(self._waiting, key=lambda length: length * len(self._waiting[length])))

    def flush(self) -> Iterator[tuple[Key, Window, Tensor]]:
        """Encode what is left."""
        for length in sorted(self._waiting):
            yield from self._encode(length)

    def _waiting_columns(self) -> int:
        return sum(length * len(batch) for length, batch in self._waiting.items())

    def _encode(self, length: int) -> Iterator[tuple[Key, Window, Tensor]]:
        batch = self._waiting.pop(length)
        windows = torch.stack([spectrogram for *_, spectrogram in batch])
        if len(batch) * length < FEWEST_COLUMNS:
            windows = F.pad(windows, (0, 0, 0, 0, 0, -(-FEWEST_COLUMNS // length) - len(batch)))
        columns = self._embedder.encode_windows(windows)[: len(batch)]
        for (key, window, _), embedded in zip(batch, columns, strict=True):
            yield key, window, embedded[window.first_new :]


def check_finite(embeddings: Tensor) -> Tensor:
    """Raise `AudioError` unless the embeddings [clips, …] are finite."""
    finite = torch.isfinite(embeddings).flatten(1).all(1)
    if not finite.all():
        clips = (~finite).nonzero().flatten().tolist()
        raise AudioError(
            f"the embeddings of clip {', '.join(map(str, clips[:8]))} of {len(finite)} are not finite: "
            "its samples are too large for float32, give audio in [-1, 1]"
        )
    return embeddings


def check_layers(layers: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Layers as numbers 0 … depth; negative ones count from the last."""
    chosen = [layers] if isinstance(layers, int) else layers
    numbers = isinstance(chosen, Sequence) and all(type(layer) is int for layer in chosen)
    if not numbers or not chosen or not all(abs(layer) <= depth for layer in chosen):
        raise OptionError(f"layers must be in 0 … {depth} or -{depth} … -1, one or a list, not {layers!r}")
    return tuple(layer if layer >= 0 else depth + 1 + layer for layer in chosen)


def check_batch_windows(batch_windows: int) -> int:
    """Raise `OptionError` unless it is a positive number of windows."""
    if type(batch_windows) is not int or batch_windows < 1:
        raise OptionError(f"batch_windows must be a whole number of at least 1, not {batch_windows!r}")
    return batch_windows
