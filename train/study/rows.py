"""A scale and a row -> the options of a run. Scales and rows are TOML files that hold only what differs.

A scale names a preset of `hear_jepa.train.config` and what differs from it; a row what differs from the scale. Options
have the names of the command line's: `mask.strategy = "time"`.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from hear_jepa.errors import OptionError
from hear_jepa.options import changed, choose
from hear_jepa.train.config import PRESETS, TrainConfig, check

if sys.version_info >= (3, 11):  # noqa: UP036 (ruff is not told that 3.10 is served)
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

MAIN_ROW = "unstructured-input"  # the paper's main setting, which the scale itself describes
SET_BY_THE_STUDY = ("out", "resume", "seed")
SHIPPED = Path(str(files("hear_jepa.train.study")))


def find_rows(folder: Path | None = None) -> dict[str, dict[str, Any]]:
    """What differs in each row, by the row's name; the shipped ones, and those of the folder's *.toml files.

    Raises OptionError for a folder without any, and for a name that is there already.
    """
    rows = {path.stem: read_toml(path) for path in sorted((SHIPPED / "rows").glob("*.toml"))}
    rows = {MAIN_ROW: rows.pop(MAIN_ROW)} | rows
    if folder is None:
        return rows
    added = sorted(folder.glob("*.toml"))
    if not added:
        raise OptionError(f"--rows-dir {folder} holds no *.toml: a row is one file, with what differs from the scale")
    for path in added:
        if path.stem in rows:
            raise OptionError(f"{path}: there is a row {path.stem} already; give the file another name")
        rows[path.stem] = read_toml(path)
    return rows


def find_scale(name: str) -> TrainConfig:
    """The options that all rows of a scale share: of a shipped scale, or of a TOML file of one's own."""
    shipped = {path.stem: path for path in sorted((SHIPPED / "scales").glob("*.toml"))}
    path = Path(name) if name.endswith(".toml") else choose(shipped, name, "--scale")
    content = read_toml(path)
    preset = content.pop("preset", "paper")
    _, config = choose(PRESETS, preset, f"{path}: preset")
    with _named(path):
        return changed(config, content)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file's content; raises OptionError with the file's name."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} is not readable TOML: {error}") from error


def resolve(scale: TrainConfig, row: str, changes: Mapping[str, Any], crops: int | None = None) -> TrainConfig:
    """The options of a row's run. Its steps are those in which it hears as many seconds of sound as the main row hears
    in `crops` crops (none: in the scale's own steps).

    Raises OptionError, with the row's name, for an unknown option or a value out of range.
    """
    where = f"{row}.toml"
    for name in SET_BY_THE_STUDY:
        if name in changes:
            raise OptionError(f"{where} sets {name}: the study does")
    with _named(where):
        config = changed(scale, changes)
        if "steps" not in changes.get("optim", {}):
            config = replace(config, optim=replace(config.optim, steps=_steps(scale, config, crops)))
        last_look = min(config.monitor.collapse_every, config.optim.steps)  # a short run is looked at once, at its end
        config = replace(config, monitor=replace(config.monitor, collapse_every=last_look))
        check(config)
    return config


@contextmanager
def _named(where: str | Path) -> Iterator[None]:
    """Errors of options begin with the name of their file."""
    try:
        yield
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from error


def _steps(scale: TrainConfig, config: TrainConfig, crops: int | None) -> int:
    frames = (crops or scale.optim.steps * scale.optim.batch_size) * scale.encoder.frames
    return max(1, round(frames / (config.optim.batch_size * config.encoder.frames)))


def seconds_of_sound(config: TrainConfig) -> float:
    crop_s = config.encoder.frames * config.front_end.hop_length / config.front_end.sample_rate
    return config.optim.steps * config.optim.batch_size * crop_s
