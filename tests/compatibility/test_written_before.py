"""Run folders and shards that an earlier version wrote, with the names that settings had then, are read today.

They were written by version 0.1.0 before its settings were renamed: 24 slides of 3 to 8 tiles; mean pooling, 12 epochs in 2 folds, once to
the end (`complete`) and once stopped in the 5th epoch (`unfinished`); a sweep (`sweep`). Figures, the checkpoints that no command reads
again and the folders of the sweep's groups were left out.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil_jax import compare, evaluate, sweep, train
from mil_jax.config import load_config
from mil_jax.data.shards.reader import Shards
from mil_jax.inference.trained_run import TrainedRun
from mil_jax.run_folder.folder import RunFolder
from tests.commands import run

HERE = Path(__file__).parent
DATA = [
    *("--config=configs/mean_pooling.py", "--config.aggregator.feature_dim=4", "--config.data.shards=shards_0_1"),
    *("--config.data.labels=labels.csv", "--config.data.id_column=slide_id", "--config.data.patient=case_id"),
    *("--config.data.target=subtype", "--config.splits.folds=2", "--config.splits.val_fraction=0.3"),
]
TRAINING = [
    *("--config.train.epochs=12", "--config.train.patience=0", "--config.train.min_epochs=0"),
    *("--config.train.batch_size=4", "--config.optimizer.lr=0.01", "--config.train.checkpoint_seconds=0"),
]
OLD_NAMES = [
    *("--config.data.max_waste=0.5", "--config.data.max_shapes=2", "--config.data.stream_gib=1"),
    *("--config.train.bags_at_a_time=2", "--config.train.slots_per_dispatch=8"),
    *("--config.train.select=val_auc", "--config.train.balanced=true"),
]
PRESENT_NAMES = [
    *("--config.data.max_padding=0.5", "--config.data.max_buckets=2", "--config.data.prefetch_gib=1"),
    *("--config.train.microbatch_size=2", "--config.train.steps_per_dispatch=8"),
    *("--config.train.monitor=val_auc", "--config.train.balanced_sampling=true"),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in: the runs name their data from here."""
    shutil.copytree(HERE / "runs_0_1", tmp_path / "runs_0_1")
    shutil.copytree(HERE / "shards_0_1", tmp_path / "shards_0_1")
    shutil.copy(HERE / "labels_0_1.csv", tmp_path / "labels.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def predictions(folder: Path) -> pd.DataFrame:
    table = RunFolder.open(folder).read_table("predictions.csv")
    return table.sort_values(["part", "fold", "bag_id"]).reset_index(drop=True)


def test_shards_read_back_what_was_written():
    shards = Shards.open(HERE / "shards_0_1")
    assert shards.slide_ids == [f"slide_{bag:02}" for bag in range(24)]
    for bag in range(24):
        tile, column = np.meshgrid(np.arange(3 + bag % 6), np.arange(8), indexing="ij")
        shards.verify(bag)
        features = np.empty(tile.shape, np.float32)
        shards.read_features(bag, features)
        np.testing.assert_array_equal(features, bag + tile / 8 + column / 64)
        np.testing.assert_array_equal(
            shards.read_coords(bag), np.stack([tile[:, 0], np.full(len(tile), bag)], axis=1) * 256
        )


@pytest.mark.parametrize("names", [OLD_NAMES, PRESENT_NAMES], ids=["old names", "present names"])
def test_an_unfinished_run_is_resumed_and_ends_as_the_one_that_was_never_stopped(home, names, capsys):
    arguments = [*DATA, *TRAINING, *names, "--config.run=runs_0_1/unfinished", "--resume"]
    epochs = [row["epoch"] for row in RunFolder.open("runs_0_1/unfinished").read_metrics()]
    assert max(epochs) < 11
    ended = run(train.main, arguments, capsys)
    assert ended.code == 0, ended.err
    assert ended.out.count(" is now ") == (len(names) if names is OLD_NAMES else 0)
    pd.testing.assert_frame_equal(
        predictions(home / "runs_0_1/unfinished"), predictions(home / "runs_0_1/complete"), rtol=1e-4, atol=1e-5
    )


def test_other_settings_are_refused_under_their_present_names(home, capsys):
    other = [one.replace("monitor=val_auc", "monitor=val_loss") for one in PRESENT_NAMES]
    ended = run(train.main, [*DATA, *TRAINING, *other, "--config.run=runs_0_1/unfinished", "--resume"], capsys)
    assert ended.code == 2
    assert "train.monitor (was val_auc, now val_loss); use the settings of the run" in ended.err


def test_a_run_that_has_ended_scores_its_own_test_parts_as_it_did(home, capsys):
    arguments = ["--run", "runs_0_1/complete", "--shards", "shards_0_1", "--labels", "labels.csv", "--out", "scored"]
    ended = run(evaluate.main, arguments, capsys)
    assert ended.code == 0, ended.err
    held_out, before = (pd.read_csv(f"{folder}/predictions.csv") for folder in ("scored", "runs_0_1/complete"))
    before = before[before["part"] == "test"]
    columns = ["bag_id", "fold", "prob_LUAD", "prob_LUSC"]
    assert len(before) == 24
    pd.testing.assert_frame_equal(
        held_out[columns].sort_values("bag_id").reset_index(drop=True),
        before[columns].sort_values("bag_id").reset_index(drop=True),
        check_dtype=False,
        rtol=1e-4,
        atol=1e-5,
    )
    assert TrainedRun.open("runs_0_1/complete").config.train.monitor == "val_auc"


def test_a_run_that_has_ended_is_compared_and_says_how_long_the_final_model_trains(home, capsys):
    shutil.copytree("runs_0_1/complete", "runs_0_1/again")
    ended = run(compare.main, ["--run", "runs_0_1/complete", "--run", "runs_0_1/again", "--out", "compared"], capsys)
    assert ended.code == 0, ended.err
    final = ["--config.splits.folds=0", "--config.train.epochs_of=runs_0_1/complete", "--config.run=final"]
    ended = run(train.main, [*DATA, *final, *TRAINING, *PRESENT_NAMES], capsys)
    assert ended.code == 0, ended.err
    rows = pd.DataFrame(RunFolder.open("runs_0_1/complete").read_metrics())
    best = rows.loc[rows.groupby("fold")["val_loss"].idxmin(), "epoch"] + 1
    assert RunFolder.open("final").config["train"]["monitor"] == "val_auc"
    assert RunFolder.open("final").read_metrics()[-1]["epoch"] + 1 == int(best.median())


@pytest.mark.parametrize("swept", ["train.bags_at_a_time=0,2", "train.microbatch_size=0,2"])
def test_a_sweep_that_has_ended_is_recognised_and_its_best_config_is_read(home, swept, capsys):
    arguments = [*DATA, *TRAINING, *PRESENT_NAMES, "--config.train.epochs=2", "--sweep", swept]
    ended = run(sweep.main, [*arguments, "--config.run=runs_0_1/sweep", "--resume"], capsys)
    assert ended.code == 0, ended.err
    assert "The run in runs_0_1/sweep has ended" in ended.out
    best = load_config(Path("runs_0_1/sweep/best.py"))
    assert (best.train.monitor, best.train.microbatch_size, best.train.balanced_sampling) == ("val_auc", 2, True)
