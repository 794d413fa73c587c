"""Several label columns in one program: each with its own labels, splits and bags, and each as it would be alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from mil_jax import train
from mil_jax.config import parse
from mil_jax.data.splits.splits import UNUSED
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.fit import fit
from mil_jax.engine.plan import Plan, Replica
from mil_jax.engine.types import EngineSettings, Phase
from mil_jax.errors import ConfigError, DataError
from mil_jax.experiment.prepare import prepare
from mil_jax.experiment.targets import columns_named, splits_table
from mil_jax.reports.run.multi_target import common_sentences
from tests.commands import SMALL, run
from tests.engine.cohorts import HYPER, TASK, Silent, engine_data, strategy
from tests.invented import invent, write_labels, write_plain


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings that name a cohort with three columns mut_*: one without a label for every fourth patient, one always 0."""
    home = tmp_path_factory.mktemp("panel")
    cohort = invent(20, slides=(1, 1))
    patient = np.arange(len(cohort.table))
    cohort.table["mut_A"] = cohort.table["mutated"]
    cohort.table["mut_B"] = np.where(patient % 4 == 3, np.nan, patient // 2 % 2)
    cohort.table["mut_none"] = 0
    features, labels = write_plain(cohort, home / "features"), write_labels(cohort, home / "labels.csv")
    named = [f"--config.data.features={features}", f"--config.data.labels={labels}", "--config.data.site=case_id"]
    return [*SMALL, *named, f"--config.data.cache={home / 'cache'}"]


def prepared(panel: list[str], target: str):
    return prepare(parse([*panel, f"--config.data.target={target}"], train.define_flags)[0])


def test_a_run_of_a_second_target_is_bit_identical_to_itself_alone():
    """Both targets have the same splits, so that the slots are those of one; the labels of the second are reversed."""
    data = engine_data()
    data = dataclasses.replace(data, lengths=(16,), bucket=np.zeros_like(data.bucket))  # fewer programs to compile
    twice = {name: np.concatenate([getattr(data, name)] * 2) for name in ("training", "selection", "test")}
    labels = np.concatenate([data.targets, 1 - data.targets])
    both = dataclasses.replace(data, targets=labels, first_row=(0, 2), **twice)
    alone = dataclasses.replace(data, targets=labels[1:])
    phases, settings = [Phase(strategy(), 2, Selection("val_loss"))], EngineSettings()
    replicas = tuple(Replica(fold, 0, target) for target in (0, 1) for fold in (0, 1))
    together = fit(phases, both, TASK, Plan(replicas, HYPER), settings, Silent())
    one = fit(phases, alone, TASK, Plan((Replica(1, 0),), HYPER), settings, Silent())
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[3], y[0]), together.state, one.state)
    np.testing.assert_array_equal(together.logits[3]["test"], one.logits[0]["test"])


def test_each_target_has_the_splits_that_it_has_alone_and_leaves_bags_without_label_unused(panel):
    both = prepared(panel, "mut_A,mut_B")
    assert [target.name for target in both.targets] == ["mut_A", "mut_B"]
    np.testing.assert_array_equal(both.targets[0].splits.parts, prepared(panel, "mut_A").parts)
    unlabelled = both.cohort.labels["mut_B"].isna().to_numpy()
    assert unlabelled.any()
    assert (both.targets[1].splits.parts[:, unlabelled] == UNUSED).all()
    assert (both.targets[1].splits.parts[:, ~unlabelled] != UNUSED).all()
    assert [both.row(replica) for replica in both.plan.replicas] == [0, 1, 2, 3]
    assert both.first_row == (0, 2)


def test_the_splits_of_several_targets_are_read_back(panel, tmp_path):
    both = prepared(panel, "mut_A,mut_B")
    path = tmp_path / "splits.csv"
    splits_table(both.targets, both.cohort).to_csv(path, index=False)
    again = prepared([*panel, f"--config.splits.file={path}"], "mut_B,mut_A")
    for target, as_before in zip(reversed(again.targets), both.targets):
        np.testing.assert_array_equal(target.splits.parts, as_before.splits.parts)
    with pytest.raises(DataError, match=r"has the splits of mut_A, mut_B, and none of label column 'mutated'"):
        prepared([*panel, f"--config.splits.file={path}"], "mutated")


def test_a_pattern_leaves_out_what_cannot_be_trained_and_says_so(panel):
    experiment = prepared(panel, "mut_*")
    assert [target.name for target in experiment.targets] == ["mut_A", "mut_B"]
    assert experiment.left_out["label_column"].tolist() == ["mut_none"]
    assert "a classification needs two" in experiment.left_out["reason"][0]


def test_several_targets_leave_tables_with_a_row_for_each(panel, tmp_path, capsys):
    folder = tmp_path / "run"
    ended = run(train.main, [*panel, "--config.data.target=mut_*", f"--config.run={folder}"], capsys)
    assert ended.code == 0
    assert "label column left out: mut_none" in ended.out
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["complete"], list(summary["targets"])) == (True, ["mut_A", "mut_B"])
    assert summary["targets"]["mut_B"]["num_bags"] == 15
    table, predictions, splits = (pd.read_csv(folder / f"{name}.csv") for name in ("targets", "predictions", "splits"))
    assert table["label_column"].tolist() == ["mut_A", "mut_B"]
    test = predictions[predictions["part"] == "test"]
    assert test.groupby("label_column").size().to_dict() == {"mut_A": 20, "mut_B": 15}
    assert set(splits["label_column"]) == {"mut_A", "mut_B"}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {(row["label_column"], row["fold_name"]) for row in rows} == {
        (column, fold) for column in ("mut_A", "mut_B") for fold in ("0", "1")
    }
    markdown = Path(folder / "summary.md").read_text()
    for said in ("| mut_A |", "| mut_B |", "| mut_none |", "Label columns left out", "targets.png"):
        assert said in markdown


def test_check_shows_the_class_counts_of_each_label_column(panel, capsys):
    ended = run(train.main, [*panel, "--config.data.target=mut_A,mut_B", "--check"], capsys)
    assert ended.code == 0
    assert "2 label columns x 2 folds x 1 seed" in ended.out
    for shown in ("label columns", "mut_A", "mut_B", "0: 10, 1: 10"):
        assert shown in ended.out


def test_names_and_patterns_of_columns():
    header = ["slide", "mut_A", "mut_B", "odd[1]", "age"]
    assert columns_named("mut_*, age", header) == (("mut_A", "mut_B", "age"), frozenset({"mut_A", "mut_B"}))
    assert columns_named("mut_A,mut_*", header) == (("mut_A", "mut_B"), frozenset({"mut_B"}))
    assert columns_named("odd[1]", header) == (("odd[1]",), frozenset())
    with pytest.raises(ConfigError, match="no column of the label table matches 'mut-"):
        columns_named("mut-*", header)


def test_sentences_that_hold_for_all_targets_are_said_once():
    said = {"A": ["5 folds", "small"], "B": ["5 folds"], "C": ["5 folds", "small"]}
    assert common_sentences(said) == ["5 folds", "A, C: small"]
