"""What sound a study trains on: how much, and a fingerprint that stays the same wherever the corpus lies."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import soundfile

from hear_jepa.errors import CorpusError
from hear_jepa.files.folders import find_audio
from hear_jepa.train.data.sampler import find_manifest

MOST_PASSES = 100  # the paper's 300 epochs hear every second of AudioSet about 60 times


@dataclass(frozen=True)
class Sound:
    """Hours of sound, the fingerprint of the corpus, and whether all files were counted."""

    hours: float
    fingerprint: str
    complete: bool = True


def survey(source: str) -> Sound:
    """Of a folder of shards, local or remote, or of a plain folder of sounds. Raises CorpusError."""
    manifest = find_manifest(source)
    if manifest is None:
        return _of_folder(Path(source))
    return Sound(sum(manifest.hours.values()), _digest([asdict(shard) for shard in manifest.shards]))


def check_hours(sound: Sound, seconds: float, what: str) -> None:
    """Raise CorpusError where a run that hears so many seconds would hear the corpus over and over."""
    if not sound.complete:
        return
    passes = seconds / (3600 * max(sound.hours, 1e-9))
    if passes > MOST_PASSES:
        raise CorpusError(
            f"{what} hears {seconds / 3600:.1f} hours, the corpus has {sound.hours:.2f}: every second {passes:.0f} "
            f"times, and more than {MOST_PASSES} times is no pretraining; give more sound or fewer --crops"
        )


def _of_folder(folder: Path) -> Sound:
    seconds, content, complete = 0.0, [], True
    for path in find_audio(folder):
        content.append([path.relative_to(folder).as_posix(), path.stat().st_size])
        try:
            header = soundfile.info(path)
            seconds += header.frames / header.samplerate
        except soundfile.LibsndfileError:  # a format that ffmpeg may read: not counted
            complete = False
    return Sound(seconds / 3600, _digest(content), complete)


def _digest(content: list) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
