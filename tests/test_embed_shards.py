"""One output, written by many machines.

* Every sound is in one share, whatever the machine calls the folder; the parts together hold what one run gives.
* Shares that were killed are missing until they are run again; `--status` names them as SLURM's --array takes them.
* pyarrow reads the parts as one table, columns of a table of inputs too.
* A part of another command is refused, and so is a folder that holds anything else.
"""

import signal
import subprocess
import sys

import numpy
import pytest
import soundfile

from hear_jepa.cli import main
from hear_jepa.errors import OptionError
from hear_jepa.files.find import find_sources
from hear_jepa.files.formats import load_embeddings
from hear_jepa.files.shards import Shard, array_expression, parse_shard

N_SHARDS = 8
KILLED = """
import os, signal, sys
from hear_jepa import cli
from hear_jepa.files import store
where = sys.argv[1]
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "embedding":
    store.EmbeddingStore.end = die
else:
    import hear_jepa.commands.embed as command
    command.write_manifest = die
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def sounds(tmp_path_factory, minute):
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(16):
        soundfile.write(folder / f"{number:02d}.wav", minute[9000 * number :][: 4000 + 700 * number].numpy(), 16000)
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


def test_the_parts_are_what_one_run_gives(tmp_path, sounds, weights, capsys, monkeypatch):
    parquet = pytest.importorskip("pyarrow.dataset")
    table = tmp_path / "table.csv"
    monkeypatch.chdir(sounds)  # shares go by the path as it is named: here the same on every machine
    lines = [f"{path.name},{number % 3},{number}" for number, path in enumerate(sorted(sounds.iterdir()))]
    table.write_text("\n".join(["path,label,id", *lines, "03.wav,excerpt,99"]) + "\n")
    out = tmp_path / "out"
    command = ["embed", str(table), "--model", weights, "--kind", "timestamps"]
    assert main([*command, "--out", str(tmp_path / "one.npz")]) == 1
    one = load_embeddings(tmp_path / "one.npz")

    sharded = [*command, "--out", str(out), "--shard"]
    for index in (1, 3, 4, 5, 7):
        assert main([*sharded, f"{index}/{N_SHARDS}"]) in (0, 1)
    for where, index in [("embedding", 0), ("manifest", 6)]:
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, where, *sharded, f"{index}/{N_SHARDS}"], check=False, capture_output=True
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    capsys.readouterr()
    assert main(["embed", "--status", str(out)]) == 1
    assert capsys.readouterr().out == "5 of 8 parts are finished\nmissing: --array=0,2,6\n"
    for index in (0, 2, 6):
        assert main([*sharded, f"{index}/{N_SHARDS}", *(["--append"] if index == 6 else [])]) in (0, 1)
    capsys.readouterr()
    assert main(["embed", "--status", str(out)]) == 0 and "8 of 8" in capsys.readouterr().out

    found = load_embeddings(out)
    order = [found.columns["id"].index(name) for name in one.columns["id"]]
    assert sorted(order) == list(range(len(one.paths))) and found.failed == one.failed
    assert [found.columns["label"][n] for n in order] == one.columns["label"]
    for number, place in enumerate(order):
        numpy.testing.assert_allclose(found.embeddings[place], one.embeddings[number], atol=1e-5)
        numpy.testing.assert_array_equal(found.timestamps_ms[place], one.timestamps_ms[number])
    rows = parquet.dataset(out, format="parquet").to_table()
    assert len(rows) == sum(map(len, one.embeddings)) + 1 and {"label", "id"} <= set(rows.column_names)


def test_every_sound_is_in_one_share_wherever_the_folder_is(sounds, monkeypatch):
    named = find_sources([sounds]).sounds
    monkeypatch.chdir(sounds)
    shares = [[sound for sound in find_sources(["."]).sounds if Shard(n, 5).takes(sound)] for n in range(5)]
    assert sorted(sound.name for share in shares for sound in share) == sorted(sound.name for sound in named)
    for number, share in enumerate(shares):
        assert [sound.name for sound in named if Shard(number, 5).takes(sound)] == [sound.name for sound in share]


def test_what_does_not_belong_together_is_refused(tmp_path, sounds, weights, capsys):
    out = str(tmp_path / "out")
    command = ["embed", str(sounds), "--model", weights, "--out", out, "--format", "npz"]
    assert main([*command, "--shard", "0/9"]) in (0, 1)
    for other, message in [
        (["--shard", "1/8"], "other count"),
        (["--shard", "1/9", "--layers", "1"], "other layers"),
        (["--shard", "0/9"], "exists already"),
        ([], "exists"),
    ]:
        assert main([*command[:-2], *([] if not other else command[-2:]), *other]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main([*command, "--shard", "1/9"]) == 2 and "notes.txt" in capsys.readouterr().err
    assert main(["embed", "--status", str(sounds)]) == 2


def test_shards_and_arrays_are_read_and_written_as_slurm_does():
    assert parse_shard("3/64") == Shard(3, 64)
    assert parse_shard("auto", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "6"}) == Shard(5, 6)
    for text in ("64/64", "-1/3", "1", "a/b", "auto", "0/0"):
        with pytest.raises(OptionError, match="--shard"):
            parse_shard(text, {})
    assert array_expression([3, 17, 18, 19, 20, 22, 23]) == "3,17-20,22-23" and array_expression([]) == ""
