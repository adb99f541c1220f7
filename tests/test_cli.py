"""Claims about the command line:

* every command of the table shows its help, and only its own module is imported; without one nothing heavy is;
* `hear-jepa info` prints configuration, provenance and SHA-256 as JSON, by name, path or default;
* a user's mistake, and what the system refuses, is one line on stderr and exit code 2, control characters escaped; an
  interruption is 130; a closed pipe is silent;
* a device's name means one thing in all commands; progress in a log file is lines.
"""

import hashlib
import importlib
import json
import os
import subprocess
import sys

import numpy
import pytest
import soundfile
import torch

from hear_jepa.cli import COMMANDS, main
from hear_jepa.device import choose_device
from hear_jepa.errors import OptionError
from hear_jepa.model.checkpoint import save_checkpoint
from hear_jepa.progress import progress_bar


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    module = importlib.import_module(COMMANDS[command][0])
    assert callable(module.run)
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0 and f"hear-jepa {command}" in capsys.readouterr().out


def test_info_tells_what_a_file_is(tmp_path, checkpoint, capsys):
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, checkpoint)
    assert main(["info", str(path)]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and info["encoder"]["width"] == 96
    assert main(["info"]) == 0
    default = capsys.readouterr().out
    assert main(["info", "tiny"]) == 0
    assert json.loads(default)["encoder"]["width"] == 192 and capsys.readouterr().out == default


def test_a_mistake_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    soundfile.write(tmp_path / "sound.wav", numpy.full(1600, 0.1), 16000)
    mistakes = [
        (["info", "huge"], "there is no model 'huge'"),
        (["info", "no/such.safetensors"], "there is no checkpoint"),
        (["embed", str(tmp_path / "sound.wav"), "--out", str(tmp_path / "file" / "out.npz")], "file"),
        (["info", "a\x1b[31m\n.safetensors"], "a\\x1b[31m\\n.safetensors"),
    ]
    for arguments, message in mistakes:
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1 and message in printed.err
        assert "Traceback" not in printed.err


def run(code_or_arguments, **options):
    given = code_or_arguments if isinstance(code_or_arguments, list) else ["-c", code_or_arguments]
    return subprocess.run([sys.executable, *given], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("arguments, code", [(["--help"], 0), (["embdd"], 2), ([], 2), (["--version"], 0)])
def test_without_a_command_nothing_heavy_is_imported(arguments, code):
    ran = run(
        "import sys\n"
        "from hear_jepa.cli import main\n"
        "try:\n"
        f"    sys.exit(main({arguments!r}))\n"
        "finally:\n"
        "    print(*({'torch', 'numpy'} & set(sys.modules)))"
    )
    assert ran.returncode == code and ran.stdout.splitlines()[-1] == "" and "Traceback" not in ran.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")
def test_a_closed_pipe_is_silent():
    command = f"{sys.executable} -m hear_jepa.cli info | head -c 1"
    ran = run(["-c", f"import subprocess; subprocess.run({command!r}, shell=True)"])
    assert ran.stdout == "{" and ran.stderr == ""


@pytest.mark.skipif(os.name != "posix", reason="signals and pipes of POSIX")
@pytest.mark.parametrize("where", ["import", "run"])
def test_an_interruption_is_130_and_silent(where):
    """While a command is imported, as well as while it runs."""
    ran = run(
        "import os, signal, sys, types\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background of a shell
        "from hear_jepa import cli\n"
        "def interrupt(*_):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    while True: pass\n"
        "def load(name):\n"
        f"    if {where!r} == 'import':\n"
        "        try: interrupt()\n"
        "        except BaseException: raise ImportError('a library that hides it')\n"
        "    return types.SimpleNamespace(add_arguments=lambda parser: None, run=interrupt)\n"
        "cli.importlib.import_module = load\n"
        "sys.exit(cli.main(['info']))",
        timeout=300,
    )
    assert ran.returncode == 130 and ran.stderr == ""


def test_a_log_file_has_lines_and_no_carriage_returns(capfd):
    for _ in progress_bar(range(5000), "count", unit="thing"):
        pass
    written = capfd.readouterr().err
    assert "\r" not in written and written.startswith("count: 0 of 5000 things")
    assert written.count("\n") == 2 and "count: 5000 of 5000 things" in written.splitlines()[-1]


def test_auto_is_a_gpu_where_there_is_one(monkeypatch):
    for gpus, apple, expected in [(0, False, "cpu"), (0, True, "mps"), (2, True, "cuda:1")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpus=gpus: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda apple=apple: apple)
        assert choose_device("auto", local_rank=1) == torch.device(expected)
        assert choose_device("cpu").type == "cpu"
        with pytest.raises(OptionError, match="cuda:2"):
            choose_device("cuda:2")
    with pytest.raises(OptionError, match="auto, cpu, cuda"):
        choose_device("gpu")
