"""Claim: the official hear-validator, unchanged, passes with the default model, with a name and with a path."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("hearvalidator") is None, reason="hearvalidator is not installed (`make test` does it)"
)
CODE = """
import sys
from hearvalidator.validate import main
for model in ([], ["-m", "tiny"], ["-m", sys.argv[1]]):
    sys.argv = ["hear-validator", "hear_jepa", "-d", "cpu", *model]
    main()
"""


def test_hear_validator_passes(tmp_path, weights):
    """One process for the three models, with the folder on PYTHONPATH that our command prints."""
    command = [sys.executable, "-m", "hear_jepa.evaluation.hear_eval_kit"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    ran = subprocess.run(
        [sys.executable, "-c", CODE, weights],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([printed, os.environ.get("PYTHONPATH", "")])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("Looks good") == 3, ran.stdout
    assert not re.search("warning", ran.stdout, re.IGNORECASE), ran.stdout
