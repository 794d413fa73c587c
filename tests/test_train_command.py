"""The training command from end to end, on the embedded digits and on an invented feature folder."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest

from mil_jax import train
from mil_jax.cli.progress import TrainingProgress
from mil_jax.config import parse
from mil_jax.errors import ConfigError
from mil_jax.experiment.fitter import EngineFitter
from mil_jax.experiment.prepare import prepare
from mil_jax.run_folder.folder import RunFolder
from tests.commands import SMALL, contents, run
from tests.invented import invent, write_clam, write_labels

FILES = {
    *("config.json", "environment.json", "splits.csv", "excluded.csv", "metrics.jsonl", "predictions.csv"),
    *("summary.json", "summary.md", "figures/training_curves.png", "figures/roc_curves.png"),
}
DIGITS = [argument for argument in SMALL if "splits" not in argument]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"--config.data.cache={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module")
def digits(cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run on the embedded digits."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    assert train.main([*DIGITS, cache, f"--config.run={folder}"]) == 0
    return folder


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings that name an invented CLAM folder, one slide of which is empty, and its label table."""
    home = tmp_path_factory.mktemp("own")
    cohort = invent(16)
    empty = cohort.table["slide_id"][0]
    cohort.features[empty] = cohort.features[empty][:0]
    features, labels = write_clam(cohort, home / "features"), write_labels(cohort, home / "labels.csv")
    return [f"--config.data.features={features}", f"--config.data.labels={labels}", "--config.data.target=subtype"]


def parameters(folder: Path) -> dict[str, np.ndarray]:
    with ocp.CheckpointManager(folder / "checkpoints" / "final") as manager:
        return manager.restore(0, args=ocp.args.Composite(arrays=ocp.args.StandardRestore()))["arrays"]


def assert_same_end(folder: Path, other: Path) -> None:
    assert (folder / "predictions.csv").read_bytes() == (other / "predictions.csv").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, parameters(folder), parameters(other))


def test_a_run_without_data_leaves_every_file_of_the_run_folder(digits):
    assert set(contents(digits)) >= FILES
    assert (digits / "checkpoints" / "final").is_dir()
    assert not list(digits.rglob("*tmp*"))
    summary = json.loads((digits / "summary.json").read_text())
    assert summary["complete"] is True
    assert summary["title"] == "abmil: embedded digits"


def test_every_bag_is_predicted_once_in_a_test_part_of_its_fold(digits):
    predictions, splits = (pd.read_csv(digits / name) for name in ("predictions.csv", "splits.csv"))
    joined = predictions.assign(part=predictions["part"].replace("val", "validation")).merge(
        splits, left_on=["fold_name", "bag_id", "part"], right_on=["fold", "bag_id", "part"], validate="one_to_one"
    )
    assert len(joined) == len(predictions)
    test = predictions[predictions["part"] == "test"]
    assert sorted(test["bag_id"]) == sorted(splits["bag_id"].unique())
    assert np.allclose(test[["prob_no nine", "prob_nine"]].sum(axis=1), 1)


def test_a_feature_folder_and_a_table_become_a_run(own_data, cache, tmp_path, capsys):
    arguments = [*SMALL, *own_data, cache, "--config.splits.repeats=2", f"--config.run={tmp_path / 'run'}"]
    ended = run(train.main, arguments, capsys)
    assert ended.code == 0
    assert "CLAM: " in ended.out
    assert "classes: 0 = LUAD" in ended.out
    excluded = pd.read_csv(tmp_path / "run" / "excluded.csv")
    assert "empty" in set(excluded["reason"]), "a slide lost at conversion is not in excluded.csv"
    predictions, splits = (pd.read_csv(tmp_path / "run" / name) for name in ("predictions.csv", "splits.csv"))
    assert set(predictions["fold_name"]) == {"0-0", "0-1", "1-0", "1-1"} == set(splits["fold"])
    truth = pd.read_csv(own_data[1].split("=")[1]).set_index("slide_id")["subtype"]
    assert (predictions["target"] == truth[predictions["bag_id"]].to_numpy()).all()


def test_check_says_what_matched_and_leaves_nothing(own_data, cache, tmp_path, capsys):
    ended = run(train.main, [*SMALL, *own_data, cache, f"--config.run={tmp_path / 'run'}", "--check"], capsys)
    assert ended.code == 0
    for said in ("CLAM: ", "labelled rows are used", "excluded", "bag sizes", "bucket length", "programs to compile"):
        assert said in ended.out
    assert not list(tmp_path.iterdir())


def test_help_shows_an_example_the_flags_and_the_settings_of_the_config(capsys):
    for arguments, lr in ((["--help"], "0.0002"), (["--config", "configs/abmil_ilse.py", "--help"], "0.0005")):
        ended = run(train.main, arguments, capsys)
        assert ended.code == 0
        for shown in ("mil-jax train --config abmil", "--resume", f"--config.optimizer.lr={lr}"):
            assert shown in ended.out


def test_a_streamed_run_ends_as_one_held_in_memory(digits, cache, tmp_path, capsys):
    arguments = [*DIGITS, cache, f"--config.run={tmp_path / 'run'}", "--config.data.residency=streamed"]
    ended = run(train.main, [*arguments, "--config.data.prefetch_gib=1e-4"], capsys)
    assert ended.code == 0
    assert "streamed (as asked): 3 windows of host memory" in ended.out
    assert_same_end(tmp_path / "run", digits)
    ours, theirs = (json.loads((folder / "summary.json").read_text())["facts"] for folder in (tmp_path / "run", digits))
    assert ours["compilations"] == theirs["compilations"]
    assert RunFolder.open(tmp_path / "run").choices["residency"] == "streamed"
    assert RunFolder.open(digits).choices["residency"] == "resident"


def test_a_finished_run_is_left_as_it_is_and_overwrite_moves_it_aside(digits, cache, capsys):
    before = contents(digits)
    ended = run(train.main, [*DIGITS, cache, f"--config.run={digits}", "--resume"], capsys)
    assert (ended.code, "nothing is left to do" in ended.out) == (0, True)
    after = contents(digits)
    changed = {name for name in before if before[name] != after.get(name)}
    assert changed <= {"environment.json"}
    ended = run(train.main, [*DIGITS, cache, f"--config.run={digits}", "--overwrite"], capsys)
    assert ended.code == 0
    aside = digits.with_name("run.old")
    assert contents(aside) == after
    assert_same_end(digits, aside)


def test_a_run_stopped_by_the_keyboard_is_saved_and_resumes_to_the_same_end(
    digits, cache, tmp_path, capsys, monkeypatch
):
    whole = TrainingProgress.steps

    def stopping(self, count: int) -> None:
        whole(self, count)
        if self.done > self.bags_per_epoch * 1.4:  # within the second epoch
            os.kill(os.getpid(), signal.SIGINT)

    arguments = [*DIGITS, cache, f"--config.run={tmp_path / 'run'}"]
    with monkeypatch.context() as patched:
        patched.setattr(TrainingProgress, "steps", stopping)
        ended = run(train.main, arguments, capsys)
    assert ended.code == 130
    assert "Stopping; the state is saved first. Ctrl-C again stops at once." in ended.out
    assert "--resume" in ended.out
    assert not RunFolder.open(tmp_path / "run").is_complete
    ended = run(train.main, [*arguments, "--resume"], capsys)
    assert ended.code == 0
    assert "Resumed in epoch 2 of 2" in ended.out
    assert_same_end(tmp_path / "run", digits)
    rows, of_digits = (RunFolder.open(folder).read_metrics() for folder in (tmp_path / "run", digits))
    for row in [*rows, *of_digits]:
        del row["seconds"]
    assert rows == of_digits


def test_the_ladder_chosen_when_a_run_began_is_used_when_it_is_resumed(own_data, cache):
    config, _, _ = parse([*SMALL, *own_data, cache], train.define_flags)
    assert prepare(config, choices={"ladder": [16, 64]}).ladder.lengths == (16, 64)


def test_a_run_that_was_begun_before_orders_had_blocks_keeps_its_order(own_data, cache):
    config, _, _ = parse([*SMALL, *own_data, cache], train.define_flags)
    assert prepare(config).blocks
    assert prepare(config, choices={"ladder": [16, 64], "blocks": True}).blocks
    before = prepare(config, choices={"ladder": [16, 64]})
    assert not before.blocks
    engine = EngineFitter(before)._open()
    assert set(engine.order.block_slots) == {1}
    engine.exits.close()
    config.train.order = "fold"
    assert prepare(config).blocks
    with pytest.raises(ConfigError, match=r"begun with train\.order=shared, .* cannot be resumed"):
        prepare(config, choices={"ladder": [16, 64]})


@pytest.mark.full
def test_regions_are_normalised_and_trained(cache, tmp_path):
    run_folder = tmp_path / "run"
    given = [f"--config.{setting}" for setting in ("train.epochs=1", "splits.folds=2", "aggregator.hidden_dim=8")]
    assert train.main(["--config=configs/hipt_none.py", *given, cache, f"--config.run={run_folder}"]) == 0
    assert json.loads((run_folder / "config.json").read_text())["config"]["data"]["normalize"] == "zscore"
    assert json.loads((run_folder / "summary.json").read_text())["complete"]
