"""Embedding on a Ray cluster: the shares of one output as tasks, and an actor for pipelines of Ray Data.

    hear-jepa embed /data/sounds --out /data/out --engine ray --address auto

The output is that of `--shard`: each task embeds one share into a part, and writes its manifest. Ray gives the task of
a worker that was killed to another one, which resumes the part.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch

from hear_jepa.api import load_model
from hear_jepa.device import choose_device
from hear_jepa.errors import AudioError, OptionError
from hear_jepa.files.embed import Embedded, embed_files, embed_waveform
from hear_jepa.files.records import TIMES
from hear_jepa.files.shards import DATASET, Shard, read_dataset, share_of
from hear_jepa.files.sounds import Sound, is_url

NEEDS_RAY = "--engine ray needs Ray: pip install 'ray[data]', or use --shard"
MOST_SHARES, FILES_A_SHARE = 256, 64
RETRIES = 5  # of a share whose workers are killed: a file that kills its decoder would go on for ever

Task = Callable[[Shard, list[Sound]], Any]
_Rows = tuple[numpy.ndarray, numpy.ndarray, str]  # embeddings [n, size], times [n, 1 or 2], error


def ray_or_advice() -> Any:
    """The library; raises OptionError, with what to install, where it is missing."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report home
    try:
        import ray
    except ImportError as error:
        raise OptionError(NEEDS_RAY) from error
    return ray


def shares_of(out: Path, sounds: Iterable[Sound]) -> dict[Shard, list[Sound]]:
    """Every share of an output, and its sounds: as many as the output has, or as the number of files asks for."""
    sounds = list(sounds)
    count = max(1, min(MOST_SHARES, len(sounds) // FILES_A_SHARE))
    if (out / DATASET).exists():
        count = read_dataset(out)["count"]
    shares: dict[Shard, list[Sound]] = {Shard(number, count): [] for number in range(count)}
    for sound in sounds:
        shares[share_of(sound, count)].append(sound)
    return shares


def run_tasks(
    task: Task, shares: dict[Shard, list[Sound]], address: str | None = None, n_gpus: float = 0
) -> Iterator[tuple[Shard, Any]]:
    """Run `task` for every share on a cluster; yield each share and its result as soon as it is there.

    address: of the cluster; without it the one of `RAY_ADDRESS`, one that runs on this machine, or a new one on it;
    n_gpus: that a task needs. A task that cannot be finished does not stop the others. Raises OptionError at the end
    where some were not finished, and what the task raises of that kind.
    """
    ray, lost = ray_or_advice(), {}
    with _cluster(ray, address):
        remote = ray.remote(num_cpus=1, num_gpus=n_gpus, max_retries=RETRIES)(_in_folder)
        waiting = {remote.remote(os.getcwd(), task, *share): share[0] for share in shares.items()}
        while waiting:
            for done in ray.wait(list(waiting))[0]:
                shard = waiting.pop(done)
                try:
                    yield shard, ray.get(done)
                except ray.exceptions.WorkerCrashedError as error:
                    lost[shard.index] = error
    if lost:
        raise OptionError(
            f"the workers of shares {', '.join(map(str, lost))} were killed {RETRIES + 1} times each: is the memory "
            "full, or does a file crash its decoder? The same command resumes"
        )


@contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to the cluster: the one that the caller has, or one that ends with this."""
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise OptionError(f"no Ray cluster answers at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _in_folder(folder: str, task: Task, shard: Shard, sounds: list[Sound]) -> Any:
    """What runs in a worker: paths are relative to the folder of the command."""
    os.chdir(folder)
    return task(shard, sounds)


class JepaActor:
    """Adds embeddings to the batches of a pipeline: `dataset.map_batches(JepaActor, fn_constructor_kwargs={...})`.

    column: of paths or URLs, or of waveforms [samples] or [channels, samples], whose rates are in `rate_column`;
    kind: "scene", "timestamps", or, of files, "windows"; device: "auto" takes the GPU that `num_gpus=1` of
        `map_batches` gives;
    serving: options of `load_model`; files: options of `Embedder.embed_files`, but for separate channels.
    Returns a row an embedding: the columns of its sound, without the waveform, `embedding` [size], `timestamp_ms` or
    `start_s` and `end_s`, and `error`, which is "" but for a sound that failed: that has one row, of NaN.
    Raises OptionError.
    """

    def __init__(
        self,
        column: str = "path",
        kind: str = "scene",
        model: str = "",
        device: str = "auto",
        rate_column: str = "sample_rate",
        serving: dict[str, Any] | None = None,
        files: dict[str, Any] | None = None,
    ):
        self._column, self._rate_column, self._kind, self._files = column, rate_column, kind, files or {}
        if self._files.get("channels") == "separate":
            raise OptionError("JepaActor mixes channels: leave channels='separate' out, or use `hear-jepa embed`")
        self._model = load_model(model, **(serving or {})).to(choose_device(device))

    def __call__(self, batch: dict[str, numpy.ndarray]) -> dict[str, numpy.ndarray]:
        values, kept = batch[self._column], dict(batch)
        if all(isinstance(value, str) for value in values):
            found = self._of_files(values)
        else:
            del kept[self._column]
            found = [self._of_waveform(*clip) for clip in zip(values, batch[self._rate_column], strict=True)]
        blank, no_times, _ = self._failed("")  # of an empty batch, what has no rows
        counts = numpy.array([len(embeddings) for embeddings, *_ in found], int)
        rows = {name: numpy.repeat(column, counts, axis=0) for name, column in kept.items()}
        rows["embedding"] = numpy.concatenate([blank[:0], *(embeddings for embeddings, *_ in found)])
        times = numpy.concatenate([no_times[:0], *(times for _, times, _ in found)])
        rows |= dict(zip(TIMES[self._kind], times.T, strict=True))
        rows["error"] = numpy.repeat(numpy.array([error for *_, error in found], dtype=str), counts)
        return rows

    def _of_files(self, paths: Iterable[str]) -> list[_Rows]:
        sounds = [Sound(path if is_url(path) else Path(path)) for path in map(str, paths)]
        found = {}
        for file in embed_files(self._model, sounds, self._kind, **self._files):
            found[file.path] = self._failed(file.error) if file.error is not None else self._rows(file)
        return [found[Path(sound.path)] for sound in sounds]

    def _of_waveform(self, waveform: Any, rate: float) -> _Rows:
        try:
            samples = numpy.array(waveform)
            if samples.dtype == object:  # an array of each channel's
                samples = numpy.stack(list(samples))
            audio = torch.as_tensor(samples)
            embedded = embed_waveform(self._model, audio, int(rate), self._kind)
        except AudioError as error:
            return self._failed(str(error))
        if isinstance(embedded, tuple):
            return embedded[0].cpu().numpy(), embedded[1].cpu().numpy()[:, None], ""
        return embedded[None].cpu().numpy(), numpy.array([[0.0, audio.shape[-1] / rate]]), ""

    def _rows(self, file: Embedded) -> _Rows:
        embeddings: numpy.ndarray = file.embeddings[0]
        if self._kind == "scene":
            return embeddings.reshape(1, -1), numpy.array([[0.0, file.duration_s]]), ""
        times = file.spans_s if self._kind == "windows" else numpy.asarray(file.timestamps_ms)[:, None]
        return embeddings, times, ""

    def _failed(self, error: str) -> _Rows:
        nothing = numpy.full((1, self._model.size_of(self._kind)), numpy.nan, "f4")
        return nothing, numpy.full((1, len(TIMES[self._kind])), numpy.nan), error
