"""One output, written by many machines.

* Every sound is in one share, whatever the machine calls the folder; the parts together hold what one run gives,
  to the bit.
* What shares a batch with a sound changes no bit of its embeddings.
* Shares that were killed are missing until they are run again; `--status` names them as SLURM's --array takes them.
* pyarrow reads the parts as one table, columns of a table of inputs too.
* A part of another command is refused, and so is a folder that holds anything else.
"""

import json
import subprocess
import sys

import numpy
import pytest
import soundfile
import torch

from hear_jepa import Embedder
from hear_jepa.cli import main
from hear_jepa.errors import OptionError
from hear_jepa.files.find import find_sources
from hear_jepa.files.formats import load_embeddings
from hear_jepa.files.shards import Shard, array_expression, parse_shard, share_of

N_SHARDS, N_SOUNDS = 64, 100
KILLED = {  # share: the moment of its kill
    3: "embedding",
    17: "embedding",
    18: "manifest",
    40: "embedding",
    63: "manifest",
}
KILL = """
import json, os, signal, sys
from hear_jepa import cli
from hear_jepa.commands import embed as command
from hear_jepa.files import store
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
for share, where in json.loads(sys.argv[1]).items():
    child = os.fork()
    if child == 0:
        if where == "embedding":
            store.EmbeddingStore.end = die
        else:
            command.write_manifest = die
        os._exit(cli.main([*sys.argv[2:], share]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, share
"""


@pytest.fixture(scope="module")
def sounds(tmp_path_factory, minute):
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(N_SOUNDS):
        sound = minute[3000 * number :][: 900 * (1 + number % 17) ** 2 // 4]
        soundfile.write(folder / f"{number:03d}.wav", sound.numpy() + 0.001, 16000)  # none is silent
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


def test_sixty_four_shares_some_killed_are_one_run_to_the_bit(tmp_path, sounds, weights, capsys, monkeypatch):
    parquet = pytest.importorskip("pyarrow.dataset")
    table = tmp_path / "table.csv"
    monkeypatch.chdir(sounds)  # shares go by the path as it is named: here the same on every machine
    lines = [f"{path.name},{number % 3},{number}" for number, path in enumerate(sorted(sounds.iterdir()))]
    table.write_text("\n".join(["path,label,id", *lines]) + "\n")
    out = tmp_path / "out"
    command = ["embed", str(table), "--model", weights, "--kind", "windows", "--window-s", "0.5", "--workers", "1"]
    assert main([*command, "--out", str(tmp_path / "one.npz")]) == 1
    one = load_embeddings(tmp_path / "one.npz")

    full = {share_of(sound, N_SHARDS).index for sound in find_sources([table]).sounds}
    assert len(full) < N_SHARDS  # some shares are empty
    killed = {str(n): where if n in full else "manifest" for n, where in KILLED.items()}
    sharded = [*command, "--out", str(out), "--shard"]
    places = [f"{n}/{N_SHARDS}" for n in range(N_SHARDS)]
    for place in places:
        if place.split("/")[0] not in killed:
            assert main([*sharded, place]) in (0, 1)
    script = [sys.executable, "-c", KILL, json.dumps({f"{n}/{N_SHARDS}": where for n, where in killed.items()})]
    died = subprocess.run([*script, *sharded], check=False, capture_output=True)
    assert died.returncode == 0, died.stderr.decode()
    capsys.readouterr()
    assert main(["embed", "--status", str(out)]) == 1
    assert capsys.readouterr().out == "59 of 64 parts are finished\nmissing: --array=3,17-18,40,63\n"
    for index in KILLED:
        assert main([*sharded, places[index]]) in (0, 1)
    capsys.readouterr()
    assert main(["embed", "--status", str(out)]) == 0 and "64 of 64" in capsys.readouterr().out

    found = load_embeddings(out)
    order = [found.columns["id"].index(name) for name in one.columns["id"]]
    assert sorted(order) == list(range(len(found.paths))) and found.failed == one.failed
    assert len(one.paths) == N_SOUNDS and list(found.failed) == ["broken.wav"]
    assert [found.columns["label"][n] for n in order] == one.columns["label"]
    for number, place in enumerate(order):
        numpy.testing.assert_array_equal(found.embeddings[place], one.embeddings[number])
        numpy.testing.assert_array_equal(found.spans_s[place], one.spans_s[number])
    rows = parquet.dataset(out, format="parquet").to_table()
    assert len(rows) == sum(map(len, one.embeddings)) + 1 and {"label", "id"} <= set(rows.column_names)


@pytest.mark.parametrize(
    "kind, options", [("scene", {}), ("timestamps", {}), ("windows", {"window_s": 1, "hop_s": 0.4})]
)
def test_a_sound_embeds_to_the_bit_alike_whatever_shares_its_batches(sounds, checkpoint, kind, options):
    paths, threads = sorted(sounds.glob("0*.wav"))[40:75:2], torch.get_num_threads()
    model = Embedder(checkpoint, scene_hop_ms=40, pooling="mean+std")
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            alone = {path: next(iter(model.embed_files(path, kind, **options))).embeddings[0] for path in paths}
            for file in model.embed_files(paths, kind, batch_s=4, **options):
                numpy.testing.assert_array_equal(file.embeddings[0], alone[file.path])
    finally:
        torch.set_num_threads(threads)


def test_every_sound_is_in_one_share_wherever_the_folder_is(sounds, monkeypatch):
    named = find_sources([sounds]).sounds
    monkeypatch.chdir(sounds)
    shares = [[sound for sound in find_sources(["."]).sounds if share_of(sound, 5) == Shard(n, 5)] for n in range(5)]
    assert sorted(sound.name for share in shares for sound in share) == sorted(sound.name for sound in named)
    for number, share in enumerate(shares):
        assert [sound.name for sound in named if share_of(sound, 5).index == number] == [sound.name for sound in share]


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
