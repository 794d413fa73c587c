"""The sweep command from end to end: numeric settings in one program, groups of the others, nested choice, resume."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil_jax import sweep, train
from mil_jax.cli.progress import TrainingProgress
from mil_jax.config import load_config, parse
from mil_jax.run_folder.folder import RunFolder
from tests.commands import SMALL, contents, run
from tests.invented import invent, write_labels, write_plain

SWEEP = ["--sweep", "optimizer.lr=1e-4,1e-2", "--sweep", "aggregator.gated=true,false"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    home = tmp_path_factory.mktemp("own")
    cohort = invent(16, slides=(1, 1))
    features, labels = write_plain(cohort, home / "features"), write_labels(cohort, home / "labels.csv")
    named = [f"--config.data.features={features}", f"--config.data.labels={labels}", "--config.data.target=subtype"]
    return [*SMALL, *named, f"--config.data.cache={home / 'cache'}"]


@pytest.fixture(scope="module")
def swept(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a sweep of four settings in two groups."""
    folder = tmp_path_factory.mktemp("sweep") / "run"
    assert sweep.main([*data, *SWEEP, f"--config.run={folder}"]) == 0
    return folder


def validation_rows(folder: Path) -> pd.DataFrame:
    """What metrics.jsonl of all groups holds, with the settings of each row."""
    rows = []
    for group in sorted((folder / "groups").iterdir()):
        own = RunFolder.open(group)
        gated = own.config["aggregator"]["gated"]
        rows += [{**row, "lr": row["settings"]["optimizer.lr"], "gated": gated} for row in own.read_metrics()]
    return pd.DataFrame(rows)


def test_each_fold_takes_the_setting_with_the_best_score_on_its_own_validation_part(swept):
    summary = json.loads((swept / "summary.json").read_text())
    assert summary["complete"] is True
    best = validation_rows(swept).groupby(["fold_name", "lr", "gated"])["val_loss"].min().unstack("fold_name")
    for fold in ("0", "1"):
        lr, gated = best[fold].idxmin()
        assert summary["sweep"]["chosen"][f"fold {fold}"] == {"optimizer.lr": lr, "aggregator.gated": gated}
    lr, gated = best.mean(axis=1).idxmin()
    assert summary["sweep"]["best"] == {"optimizer.lr": lr, "aggregator.gated": gated}
    means = [row["mean"] for row in summary["sweep"]["ranking"]]
    assert means == sorted(means)
    np.testing.assert_allclose(means[0], best.mean(axis=1).min())


def test_only_chosen_settings_are_tested(swept):
    predictions = pd.read_csv(swept / "predictions.csv")
    assert predictions.groupby(["fold", "part"])["setting"].nunique().eq(1).all()
    test = predictions[predictions["part"] == "test"]
    assert len(test) == test["bag_id"].nunique() == 16
    left = {name for name in contents(swept / "groups") if "checkpoints" not in name}
    assert {Path(name).name for name in left} == {"config.json", "environment.json", "metrics.jsonl"}
    assert not [name for name in validation_rows(swept).columns if "test" in name]
    assert "test" not in (swept / "settings.csv").read_text()


def test_numeric_settings_share_a_program_and_the_others_make_groups(swept):
    rows = validation_rows(swept)
    assert sorted(rows["gated"].unique()) == [False, True]
    assert rows.groupby("gated")["replica"].nunique().tolist() == [4, 4]
    facts = json.loads((swept / "summary.json").read_text())["facts"]
    assert (facts["settings"], facts["groups"], facts["runs"], facts["compilations"]) == (4, 2, 8, 6)


def test_the_sweep_leaves_tables_pictures_and_a_config_that_trains(swept, data, tmp_path, capsys):
    for name in (
        "summary.md",
        "settings.csv",
        "splits.csv",
        "excluded.csv",
        "figures/settings.png",
        "figures/roc_curves.png",
    ):
        assert (swept / name).is_file(), name
    summary = json.loads((swept / "summary.json").read_text())
    config = load_config(swept / "best.py")
    assert config.optimizer.lr == summary["sweep"]["best"]["optimizer.lr"]
    assert config.aggregator.gated == summary["sweep"]["best"]["aggregator.gated"]
    asked_for, _, _ = parse(data, train.define_flags)
    for name in ("data", "splits", "train", "task"):
        assert config[name].to_dict() == asked_for[name].to_dict()
    run_folder = f"--config.run={tmp_path / 'run'}"
    ended = run(train.main, [f"--config={swept / 'best.py'}", run_folder, "--check"], capsys)
    assert (ended.code, "2 runs (2 folds x 1 seed)" in ended.out) == (0, True)


def test_a_run_of_a_sweep_is_the_run_that_train_makes_of_its_settings(swept, data, tmp_path):
    folder = tmp_path / "run"
    arguments = ["--config.optimizer.lr=1e-2", "--config.aggregator.gated=false", f"--config.run={folder}"]
    assert train.main([*data, *arguments]) == 0
    rows = validation_rows(swept)
    rows = rows[(rows["lr"] == 1e-2) & ~rows["gated"]].sort_values(["epoch", "fold"])
    alone = pd.DataFrame(RunFolder.open(folder).read_metrics()).sort_values(["epoch", "fold"])
    np.testing.assert_array_equal(rows[["train_loss", "val_loss"]], alone[["train_loss", "val_loss"]])


def test_a_sweep_stopped_in_its_second_group_resumes_to_the_same_end(swept, data, tmp_path, capsys, monkeypatch):
    whole = TrainingProgress.steps

    def stopping(self, count: int) -> None:
        whole(self, count)
        if self.title.startswith("group 2"):
            os.kill(os.getpid(), signal.SIGTERM)

    arguments = [*data, *SWEEP, f"--config.run={tmp_path / 'run'}"]
    with monkeypatch.context() as patched:
        patched.setattr(TrainingProgress, "steps", stopping)
        ended = run(sweep.main, arguments, capsys)
    assert (ended.code, "--resume" in ended.out) == (143, True)
    assert not RunFolder.open(tmp_path / "run").is_complete
    ended = run(sweep.main, [*arguments, "--resume"], capsys)
    assert ended.code == 0
    assert "group 1 of 2: All epochs are done" in ended.out
    for name in ("predictions.csv", "settings.csv", "best.py"):
        here, there = ((folder / name).read_text() for folder in (tmp_path / "run", swept))
        assert here.replace(str(tmp_path / "run"), str(swept)) == there
    ended = run(sweep.main, [*arguments[:-2], "aggregator.gated=true", arguments[-1], "--resume"], capsys)
    assert (ended.code, "cannot be resumed with other settings: sweep" in ended.err) == (2, True)


def test_a_random_search_draws_from_ranges_and_is_the_same_again(data, capsys):
    arguments = [
        *data,
        "--random",
        "3",
        "--sweep",
        "optimizer.lr=1e-5:1e-2:log",
        "--sweep",
        "aggregator.dropout=0,0.25",
    ]
    outs = [run(sweep.main, [*arguments, "--check"], capsys) for _ in range(2)]
    assert [ended.code for ended in outs] == [0, 0]
    assert outs[0].out == outs[1].out
    assert "3 settings in 1 group of one program each, 6 runs in all" in outs[0].out


def test_help_has_an_example_and_the_flags_of_the_sweep(capsys):
    ended = run(sweep.main, ["--help"], capsys)
    assert ended.code == 0
    for shown in ("python -m mil_jax.sweep --config configs/abmil.py --sweep", "--random", "--resume"):
        assert shown in ended.out
