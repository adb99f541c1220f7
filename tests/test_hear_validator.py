"""Claim: the official hear-validator, unchanged, passes with the default model, with a name and with a path."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hear_jepa.evaluation
from hear_jepa.model.checkpoint import save_checkpoint

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hearvalidator") is None, reason="hearvalidator is not installed (`make test` does it)"
)
STUBS = Path(hear_jepa.evaluation.__path__[0]) / "heareval_path"  # stands in for TensorFlow


@pytest.mark.parametrize("which", ["default", "name", "path"])
def test_hear_validator_passes(which, tmp_path, checkpoint):
    save_checkpoint(tmp_path / "model.safetensors", checkpoint)
    model = {"default": [], "name": ["-m", "tiny"], "path": ["-m", str(tmp_path / "model.safetensors")]}[which]
    code = "from hearvalidator.validate import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "hear_jepa", *model, "-d", "cpu"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(STUBS), os.environ.get("PYTHONPATH", "")])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Looks good" in ran.stdout
    assert not re.search("warning", ran.stdout, re.IGNORECASE), ran.stdout
