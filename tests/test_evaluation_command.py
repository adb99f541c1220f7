"""`hear-jepa evaluate` from end to end.

* Every model × protocol × task gives a cell, but for retrieval on event tasks; one failing run never loses the others;
  a user's mistake is exit code 2 and one line, before any model runs.
* A run killed in the middle and run again gives the table of one that was not, and embeds no finished task again.
* `--splits valid` stores no test score; audio at a model's own rate is scored anew once it is there.
* A domain's mean is over all its tasks, or missing; published rows stand apart and only for official HEAR tasks.
* The table is made again from results.json, also into a document, and is the same.
"""

import json
from dataclasses import replace

import pytest
from evaluation_fixtures import FAKE_MODULE, write_event_task, write_scene_task

from hear_jepa.cli import main
from hear_jepa.evaluation.resample import resampled_copy
from hear_jepa.evaluation.results import BEGIN, END
from hear_jepa.evaluation.runs import RunResult
from hear_jepa.evaluation.table import columns_of, domain_means, markdown, published_rows, short_names
from hear_jepa.evaluation.tasks import read_task

TASKS = ("speech_tones-v1", "esc_tones-v1", "percussion_tones-v1")
KILLED_MODULE = (
    FAKE_MODULE
    + """
embed = get_scene_embeddings

def get_scene_embeddings(audio, model):
    if (LOG.parent / "kill").exists() and LOG.exists() and len(LOG.read_text().split()) > 12:
        raise KeyboardInterrupt
    return embed(audio, model)
"""
)


@pytest.fixture
def room(tmp_path, monkeypatch):
    """A folder with tasks, a fake module and a broken one, where the command is run."""
    name = f"fake_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(KILLED_MODULE)
    (tmp_path / f"broken_{tmp_path.name}.py").write_text("def load_model(path=''):\n    raise MemoryError('too big')\n")
    write_scene_task(tmp_path / "tasks" / "speech_tones-v1")
    write_scene_task(tmp_path / "tasks" / "esc_tones-v1", ("fold00", "fold01", "fold02"), clips=8)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def evaluate(room, *arguments, out="out", models=None):
    """By nearest neighbours, the quickest, unless the arguments say otherwise."""
    models = models or [f"fake_{room.name}"]
    arguments = arguments if "--protocol" in arguments else (*arguments, "--protocol", "knn")
    common = ["evaluate", "--tasks-dir", str(room / "tasks"), "--out", str(room / out), "--models", *models]
    return main([*common, *arguments])


def measured(room, out="out"):
    return json.loads((room / out / "results.json").read_text())["measured"]


def test_all_runs_are_scored(room):
    write_event_task(room / "tasks" / "percussion_tones-v1")
    assert evaluate(room, "--protocol", "linear", "knn", "retrieval") == 0
    results = measured(room)
    expected = {(task, protocol) for task in TASKS for protocol in ("linear", "knn", "retrieval")}
    assert {(r["task"], r["protocol"]) for r in results} == expected - {("percussion_tones-v1", "retrieval")}
    for result in results:
        score = result["scores"][result["score"]]
        assert score["test"]["mean"] > 0.8, (result["task"], result["protocol"], score)
        assert len(result["sha256"]) == 64 and result["embedding_size"] == 16
    runs = {(r["task"], r["protocol"]): len(r["scores"][r["score"]]["test"]["runs"]) for r in results}
    assert runs["speech_tones-v1", "linear"] == runs["esc_tones-v1", "linear"] == runs["esc_tones-v1", "knn"] == 3
    assert runs["speech_tones-v1", "knn"] == 1  # it has no seed
    table = (room / "out" / "results.md").read_text()
    assert (
        "| esc_tones<br>accuracy | speech_tones<br>accuracy | percussion_tones<br>onset F, 200 ms | **scenes** |"
        in table
    )
    assert (room / "out" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_failing_run_loses_no_other(room, caplog):
    fake, broken = f"fake_{room.name}", f"broken_{room.name}"
    (room / "deaf").write_text("0.0")
    deaf = f"{fake}:{room / 'deaf'}"
    assert evaluate(room, models=[broken, fake, deaf, "no_such_module"]) == 1
    errors = {result["model"]: result["error"] for result in measured(room)}
    assert errors == {broken: "MemoryError: too big", fake: "", deaf: "", "no_such_module": errors["no_such_module"]}
    heard = {r["model"]: r["scores"]["top1_acc"]["test"]["mean"] for r in measured(room) if not r["error"]}
    assert heard[fake] > 0.8 and heard[deaf] < 0.5  # two weights files of one module have a row of their own
    assert "cannot import no_such_module" in errors["no_such_module"]
    table = (room / "out" / "results.md").read_text()
    assert f"| {broken} | knn | – | – | – | – |" in table and "MemoryError: too big" in table


@pytest.mark.parametrize(
    ("spoil", "arguments", "said"),
    [
        (lambda room: (room / "tasks" / "esc_tones-v1" / "fold01.json").unlink(), [], "fold01.json"),
        (lambda room: None, ["--tasks", "gtzan"], "no task 'gtzan'"),
        (lambda room: None, ["--models", "hear_jepa:tiny,hop"], "OPTION=VALUE"),
        (lambda room: None, ["--protocol", "hear", "--splits", "valid"], "--splits valid"),
    ],
)
def test_mistakes_are_told_before_any_model_runs(room, capsys, spoil, arguments, said):
    spoil(room)
    assert evaluate(room, *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (room / f"fake_{room.name}.log").exists() and not (room / "out").exists()


def test_killed_and_run_again_gives_the_same_table(room):
    assert evaluate(room, out="whole") == 0
    log = room / f"fake_{room.name}.log"
    log.unlink()
    (room / "kill").touch()
    assert evaluate(room, out="killed") == 130
    finished = len(measured(room, "killed"))
    assert finished == 1
    (room / "kill").unlink()
    log.unlink()
    assert evaluate(room, out="killed") == 0
    assert (room / "killed" / "results.md").read_text() == (room / "whole" / "results.md").read_text()
    embedded = sum(map(int, log.read_text().split()))
    assert 0 < embedded <= 36  # nothing of the finished task
    log.unlink()
    assert evaluate(room, out="killed") == 0
    assert not log.exists()


def test_validation_alone_stores_no_test_score_and_a_log_file_gets_one_line_a_run(room, caplog, capsys):
    assert evaluate(room, "--splits", "valid") == 0
    (line,) = [record.getMessage() for record in caplog.records if "speech_tones" in record.getMessage()]
    assert f"/2 fake_{room.name} speech_tones-v1 knn: " in line and "%" in line
    assert "\r" not in capsys.readouterr().err
    assert all(set(score) == {"valid"} for result in measured(room) for score in result["scores"].values())
    embedded = {path.stem for path in (room / "out" / "embeddings").rglob("speech_tones*/*.npz")}
    assert embedded == {"train", "valid"}
    assert evaluate(room) == 0  # the same folder, later
    assert all(set(score) == {"valid", "test"} for result in measured(room) for score in result["scores"].values())


def test_audio_at_the_models_own_rate_is_heard_as_soon_as_it_is_there(room):
    """The score of resampled audio does not stand for it, and it is checked as the rest is."""
    slow = f"slow_{room.name}"
    (room / f"{slow}.py").write_text(FAKE_MODULE.replace("sample_rate = 16000", "sample_rate = 8000"))
    assert evaluate(room, "--tasks", "speech_tones", models=[slow]) == 0
    folder = room / "tasks" / "speech_tones-v1"
    copy = resampled_copy(read_task(folder), 8000, room / "8000Hz")
    (copy / "8000").rename(folder / "8000")
    assert evaluate(room, "--tasks", "speech_tones", models=[slow]) == 0
    assert len(list((room / "out" / "runs").rglob("*.json"))) == 2
    next((folder / "8000" / "test").iterdir()).unlink()
    assert evaluate(room, "--tasks", "speech_tones", models=[slow]) == 1
    assert "8000" in measured(room)[0]["error"]


def result(task, mean, model="m", domain="speech", **parts):
    scores = {"top1_acc": {"test": {"mean": mean, "std": 0.0, "runs": [mean]}}}
    return RunResult(model, task, "linear", domain, "top1_acc", scores=scores, embedding_size=8, **parts)


def test_domain_mean_needs_all_its_tasks():
    every = [result("speech_a-v1", 0.5), result("speech_b-v1", 0.7), result("esc-v1", 0.1, domain="environment")]
    columns = columns_of(every)
    assert [column.name for column in columns] == ["esc-v1", "speech_a-v1", "speech_b-v1"]
    assert domain_means({"speech_a-v1": 50.0, "speech_b-v1": 70.0}, columns) == {"speech": 60.0}
    assert domain_means({"speech_a-v1": 50.0, "esc-v1": 10.0}, columns) == {"environment": 10.0}
    table = markdown([*every[:2], replace(every[2], scores={}, error="deaf")], "test")
    assert "| m | linear | 8 | – | 50.0 | 70.0 | – | 60.0 | – |" in table
    assert "* m, esc-v1, linear: deaf" in table


def test_the_table_is_made_again_from_results_json(room, capsys):
    assert evaluate(room, "--protocol", "knn", "retrieval") == 0
    stored, document = room / "out" / "results.json", room / "README.md"
    assert main(["evaluate", "--table", str(stored)]) == 0
    table = capsys.readouterr().out
    assert table == (room / "out" / "results.md").read_text()
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        assert main(["evaluate", "--table", str(stored), "--into", str(document)]) == 0
        assert document.read_text() == f"before\n{BEGIN}\n{table}{END}\nafter\n"
    document.write_text("no marks")
    assert main(["evaluate", "--table", str(stored), "--into", str(document)]) == 2
    assert document.read_text() == "no marks" and BEGIN in capsys.readouterr().err


def test_published_scores_are_of_official_tasks_alone():
    part = result("speech_commands-9words", 0.9)
    official = result("esc50-v2.0.0-full", 0.5, domain="environment")
    assert published_rows(columns_of([part])) == []
    rows = published_rows(columns_of([official, part]))
    assert {row.label: row.cells for row in rows}["OpenL3"] == {"esc50-v2.0.0-full": 75.1}
    assert all(row.source for row in rows)
    table = markdown([official, part], "test")
    apart = table[table.index("not measured here") :]
    assert "OpenL3 | 75.1 | – | HEAR 2021 leaderboard" in apart and "OpenL3" not in table.removesuffix(apart)


def test_names_lose_their_version_unless_it_tells_two_apart():
    columns = columns_of([result("nsynth_pitch-v2-5h", 1), result("nsynth_pitch-v2-50h", 1), result("esc50-v2", 1)])
    assert list(short_names(columns).values()) == ["nsynth_pitch-v2-5h", "nsynth_pitch-v2-50h", "esc50"]
