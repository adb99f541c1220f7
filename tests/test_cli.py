"""Claims about the command line:

* every command of the table shows its help, and only its own module is imported;
* `hear-jepa info` prints configuration, provenance and SHA-256 as JSON, by name, path or default;
* a user's mistake is one line on stderr and exit code 2, without a traceback.
"""

import hashlib
import importlib
import json
import subprocess
import sys

import pytest

from hear_jepa.cli import COMMANDS, main
from hear_jepa.model.checkpoint import save_checkpoint


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
    told = json.loads(capsys.readouterr().out)
    assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and told["encoder"]["width"] == 96
    assert main(["info"]) == 0
    default = capsys.readouterr().out
    assert main(["info", "tiny"]) == 0
    assert json.loads(default)["encoder"]["width"] == 192 and capsys.readouterr().out == default


@pytest.mark.parametrize(
    "arguments, message",
    [(["info", "huge"], "there is no model 'huge'"), (["info", "no/such.safetensors"], "there is no checkpoint")],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and message in printed.err


def test_unknown_commands_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["embedd"])
    assert stopped.value.code == 2 and "'embedd'" in capsys.readouterr().err


def test_the_installed_command_imports_only_what_it_runs():
    code = "import sys; from hear_jepa.cli import main; main(['info']); print(*sys.modules, file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    modules = set(ran.stderr.split())
    assert "hear_jepa.commands.info" in modules
    others = {module for command, (module, _) in COMMANDS.items() if command != "info"}
    assert not modules & (others | {"sklearn", "matplotlib", "pandas"})
