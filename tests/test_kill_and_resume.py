"""A run that is killed at random moments and resumed ends as an undisturbed one; the whole proof is scripts/kill_and_resume.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "kill_and_resume.py"


@pytest.mark.full
def test_two_killed_runs_resume_to_the_same_end():
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), "--trials", "2"],
        capture_output=True,
        text=True,
        check=False,
        cwd=SCRIPT.parents[1],
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed, 0 failed" in ended.stdout
