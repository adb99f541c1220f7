"""Rebuild the small HEAR-format tasks of tests/tasks/ from freely licensed Debian packages.

    apt-get update
    python tests/tasks_from_debian.py --out tests/tasks --work-dir build/task-packages

Needs Debian (the shipped tasks come from release 12), `pip install numpy scipy soundfile` and about 1 GB of
disk under the work folder; no root. The same packages give the same samples. What the tasks are, where each
clip comes from and under which licence: tests/TASKS.md.
"""

import argparse
import csv
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from debian_audio import SAMPLE_RATE, decode, fit, resource_files, sound_catalogue, trim_start, unpack

PACKAGES = ("klettres-data", "hydrogen-data", "hydrogen-drumkits", "gcompris-qt-data", "openttd-opensfx")
TRAIN_VALID_TEST = {"split_mode": "trainvaltest", "splits": ["train", "valid", "test"]}
ENVIRONMENT_TABLE = Path(__file__).with_name("tasks_environment.csv")
SHORT_GRID = {"task_specific_param_grid": {"max_epochs": [30], "hidden_layers": [1]}}
EVENT_GRID = {"event_postprocessing_grid": {"median_filter_ms": [60], "min_duration": [60]}}


class Clip(NamedTuple):
    """One file of a task: its split, its name, its samples and its labels (names, or events with ms times)."""

    split: str
    name: str
    audio: np.ndarray
    labels: list


def spread(items: list, count: int) -> list:
    """At most `count` of `items`, evenly spaced."""
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]


# --- spoken_vowel: which vowel ends the syllable; every language is one speaker, in one split -----------------

SPEAKERS = {"train": ("es", "it", "ml"), "valid": ("ru", "uk"), "test": ("pt_BR", "tn")}
SYLLABLE = re.compile(r"(b|bh|ch|d|f|g|h|k|kh|l|m|n|p|r|s|sh|t|th|v|w|z)(aa|a|e|i|o|u)")
CLIPS_A_VOWEL = 9


def spoken_vowel(packages: dict[str, Path]) -> Iterator[Clip]:
    root = packages["klettres-data"] / "usr/share/klettres"
    for split, languages in SPEAKERS.items():
        for language in languages:
            recordings = sorted((root / language / "syllab").glob("*.ogg"))
            syllables = {path: SYLLABLE.fullmatch(path.stem) for path in recordings}
            for vowel in "aeiou":
                paths = [path for path, syllable in syllables.items() if syllable and syllable[2][0] == vowel]
                for path in spread(paths, CLIPS_A_VOWEL):
                    yield Clip(split, f"{language}-{path.stem}.flac", fit(trim_start(decode(path)), 0.6), [vowel])


# --- percussion_kind: which part of the drum set; a fold is one maker's kits ----------------------------------

KIT_FOLDS = {
    "fold00": {"The Black Pearl 1.0"},  # GMRockKit holds the same recordings and stays out
    "fold01": {"ForzeeStereo"},
    "fold02": {"Millo-Drums_v.1", "Millo_MultiLayered2", "Millo_MultiLayered3"},
    "fold03": {"ColomboAcousticDrumkit", "ElectricEmpireKit", "HardElectro1", "TR808EmulationKit", "VariBreaks"},
}
PARTS = {
    "kick": r"PearlKick-.*|Kick-\d|bd_?\d+|bassdrum-.*|EE_Kick_.*|HardHse_K_.*|PowR_BD_1|808_Kick_.*|VP Kick \d",
    "snare": r"PearlSnare-.*|Snare-\d|snare\d|[jr]snare_.*|sd_\d+|snare-.*normal.*|EE_Snare_.*|PowR_SN_1|808_Snare_\d"
    r"|VP Snare \d",
    "closed_hihat": r"SabianHatClosed-.*|HiHatClosed-\d|closehihat3|hhclosed_.*|hh_\d+|hihat-closed-.*|EE_Hat_Cl_.*"
    r"|(Hard_)?CHH_\d+|808_Hat_Closed|VP Hat \d Cl",
    "open_hihat": r"SabianHatOpen-.*|HiHatOpen-\d|openhat2|hhopen_.*|ho_\d+|hihat-open-.*|EE_Hat_Op_.*|Hard_Hse_OHH_1"
    r"|808_Hat_Open|VP Hat 1 Op",
    "tom": r"PearlTom.*|Tom(High|Mid|Low)-\d|tom\d_.|(floor)?tom_\d+|(ft|t1|t2)_\d+|tom-.*|808_Tom_.*|VP Tom .*",
    "crash": r"SabianCrash-.*|Crash18-\d|cra_Rock_a|crash|crash_\d+|cc_\d+|crash..i__crash\d?|808_Cymbal",
    "ride": r"PaisteRide-.*|PaisteRideFlink-.*|Ride-\d|RideBow-\d|ride\d|ride_\d+|rc_\d+|crash..i__ride\d",
}
HITS_A_FOLD = 8


def hits(packages: dict[str, Path], kits: Iterable[str], part: str) -> list[Path]:
    """The recordings of one part of the drum set in some kits, sorted."""
    folders = [packages[name] / "usr/share/hydrogen/data/drumkits" for name in ("hydrogen-data", "hydrogen-drumkits")]
    kit_files = (path for folder in folders for kit in sorted(kits) for path in (folder / kit).glob("*"))
    audio = (path for path in kit_files if path.suffix in (".wav", ".flac") and re.fullmatch(PARTS[part], path.stem))
    return sorted(audio, key=lambda path: (path.parent.name, path.name))


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text)


def percussion_kind(packages: dict[str, Path]) -> Iterator[Clip]:
    for fold, kits in KIT_FOLDS.items():
        for part in PARTS:
            for path in spread(hits(packages, kits, part), HITS_A_FOLD):
                stem = slug(f"{path.parent.name}-{path.stem}")
                yield Clip(fold, f"{stem}.flac", fit(trim_start(decode(path)), 0.8), [part])


# --- sound_source: what made the sound; a source recording stays in one fold ----------------------------------

FOLDS = ["fold00", "fold01", "fold02", "fold03", "fold04"]


def environment_audio(packages: dict[str, Path]) -> dict[str, bytes]:
    """Name of a source in the table -> the content of its file."""
    resources = packages["gcompris-qt-data"] / "usr/share/gcompris-qt/rcc"
    prefix = "gcompris/src/"
    found = {
        name.removeprefix(prefix): content
        for path in sorted(resources.glob("*.rcc"))
        for name, content in resource_files(path)
    }
    catalogue = packages["openttd-opensfx"] / "usr/share/games/openttd/baseset/opensfx/opensfx.cat"
    return found | {f"opensfx/{i:02d}": content for i, (_, content) in enumerate(sound_catalogue(catalogue))}


def segments(audio: np.ndarray, duration_s: float, most: int) -> list[np.ndarray]:
    """Consecutive pieces of `duration_s`; a last piece shorter than half of that, or a silent one, is dropped."""
    step = round(duration_s * SAMPLE_RATE)
    pieces = [audio[start : start + step] for start in range(0, len(audio), step)]
    loud = [piece for piece in pieces if np.abs(piece).max() > 0.1 * np.abs(audio).max()]
    return [piece for i, piece in enumerate(loud[:most]) if i == 0 or len(piece) >= step // 2]


def sound_source(packages: dict[str, Path]) -> Iterator[Clip]:
    audio = environment_audio(packages)
    with ENVIRONMENT_TABLE.open(newline="") as table:
        rows = list(csv.DictReader(table))
    for turn, label in enumerate(sorted({row["label"] for row in rows})):
        groups = dict.fromkeys(row["group"] for row in rows if row["label"] == label)
        fold_of = {group: FOLDS[(turn + i) % len(FOLDS)] for i, group in enumerate(groups)}
        for row in (row for row in rows if row["label"] == label):
            recording = trim_start(decode(audio[row["source"]]))
            stem = slug(f"{row['group']}-{Path(row['source']).stem}")
            for i, piece in enumerate(segments(recording, 1.5, most=3)):
                yield Clip(fold_of[row["group"]], f"{stem}-{i}.flac", fit(piece, 1.5), [label])


# --- percussion_events: drum hits over low noise; the splits share no kit -------------------------------------

EVENT_PARTS = ("closed_hihat", "crash", "kick", "snare", "tom")
EVENT_KITS = {
    "train": KIT_FOLDS["fold01"] | KIT_FOLDS["fold02"],
    "valid": KIT_FOLDS["fold03"],
    "test": KIT_FOLDS["fold00"],
}
EVENT_MIXTURES = {"train": 22, "valid": 8, "test": 12}
EVENT_DURATION_S = 4.0


def audible(audio: np.ndarray, floor_db: float = -30.0, longest_s: float = 0.5) -> int:
    """How many samples of a hit stay above `floor_db` of its peak, `longest_s` at most."""
    loud = np.flatnonzero(np.abs(audio) > 10 ** (floor_db / 20) * np.abs(audio).max())
    return min(int(loud[-1]) + 1, round(longest_s * SAMPLE_RATE))


def mixture(recordings: dict[str, list[np.ndarray]], rng: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
    """One recording of `EVENT_DURATION_S` with its events: hits 0.2 to 0.9 s apart, 18 dB of loudness range."""
    audio = rng.standard_normal(round(EVENT_DURATION_S * SAMPLE_RATE)) * 10 ** (rng.uniform(-68, -58) / 20)
    events = []
    start_s = rng.uniform(0.1, 0.8)
    while start_s < EVENT_DURATION_S - 0.5:
        part = EVENT_PARTS[rng.integers(len(EVENT_PARTS))]
        hit = recordings[part][rng.integers(len(recordings[part]))]
        start = round(start_s * SAMPLE_RATE)
        kept = hit[: len(audio) - start] / np.abs(hit).max() * 10 ** (rng.uniform(-21, -3) / 20)
        audio[start : start + len(kept)] += kept
        start_ms = 1000 * start / SAMPLE_RATE
        events.append({"label": part, "start": start_ms, "end": start_ms + 1000 * audible(hit) / SAMPLE_RATE})
        start_s += rng.uniform(0.2, 0.9)
    return audio / max(1.0, np.abs(audio).max() / 0.95), events


def percussion_events(packages: dict[str, Path]) -> Iterator[Clip]:
    rng = np.random.default_rng(20210)
    for split, kits in EVENT_KITS.items():
        recordings = {
            part: [trim_start(decode(path), lead_ms=0) for path in spread(hits(packages, kits, part), 12)]
            for part in EVENT_PARTS
        }
        for i in range(EVENT_MIXTURES[split]):
            yield Clip(split, f"{split}{i:02d}.flac", *mixture(recordings, rng))


# --- the folder of a task ------------------------------------------------------------------------------------

SCENE = {"embedding_type": "scene", "prediction_type": "multiclass", "evaluation": ["top1_acc"]}
EVENT = {
    "embedding_type": "event",
    "prediction_type": "multilabel",
    "evaluation": ["event_onset_200ms_fms", "segment_1s_er"],
}
TASKS = {
    "percussion_events-v1-small": (
        percussion_events,
        EVENT
        | TRAIN_VALID_TEST
        | {"domain": "event", "sample_duration": EVENT_DURATION_S, "evaluation_params": SHORT_GRID | EVENT_GRID},
    ),
    "percussion_kind-v1-small": (
        percussion_kind,
        SCENE | {"domain": "music", "split_mode": "presplit_kfold", "splits": list(KIT_FOLDS), "sample_duration": 0.8},
    ),
    "sound_source-v1-small": (
        sound_source,
        SCENE | {"domain": "environment", "split_mode": "new_split_kfold", "splits": FOLDS, "sample_duration": 1.5},
    ),
    "spoken_vowel-v1-small": (
        spoken_vowel,
        SCENE | TRAIN_VALID_TEST | {"domain": "speech", "sample_duration": 0.6},
    ),
}


def write_task(folder: Path, clips: Iterable[Clip], metadata: dict) -> int:
    """Write one task folder in HEAR's format; returns how many clips it holds."""
    shutil.rmtree(folder, ignore_errors=True)
    labels = {split: {} for split in metadata["splits"]}
    for clip in clips:
        path = folder / str(SAMPLE_RATE) / clip.split / clip.name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.round(clip.audio * 32767).astype(np.int16), SAMPLE_RATE, subtype="PCM_16")
        labels[clip.split][clip.name] = clip.labels
    for split, entries in labels.items():
        (folder / f"{split}.json").write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
    names = {
        item["label"] if isinstance(item, dict) else item
        for entries in labels.values()
        for items in entries.values()
        for item in items
    }
    rows = [f"{index},{label}" for index, label in enumerate(sorted(names))]
    (folder / "labelvocabulary.csv").write_text("\n".join(["idx,label", *rows]) + "\n")
    task_name, version, mode = folder.name.split("-")
    header = {"task_name": task_name, "version": version, "mode": mode, "source": "Debian 12"}
    header |= {"evaluation_params": SHORT_GRID} | metadata
    if metadata["split_mode"] != "trainvaltest":
        header["nfolds"] = len(labels)
    (folder / "task_metadata.json").write_text(json.dumps(header, indent=1) + "\n")
    return sum(map(len, labels.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the tasks; tasks of the same name go")
    parser.add_argument("--work-dir", type=Path, required=True, help="where packages are downloaded and unpacked")
    arguments = parser.parse_args()
    packages = {name: unpack(name, arguments.work_dir) for name in PACKAGES}
    for name, (clips, metadata) in TASKS.items():
        print(f"{name}: {write_task(arguments.out / name, clips(packages), metadata)} clips")


if __name__ == "__main__":
    main()
