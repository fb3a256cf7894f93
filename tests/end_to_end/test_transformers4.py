"""What is written here is loaded whole by transformers 4, whose names for parameters are others."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_transformers4.py"


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1800)
def test_transformers4_loads_what_is_written():
    done = subprocess.run([sys.executable, SCRIPT], cwd=SCRIPT.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "loads as written"
