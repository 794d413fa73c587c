"""A training on a Ray cluster of two workers, one of which is killed on the way, is the undivided run."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from mil_jax import train
from mil_jax.errors import ConfigError, DataError
from tests.commands import SMALL, run
from tests.test_merge_command import require_equal

pytest.importorskip("ray")
pytestmark = pytest.mark.full


def command(folder: Path, home: Path, *arguments: str) -> list[str]:
    return [
        *(*SMALL, "--config.train.epochs=120", "--config.train.num_seeds=2", "--config.train.checkpoint_seconds=0"),
        *(f"--config.data.cache={home / 'cache'}", f"--config.run={folder}", *arguments),
    ]


def workers() -> list[int]:
    """The processes that train shares."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::train_share" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def kill_one(shares: Path, killed: list[int]) -> None:
    """Kills a worker when both shares have trained for some epochs."""
    while not killed:
        begun = [path for path in shares.glob("*/metrics.jsonl") if path.stat().st_size > 2_000]
        if len(begun) == 2 and len(workers()) == 2:
            killed.append(workers()[0])
            os.kill(killed[0], signal.SIGKILL)
        time.sleep(0.01)


def test_a_killed_worker_changes_nothing(tmp_path, capsys):
    killed: list[int] = []
    killer = threading.Thread(target=kill_one, args=(tmp_path / "run.shares", killed), daemon=True)
    killer.start()
    ended = run(train.main, command(tmp_path / "run", tmp_path, "--engine=ray", "--workers=2"), capsys)
    assert (ended.code, len(killed)) == (0, 1), ended.err
    assert "has died; another one goes on" in ended.out
    assert train.main(command(tmp_path / "whole", tmp_path)) == 0
    require_equal(tmp_path / "run", tmp_path / "whole")
    assert not (tmp_path / "run.shares").exists()


def test_what_is_wrong_with_a_share_is_said_as_without_ray(tmp_path):
    data = {"features": tmp_path / "nowhere", "labels": tmp_path / "nowhere.csv", "target": "x"}
    settings = [f"--config.data.{name}={value}" for name, value in data.items()]
    with pytest.raises((DataError, ConfigError), match="nowhere"):
        train.main(command(tmp_path / "run", tmp_path, "--engine=ray", "--workers=2", *settings))
    assert not (tmp_path / "run").exists()
