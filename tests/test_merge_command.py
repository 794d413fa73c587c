"""Shares of a training, joined, are the run that one training of all runs writes."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from mil_jax import merge, train
from mil_jax.engine.checkpoints import read_final
from mil_jax.errors import ConfigError, RunFolderError
from mil_jax.run_folder.folder import RunFolder
from tests.commands import SMALL

SHARES = 2
STRATEGIES = {
    "plain, stopped early": ["--config.train.epochs=6", "--config.train.patience=1"],
    "ibmil": ["--config.strategy.name=ibmil", "--config.strategy.clusters=3", "--config.strategy.backbone=train"],
}


def trained(folder: Path, *arguments: str, cache: Path) -> Path:
    command = [*SMALL, "--config.train.num_seeds=2", f"--config.data.cache={cache}", f"--config.run={folder}"]
    assert train.main([*command, *arguments]) == 0
    return folder


def joined(parts: list[Path], out: Path) -> int:
    return merge.main([*(f"--part={part}" for part in parts), f"--out={out}"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("merge")


@pytest.fixture(scope="module")
def parts(home: Path) -> list[Path]:
    settings = STRATEGIES["plain, stopped early"]
    return [
        trained(home / f"part{number}", *settings, f"--runs={number}/{SHARES}", cache=home / "cache")
        for number in range(1, SHARES + 1)
    ]


def require_equal(found: Path, expected: Path) -> None:
    for name in ("predictions.csv", "splits.csv", "excluded.csv"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    one, other = (read_final(folder / "checkpoints") for folder in (found, expected))
    jax.tree.map(np.testing.assert_array_equal, one[:2], other[:2])
    assert one[2] == other[2]
    rows, expected_rows = (pd.DataFrame(RunFolder.open(path).read_metrics()) for path in (found, expected))
    pd.testing.assert_frame_equal(rows.drop(columns="seconds"), expected_rows.drop(columns="seconds"))
    assert rows["seconds"].is_monotonic_increasing
    one, other = (json.loads((folder / "summary.json").read_text()) for folder in (found, expected))
    assert one["metrics"] == other["metrics"]
    assert one["statements"] == other["statements"]


def test_joined_shares_are_the_undivided_run(home, parts):
    assert not any((part / "predictions.csv").exists() for part in parts)
    assert joined([*reversed(parts)], home / "joined") == 0
    whole = trained(home / "whole", *STRATEGIES["plain, stopped early"], cache=home / "cache")
    require_equal(home / "joined", whole)
    assert joined(parts, home / "joined") == 0  # nothing is left to do


@pytest.mark.full
def test_joined_shares_of_several_stages_are_the_undivided_run(home, tmp_path):
    settings, cache = STRATEGIES["ibmil"], home / "cache"
    parts = [trained(tmp_path / f"{number}", *settings, f"--runs={number}/3", cache=cache) for number in (1, 2, 3)]
    whole = trained(tmp_path / "whole", *settings, cache=cache)
    assert joined(parts, tmp_path / "joined") == 0
    require_equal(tmp_path / "joined", whole)
    assert (tmp_path / "joined" / "dictionary.csv").read_bytes() == (whole / "dictionary.csv").read_bytes()


def test_a_missing_share_is_named_and_nothing_is_written(home, parts):
    with pytest.raises(RunFolderError, match=r"runs are in none of these shares \(target 0, fold"):
        joined(parts[:1], home / "lacking")
    assert not (home / "lacking").exists()


def test_a_share_that_is_given_twice_or_is_of_another_training_is_refused(home, parts, tmp_path):
    with pytest.raises(ConfigError, match="twice"):
        joined([parts[0], parts[0]], tmp_path / "out")
    other = trained(tmp_path / "other", "--config.train.epochs=2", f"--runs=2/{SHARES}", cache=home / "cache")
    with pytest.raises(RunFolderError, match=r"other was trained with other settings: train\.epochs"):
        joined([parts[0], other], tmp_path / "out")
    again = trained(tmp_path / "again", *STRATEGIES["plain, stopped early"], f"--runs=1/{SHARES}", cache=home / "cache")
    with pytest.raises(RunFolderError, match=r"fold 0, seed 0 is in .* and in "):
        joined([*parts, again], tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["--runs=3/2"], r"--runs=3/2 must be i/n"), (["--runs=1/99"], "at most as many shares, not 99")],
)
def test_a_share_that_there_is_not_is_refused(home, tmp_path, arguments, said):
    with pytest.raises(ConfigError, match=said):
        trained(tmp_path / "run", *arguments, cache=home / "cache")
