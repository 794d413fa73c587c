"""Commands that are killed anywhere and started again end as undisturbed ones: some kills of quick commands here, many as a long check."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from scripts import kill_anywhere
from scripts.kill_anywhere import Command, Kill, Trials

SCRIPT = Path(kill_anywhere.__file__)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--commands=add,cache,demo_slides", "--kills=3"),
        pytest.param(("--seed=1",), marks=pytest.mark.full),
    ],
    ids=["some", "all"],
)
def test_a_command_that_was_killed_and_started_again_ends_as_undisturbed(arguments):
    """In a process of its own, which has not used JAX: its threads do not survive a fork."""
    command = [sys.executable, str(SCRIPT), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPT.parents[1])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1].endswith("met a running command, 0 failed")


def careless(arguments: list[str]) -> int:
    """Writes under a name of its own for each process, which it never looks for again."""
    (now,) = map(Path, arguments)
    (now / f"half-{os.getpid()}").write_text("half")
    (now / f"half-{os.getpid()}").rename(now / "whole")
    return 0


@pytest.mark.parametrize(
    ("number", "operation", "said"),
    [(signal.SIGKILL, 2, "(is left)"), (signal.SIGTERM, 2, "(is left)"), (signal.SIGKILL, 1, "")],
)
def test_what_a_kill_leaves_is_found(tmp_path, monkeypatch, number, operation, said):
    module = types.ModuleType("careless")
    module.main = careless
    monkeypatch.setitem(sys.modules, "careless", module)
    monkeypatch.setitem(kill_anywhere.COMMANDS, "careless", Command("careless", ("{now}",)))
    trials = Trials("careless", tmp_path)
    assert [one.split(" ")[0] for one in trials.operations] == ["open", "os.rename"]
    wrong, ended = trials.trial(Kill(number, operation, 0.0))
    assert wrong.endswith(said)
    assert bool(wrong) == bool(said)
    assert ended == ("SIGKILL" if number == signal.SIGKILL else "exit 143")
