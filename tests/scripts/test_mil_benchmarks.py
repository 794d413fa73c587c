"""The benchmark command: it learns an invented set end to end, says so in its last line, and refuses bad input in one sentence."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from absl import flags

from mil_jax.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[2]
LAST_LINE = re.compile(r"accuracy (\d\.\d{3}) \+- (\d\.\d{3}), AUC (\d\.\d{3}) \+- (\d\.\d{3})")
SMALL = ("--config.train.epochs=4", "--config.aggregator.feature_dim=16", "--config.aggregator.attention_dim=8")


def _run(data: Path, *options: str, config: str = "configs/musk.py") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "scripts/mil_benchmarks.py", "--data", str(data), "--config", config, *options]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)


def _scores(done: subprocess.CompletedProcess[str]) -> tuple[float, ...]:
    assert done.returncode == 0, done.stderr
    matched = LAST_LINE.fullmatch(done.stdout.splitlines()[-1])
    assert matched, done.stdout.splitlines()[-1]
    return tuple(map(float, matched.groups()))


def _write_set(path: Path, **changes: np.ndarray | None) -> None:
    """24 bags of 2 to 5 instances in 3 folds, twice; a positive bag holds an instance far from all others."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 6, size=24)
    bag_index = np.repeat(np.arange(24), sizes)
    labels = (np.arange(24) % 2).astype(np.int8)
    features = rng.standard_normal((len(bag_index), 6)).astype(np.float32) * [1, 1, 1, 1, 100, 0] + 1000
    features[np.flatnonzero(np.diff(bag_index, prepend=-1))] += 6 * labels[:, None] * [1, 1, 0, 0, 0, 0]
    folds = np.stack([rng.permutation(np.arange(24) // 2 % 3) for _ in range(2)]).astype(np.int8)
    arrays = {
        "features": features.astype(np.float32),
        "bag_index": bag_index,
        "labels": labels,
        "folds": folds,
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_an_invented_set_is_learned_from_its_standardised_features(tmp_path: Path) -> None:
    _write_set(tmp_path / "invented.npz")
    done = _run(tmp_path, *SMALL, "--config.optimizer.lr=0.01", "--config.train.epochs=8")
    accuracy, _, auc, _ = _scores(done)
    assert accuracy >= 0.9
    assert auc >= 0.95
    assert "6 folds in 2 repeats (the set's own folds)" in done.stdout
    assert "epoch 8 of 8: 6 runs" in done.stdout


def test_without_folds_every_bag_is_tested_once_in_each_of_five_stratified_repeats(tmp_path: Path) -> None:
    _write_set(tmp_path / "invented.npz", folds=None)
    bags = _read_set(tmp_path / "invented.npz")
    assert bags.test.shape == (50, 24)
    for repeat in range(5):
        np.testing.assert_array_equal(bags.test[bags.repeat == repeat].sum(axis=0), 1)
    positives = (bags.test & (bags.labels == 1)).sum(axis=1)
    assert positives.min() >= 1
    assert positives.max() <= 2


def test_a_bag_of_digits_is_positive_when_it_holds_a_nine(tmp_path: Path) -> None:
    digits = np.arange(40) % 10
    images = np.repeat(digits, 4).reshape(-1, 2, 2).astype(np.uint8)  # each image shows its digit as its grey value
    np.savez(tmp_path / "digits.npz", x_train=images, y_train=digits, x_test=images, y_test=digits)
    bags = _read_set(tmp_path / "digits.npz", "--training_bags=12", "--test_bags=8", "--mean_size=5")
    holds_nine = [bool((np.round(bag[:, 0, 0, 0] * 255.0) == 9).any()) for bag in bags.bags]
    np.testing.assert_array_equal(bags.labels, holds_nine)
    np.testing.assert_array_equal(bags.training.sum(axis=1), [12, 12])
    np.testing.assert_array_equal(bags.test.sum(axis=1), [8, 8])
    assert not (bags.training & bags.test).any()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"labels": None}, "the arrays labels are missing"),
        ({"bag_index": np.zeros(3, int)}, "do not fit together"),
        ({"folds": np.zeros((1, 7), int)}, "for 24 bags"),
    ],
)
def test_a_set_that_does_not_fit_is_refused(
    tmp_path: Path, content: dict[str, np.ndarray | None], sentence: str
) -> None:
    _write_set(tmp_path / "invented.npz", **content)
    with pytest.raises(DataError, match=sentence):
        _script().main(["--data", str(tmp_path), "--config", "configs/musk.py"])


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(DataError, match="cannot be read"):
        _script().main(["--data", str(tmp_path), "--config", "configs/musk.py"])


def test_bad_input_ends_in_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    done = _run(tmp_path / "absent")
    assert done.returncode == 2
    assert "there is no such folder" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def _read_set(path: Path, *options: str) -> Any:
    script = _script()
    values = flags.FlagValues()
    script.define_flags(values)
    values(["test", *options])
    return script._read(path, values)


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mil_benchmarks", REPOSITORY / "scripts" / "mil_benchmarks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.full
def test_musk1_reaches_its_bar(shared: Path) -> None:
    accuracy, _, auc, _ = _scores(_run(shared / "data" / "musk1"))
    assert accuracy >= 0.84
    assert auc >= 0.91


@pytest.mark.full
def test_mnist_bags_reach_their_bar(shared: Path) -> None:
    _, _, auc, _ = _scores(_run(shared / "data" / "mnist", config="configs/abmil_ilse.py"))
    assert auc >= 0.95
