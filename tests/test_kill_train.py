"""Runs that are killed again and again, on as many devices and on others; experiments/kill_train in small."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.ci
@pytest.mark.optimised  # its children, too: their steps take a sixth of the time
def test_killed_runs_end_as_those_that_were_left_alone():
    options = ["--kills=3", "--methods=full", "--accumulate=2", "--steps=12"]
    command = [sys.executable, "-m", "experiments.kill_train", *options]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stderr
    assert "of 3 runs: 2 of 2 bit for bit, 1 of 1 on other devices within 1e-06" in ran.stdout.splitlines()[-1]
