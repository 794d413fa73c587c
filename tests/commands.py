"""Running a command inside the test's process as the shell would: the same exit code, the same text."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mil_jax.cli.console import run_command

SMALL = (
    "--config=configs/abmil.py",
    "--config.aggregator.feature_dim=8",
    "--config.aggregator.attention_dim=4",
    "--config.data.max_buckets=1",
    "--config.train.epochs=2",
    "--config.train.patience=0",
    "--config.train.min_epochs=0",
    "--config.splits.folds=2",
)


@dataclass(frozen=True)
class Ended:
    """code: the exit code. out, err: what was printed."""

    code: int
    out: str
    err: str


def run(main: Callable[[list[str]], int], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Ended:
    """Runs `main` by `run_command`. A bug passes through as the exception that it is."""
    capsys.readouterr()
    before = signal.getsignal(signal.SIGTERM), sys.argv
    sys.argv = ["mil_jax", *arguments]
    try:
        with pytest.raises(SystemExit) as exit_:
            run_command(main)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        sys.argv = before[1]
    captured = capsys.readouterr()
    return Ended(int(exit_.value.code or 0), captured.out, captured.err)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
