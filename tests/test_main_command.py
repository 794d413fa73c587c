"""`mil-jax` lists its commands, runs them, and answers at once where nothing need be computed."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mil_jax import __main__ as main_command
from tests.commands import run

ROOT = Path(__file__).resolve().parents[1]


def test_alone_it_lists_every_command(capsys):
    ended = run(main_command.main, [], capsys)
    assert ended.code == 0
    entries = {path.stem for path in (ROOT / "mil_jax").glob("*.py") if "run_command(main)" in path.read_text()}
    assert set(main_command.COMMANDS) == entries - {"__main__"}
    assert all(f"  {name} " in ended.out for name in main_command.COMMANDS)


def test_a_misspelt_command_is_said(capsys):
    ended = run(main_command.main, ["trian"], capsys)
    assert (ended.code, "did you mean train?" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["train", "--help"], 0),
        *(([command, "--help"], 0) for command in ("evaluate", "sweep", "benchmark", "profile", "compare", "merge")),
        (["train", "--config", "abmil", "--config.trian.epochs=3"], 2),
        (["sweep", "--config", "abmil", "--config.train.epoch=3"], 2),
        (["profile", "--config", "abmil", "--config.data.feature=x"], 2),
        (["evaluate", "--features", "x"], 2),
        (["compare", "--run", "one"], 2),
        (["benchmark", "--config", "benchmarks/usual", "--method", "abmil"], 2),
    ],
)
def test_help_and_what_is_wrong_with_a_command_line_take_less_than_a_second(arguments, code):
    """Of processor time, the best of three: others may use the machine."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = subprocess.run(
            [sys.executable, "-m", "mil_jax", *arguments], cwd=ROOT, capture_output=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert ended.returncode == code
    assert min(seconds) <= 1.0
