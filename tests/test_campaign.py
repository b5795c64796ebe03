"""A few attacks of each kind; `python -m tests.campaign --minutes 60` makes hundreds."""

import subprocess
import sys

import pytest
from conftest import ROOT, environment


@pytest.mark.thorough
def test_a_small_campaign_finds_no_fault():
    line = [sys.executable, "-m", "tests.campaign", "--seed=0", "--trials=4", "--minutes=20"]
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("24 trials, 0 faults\n")
