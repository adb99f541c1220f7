"""Claims about the study of the paper's tables:

* a row's options are the scale's with what its file says, and steps for equal seconds of sound; the main row at the
  scale `paper` is the preset, to the bit, other scales are the paper's recipe, shrunk; a file of one's own adds a row;
* what cannot work is refused before it starts, with the name of the file or option;
* a study that was killed in its middle and then shared over two processes gives the report of one that ran in one go;
* shares cover every run once, those of a SLURM array too, also of the array that `status` prints;
* intervals are Student's t; the report says agreement, disagreement and indecision of made-up results rightly.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import soundfile

from hear_jepa.errors import CorpusError, OptionError
from hear_jepa.files.shards import array_expression
from hear_jepa.train.config import PRESETS, differences, to_json
from hear_jepa.train.study import __main__ as study_command
from hear_jepa.train.study.claims import claims
from hear_jepa.train.study.plan import Study, missing_runs, read_results, read_study, share
from hear_jepa.train.study.report import markdown
from hear_jepa.train.study.rows import MAIN_ROW, find_rows, find_scale, resolve, seconds_of_sound
from hear_jepa.train.study.sound import check_hours, survey
from hear_jepa.train.study.statistics import Scores, interval

TASKS = Path(__file__).parent / "tasks"
SCALE = """
[encoder]
width = 32
depth = 2
heads = 2
frames = 96
[predictor]
width = 32
depth = 1
heads = 2
[optim]
steps = 20
batch_size = 4
base_lr = 0.03
[monitor]
log_every = 1
save_every = 3
pictures = false
[compute]
device = "cpu"
precision = "fp32"
threads = 1
"""


# ---------------------------------------------------------------- rows


def test_the_main_row_is_the_preset_and_other_scales_are_the_papers_recipe_shrunk():
    assert resolve(find_scale("paper"), MAIN_ROW, find_rows()[MAIN_ROW]) == PRESETS["paper"][1]
    sizes = ("encoder.width", "encoder.depth", "encoder.heads", "predictor.", "optim.steps", "optim.batch_size")
    rates = ("optim.base_lr", "optim.warmup_share", "ema.start", "ema.end", "compute.")
    for scale in ("tiny", "small"):
        changed = differences(to_json(PRESETS["paper"][1]), to_json(find_scale(scale)))
        assert all(line.startswith((*sizes, *rates)) for line in changed) and len(changed) > 8


def test_every_recipe_of_the_benchmarks_can_be_trained():
    benchmarks = Path(__file__).parents[1] / "benchmarks"
    scale, rows = find_scale(str(benchmarks / "recipes.toml")), find_rows(benchmarks / "recipes")
    configs = {name: resolve(scale, name, changes) for name, changes in rows.items()}
    assert {"4-masks", "smooth-l1", MAIN_ROW} < configs.keys()
    assert configs["4-masks"].mask.masks_per_crop == 4 and configs["smooth-l1"].loss.kind == "smooth-l1"


def test_a_row_is_the_scale_and_its_file():
    scale = find_scale("tiny")
    expected = {
        MAIN_ROW: {},
        "unstructured-latent": {"target.domain": "latent"},
        "multi-block-input": {"mask.strategy": "multi-block"},
        "multi-block-latent": {"mask.strategy": "multi-block", "target.domain": "latent"},
        "multi-block-5-rows": {"mask.strategy": "multi-block", "mask.target_aspect": [0.288, 0.577]},
        "time-input": {"mask.strategy": "time"},
        "time-latent": {"mask.strategy": "time", "target.domain": "latent"},
        "context-0.2": {"mask.context_share": 0.2},
        "context-0.6": {"mask.context_share": 0.6},
        "duration-3.2s": {"encoder.frames": 320, "optim.steps": 1950},
        "duration-6.4s": {"encoder.frames": 640, "optim.steps": 975},
        "untrained": {"optim.steps": 1, "optim.base_lr": 0.0, "monitor.collapse_every": 1},
    }
    rows = find_rows()
    assert rows.keys() == expected.keys()
    for name, changes in rows.items():
        config = resolve(scale, name, changes)
        changed = [line.split(": ", 1) for line in differences(to_json(scale), to_json(config))]
        assert {option: text.split(" -> ")[1] for option, text in changed} == {
            option: str(value) for option, value in expected[name].items()
        }
        if name == "untrained":
            continue
        assert seconds_of_sound(config) == pytest.approx(96_000 * 2.08)
        assert seconds_of_sound(resolve(scale, name, changes, crops=32_000)) == pytest.approx(32_000 * 2.08, rel=2e-3)


def test_a_file_adds_a_row(tmp_path):
    (tmp_path / "four-masks.toml").write_text("mask.masks_per_crop = 4\ndata.domain_weights = {speech = 1}")
    config = resolve(find_scale("tiny"), "four-masks", find_rows(tmp_path)["four-masks"])
    assert config.mask.masks_per_crop == 4 and config.data.domain_weights == {"speech": 1.0}


REFUSED = [
    ("mask.startegy = 'time'", r"mine\.toml: unknown option mask\.startegy; there are .*strategy"),
    ("masks.strategy = 'time'", r"mine\.toml: unknown option masks; there are .*mask"),
    ("mask = 'time'", r"mine\.toml: mask is 'time': it must be a section"),
    ("mask.strategy = 'thyme'", r"mine\.toml: .*choose from unstructured"),
    ("target.domain = 'middle'", r"mine\.toml: target\.domain is 'middle': choose from input, latent"),
    ("encoder.width = '192'", r"mine\.toml: encoder\.width is '192': it must be int"),
    ("mask.target_scale = [0.1]", r"mine\.toml: mask\.target_scale is \[0\.1\]: it must be a list of 2"),
    ("encoder.frames = 200", r"mine\.toml: .*multiple"),
    ("seed = 3", r"mine\.toml sets seed: the study does"),
    ("mask.strategy = time", r"mine\.toml is not readable TOML"),
]


def test_what_a_row_must_not_say(tmp_path):
    for text, message in REFUSED:
        (tmp_path / "mine.toml").write_text(text)
        with pytest.raises(OptionError, match=message):
            resolve(find_scale("tiny"), "mine", find_rows(tmp_path)["mine"])


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Options of a study of seconds: thirty shipped clips to train on, and a shipped task, cut down, to probe."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "scale.toml").write_text(SCALE)
    (folder / "sounds").mkdir()
    for clip in sorted((TASKS / "percussion_events-v1-small" / "16000" / "train").iterdir())[:20]:
        shutil.copy(clip, folder / "sounds")
    cut_task(TASKS / "spoken_vowel-v1-small", folder / "tasks" / "spoken_vowel-v1-small", clips=12)
    options = {"scale": folder / "scale.toml", "data": folder / "sounds", "tasks": folder / "tasks", "seeds": 1}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return ["run", *arguments, "--rows", MAIN_ROW, "time-latent"]


def cut_task(source, target, clips):
    """The first clips of every split of a task."""
    shutil.copytree(source, target, ignore=lambda folder, names: names if re.search(r"\d$", folder) else [])
    for split in ("train", "valid", "test"):
        labels = dict(list(json.loads((source / f"{split}.json").read_text()).items())[::3][:clips])
        (target / f"{split}.json").write_text(json.dumps(labels))
        (target / "16000" / split).mkdir(parents=True)
        for name in labels:
            shutil.copy(source / "16000" / split / name, target / "16000" / split)


def table(out):
    """The report, without what it cost."""
    study = read_study(out)
    return markdown(study, read_results(out, study)).partition("## Cost")[0]


# Dies by SIGKILL in the second run, before its step 8.
DIES = """
import os, signal, sys
from hear_jepa.train import loop
from hear_jepa.train.study import __main__ as study

step = loop.Run.take_step
loop.Run.take_step = lambda run, audio: (
    os.kill(os.getpid(), signal.SIGKILL) if run.step == 8 and "time-latent" in str(run.config.out) else step(run, audio)
)
sys.exit(study.main(sys.argv[1:]))
"""


def test_killed_and_shared_gives_the_table_of_one_go(inputs, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert study_command.main([*inputs, "--out", str(whole)]) == 0

    killed = subprocess.run([sys.executable, "-c", DIES, *inputs, "--out", str(parts)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    log = parts / "runs" / "time-latent" / "seed-0" / "metrics.jsonl"
    assert log.read_text().count("cosine") == 8

    assert study_command.main(["status", str(parts)]) == 0
    assert capsys.readouterr().out.strip() == "1"
    first = parts / "results" / f"{MAIN_ROW}.seed-0.json"
    finished_at = first.stat().st_mtime_ns
    for shard in ("1/2", "0/2"):
        assert study_command.main([*inputs, "--out", str(parts), "--shard", shard]) == 0
    assert first.stat().st_mtime_ns == finished_at  # what is finished is kept
    assert table(parts) == table(whole)
    assert "2 of 2 runs" in table(whole) and re.search(r"time-latent \| -?[\d.]+", table(whole))
    assert missing_runs(parts, read_study(parts)) == []
    assert not list(parts.rglob("*.pt"))  # states go with the result

    assert study_command.main(["report", str(parts)]) == 0
    assert (parts / "report.png").stat().st_size > 10_000
    assert study_command.main([*inputs, "--out", str(parts), "--crops", "40"]) == 2  # other settings
    assert study_command.main([*inputs, "--out", str(parts), "--seeds", "2", "--shard", "0/9"]) == 0  # nothing left
    assert missing_runs(parts, read_study(parts)) == [2, 3]


def test_what_cannot_work_is_refused_before_it_starts(inputs, tmp_path, capsys):
    tasks = shutil.copytree(inputs[inputs.index("--tasks") + 1], tmp_path / "tasks")
    (tasks / "spoken_vowel-v1-small" / "valid.json").unlink()
    for options, message in [
        (["--crops", "100000"], r"row unstructured-input hears 26\.7 hours, the corpus has 0\.02"),
        (["--rows", "structured-input"], "--rows is 'structured-input': choose from unstructured-input"),
        (["--scale", "large"], "--scale is 'large': choose from paper, small, tiny"),
        (["--shard", "2/2"], "--shard must be I/N .*not 2/2"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--tasks", str(tasks)], "valid.json"),
    ]:
        assert study_command.main([*inputs, "--out", str(tmp_path / "out"), *options]) == 2
        assert re.search(message, capsys.readouterr().err)
        assert not (tmp_path / "out" / "runs").exists()


def test_hours_are_checked_only_where_all_files_can_be_counted(tmp_path):
    path = tmp_path / "0.wav"
    soundfile.write(path, numpy.zeros(16000), 16000)
    with pytest.raises(CorpusError, match=r"the corpus has 0\.00"):
        check_hours(survey(str(tmp_path)), 1e6, "row x")
    path.rename(path.with_suffix(".m4a"))
    path.with_suffix(".m4a").write_bytes(b"read by ffmpeg alone")
    check_hours(survey(str(tmp_path)), 1e6, "row x")


def test_the_dry_run_measures_and_starts_nothing(inputs, tmp_path, capsys):
    arguments = [*inputs[: inputs.index("--rows")], "--rows", MAIN_ROW, "--out", str(tmp_path / "out"), "--dry-run"]
    assert study_command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\| unstructured-input \| 80 \| [\d.]+ \| 0\.0\d \|", printed)
    assert re.search("1 runs? on one process", printed) and re.search(r"Memory: 0\.[1-9] GB|Memory: [1-9]", printed)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- shares


def test_shares_cover_every_run_once():
    runs = list(range(11))
    assert sorted(sum((share(runs, f"{i}/4", {}) for i in range(4)), [])) == runs
    assert share(runs, None, {}) == runs

    def array(task, count, last):
        names = {"ID": task, "COUNT": count, "MAX": last}
        return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}

    assert sorted(sum((share(runs, None, array(i, 4, 3)) for i in range(4)), [])) == runs  # --array=0-3
    missing = [2, 3, 7, 10]
    assert array_expression(missing) == "2-3,7,10"
    assert [share(runs, None, array(i, 4, 10)) for i in missing] == [[2], [3], [7], [10]]
    assert share(runs, "0/2", array(7, 4, 10)) == runs[::2]  # what the user says comes first
    assert array_expression([]) == ""


# ---------------------------------------------------------------- report


def results_of(rows, tasks=None):
    """Results by row: one score a seed of every task (default: of one), or one a task and seed."""
    tasks = tasks or {"esc10-v1": "environment"}
    for row, seeds in rows.items():
        for seed, scores in enumerate(seeds):
            scores = scores if isinstance(scores, tuple) else (scores,) * len(tasks)
            yield {
                "row": row,
                "seed": seed,
                "scores": {
                    task: {"category": category, "valid": 0.0, "test": float(score)}
                    for (task, category), score in zip(tasks.items(), scores, strict=True)
                },
                "collapse": {"rank_me": 100.0 + seed, "content_std": 0.5, "position_share": 0.25},
                "width": 192,
                "hours_of_training": 0.5,
                "machine": "a made-up machine",
                "version": "0",
            }


def test_the_interval_is_students():
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.half_width == pytest.approx(4.303 / 3**0.5, abs=1e-3)  # t of 2 degrees: 4.303
    assert interval([5.0]).verdict == "undecided"  # one seed decides nothing
    assert replace(found, half_width=1.99).verdict == "agrees"
    assert replace(found, half_width=2.01).verdict == "undecided"
    assert replace(found, mean=-2.0, half_width=1.99).verdict == "disagrees"


def test_claims_are_judged_rightly():
    rows = {
        # the same large steps from seed to seed everywhere: only the paired difference can tell
        "unstructured-input": [60, 70, 80],
        "multi-block-input": [58.1, 67.9, 78.0],
        "time-input": [61.9, 72.1, 82.0],
        "unstructured-latent": [62, 69, 80.5],
        "multi-block-latent": [50],
    }
    verdicts = {claim.measured: claim for claim in claims(Scores(list(results_of(rows))))}
    assert verdicts["unstructured-input − multi-block-input"].verdict == "agrees"
    assert verdicts["unstructured-input − multi-block-input"].difference.mean == pytest.approx(2.0)
    assert verdicts["unstructured-input − time-input"].verdict == "disagrees"
    assert verdicts["unstructured-input − unstructured-latent"].verdict == "undecided"
    assert verdicts["multi-block-input − multi-block-latent"].verdict == "undecided"  # one seed in common
    assert verdicts["time-input − time-latent"].verdict == "not measured"
    assert verdicts["mean of the three"].verdict == "not measured"


def test_tasks_that_gain_and_lose_with_duration():
    tasks = {"esc10-v1": "environment", "speech_commands-9words": "speech", "mridangam_stroke-9strokes": "music"}
    short = [(50, 90, 95), (51, 91, 95), (50, 90, 96)]
    rows = {MAIN_ROW: short, "duration-6.4s": [(a + 3, b + 2, c) for a, b, c in short]}
    rows["duration-6.4s"][0] = (53.1, 92.1, 95)
    found = {claim.text: claim for claim in claims(Scores(list(results_of(rows, tasks)))) if "longer" in claim.text}
    gains, loses = (
        "ESC-50 gains from longer crops; here esc10-v1",
        "SPCV2 loses by longer crops; here speech_commands-9words",
    )
    assert found.keys() == {gains, loses}  # the paper says nothing on the third
    assert found[gains].verdict == "agrees" and found[gains].published == "+0.7"
    assert found[loses].verdict == "disagrees" and found[loses].published == "+2.1"


def test_the_report_holds_what_was_measured_and_what_is_published():
    tasks = {"esc10-v1": "environment", "ravdess_emotion-v1": "speech", "speech_commands-9words": "speech"}
    rows = {MAIN_ROW: [(60, 40, 80), (62, 42, 82)], "time-input": [(59, 40, 80), (61, 42, 82)]}
    study = Study("tiny", to_json(find_scale("tiny")), 96_000, "", 28.3, dict.fromkeys(tasks, ""), 2, find_rows())
    text = markdown(study, list(results_of(rows, tasks)))
    main = next(line for line in text.splitlines() if line.startswith(f"| {MAIN_ROW} | 61.0"))
    assert [cell.split(" ±")[0] for cell in main.split(" | ")[1:]] == ["61.0", "41.0", "81.0", "61.0", "61.0"]
    assert "| time-input | -1.0 ± 0.0 | +0.0 ± 0.0 | +0.0 ± 0.0 | +0.0 ± 0.0 | -0.3 ± 0.0 |" in text
    assert "| unstructured-input | 100.5 (100.0–101.0) | 192 | 0.50 (0.50–0.50) | 25 (25–25) |" in text
    assert "## Published, not measured here" in text and "| 6.4 s | 90.0 | 87.7 | 92.8 |" in text
    assert "2.0 hours of training on a made-up machine" in text and "4 of 24 runs" in text
    recipes = {MAIN_ROW: rows[MAIN_ROW], "of-my-own": rows["time-input"]}  # nothing that the paper compares
    text = markdown(study, list(results_of(recipes, tasks)))
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Rows",
        "## Less the main row, paired by seed",
        "## Collapse",
        "## Cost",
    ]
    assert "| of-my-own | -1.0 ± 0.0 |" in text and ".png" not in text
