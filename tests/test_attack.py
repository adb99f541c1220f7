"""A short run of tests/attack.py: odd files, kills, hostile outputs, checkpoint headers. Nothing may be lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(os.name != "posix", reason="the attack forks and kills")
def test_nothing_is_lost_in_a_short_attack():
    command = [sys.executable, str(Path(__file__).with_name("attack.py")), "--short"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and ran.stdout.count("| nothing |") == 8, ran.stdout + ran.stderr[-3000:]
