"""Comparing runs: which tests apply, what is refused. The run folders are written here, not trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil_jax import compare
from mil_jax.config import base_config
from mil_jax.run_folder.folder import RunFolder
from mil_jax.run_folder.tasks_json import described
from mil_jax.tasks import Classification
from tests.commands import contents, run


def write_run(
    folder: Path,
    gap: float,
    *,
    targets: tuple[str, ...] = ("subtype",),
    bags: int = 40,
    folds: int = 4,
    seed: int = 0,
    on_test: bool = False,
) -> Path:
    """A run folder with test predictions that tell the classes apart the better, the larger the gap; two slides a patient."""
    config = base_config()
    config.data.target, config.data.labels = ",".join(targets), "labels.csv"
    created = RunFolder.create(folder, config.to_dict(), {})
    rng = np.random.default_rng(seed)
    predictions, splits = [], []
    for number, target in enumerate(targets):
        labels = np.arange(bags) // 2 % 2
        p = 1 / (1 + np.exp(-(gap * (2 * labels - 1) + rng.standard_normal(bags) + 0.1 * number)))
        table = pd.DataFrame({"bag_id": [f"s{bag}" for bag in range(bags)]})
        table["patient_id"] = [f"p{bag // 2}" for bag in range(bags)]
        table = table.assign(num_instances=5, fold=np.arange(bags) // 4 % folds, seed=0, part="test")
        table = table.assign(target=np.array(["no", "yes"])[labels], prob_no=1 - p, prob_yes=p)
        split = pd.concat(
            [
                table[["bag_id", "patient_id"]].assign(fold=k, part=np.where(table["fold"] == k, "test", "train"))
                for k in range(folds)
            ]
        )
        if len(targets) > 1:
            table.insert(0, "label_column", target)
            split.insert(0, "label_column", target)
        predictions.append(table)
        splits.append(split)
    created.write_table("predictions.csv", pd.concat(predictions))
    created.write_table("splits.csv", pd.concat(splits))
    task = Classification(("no", "yes"))
    created.write_json("tasks.json", [{"label_column": target, **described(task)} for target in targets])
    several = {"targets": {}} if len(targets) > 1 else {}
    created.write_json("summary.json", {"complete": True, "selected_on_test": on_test, **several})
    return folder


def test_a_better_run_is_told_from_a_worse_one(tmp_path):
    worse, better = write_run(tmp_path / "worse", 0.2), write_run(tmp_path / "better", 2.0, seed=1)
    assert compare.main(["--run", str(worse), "--run", str(better), "--out", str(tmp_path / "out")]) == 0
    assert set(contents(tmp_path / "out")) == {"summary.md", "differences.csv", "comparison.json"}
    auc = pd.read_csv(tmp_path / "out" / "differences.csv").set_index("metric").loc["auc"]
    assert 0 < auc["low"] < auc["difference"] < auc["high"]
    assert auc["p_bootstrap"] < 0.05
    assert 0 < auc["p_folds"] < 1
    assert auc["p"] == auc["p_folds"]
    assert auc["p_holm"] == auc["p"]  # of one comparison
    assert np.isnan(auc["p_delong"])  # folds are pooled, and a patient has two slides


def test_delong_is_given_for_one_test_part_with_a_slide_for_each_patient(tmp_path):
    runs = []
    for name, gap in (("a", 0.2), ("b", 2.0)):
        folder = write_run(tmp_path / name, gap, folds=1)
        table = pd.read_csv(folder / "predictions.csv").drop_duplicates("patient_id")
        table.to_csv(folder / "predictions.csv", index=False)
        runs += ["--run", str(folder)]
    assert compare.main([*runs, "--out", str(tmp_path / "out")]) == 0
    auc = pd.read_csv(tmp_path / "out" / "differences.csv").set_index("metric").loc["auc"]
    assert auc["p_delong"] < 0.05
    assert auc["p"] == auc["p_bootstrap"]
    assert np.isnan(auc["p_folds"])


def test_ranks_over_five_tasks_are_drawn(tmp_path):
    targets = tuple("abcde")
    runs = [
        f"{name}={write_run(tmp_path / name, gap, targets=targets)}" for name, gap in (("x", 0.1), ("y", 1), ("z", 2))
    ]
    assert compare.main([*(f"--run={one}" for one in runs), "--out", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["ranks"]["mean"]["z"] < content["ranks"]["mean"]["x"]
    assert any("ranks are not independent" in line for line in content["statements"])
    assert (tmp_path / "out" / "figures" / "critical_difference.png").stat().st_size > 5000


def test_runs_that_were_selected_on_test_are_marked_and_not_mixed_with_others(tmp_path, capsys):
    clean, flattered = write_run(tmp_path / "clean", 1.0), write_run(tmp_path / "flat", 2.0, on_test=True)
    runs = ["--run", str(clean), "--run", str(flattered), "--out", str(tmp_path / "out")]
    ended = run(compare.main, runs, capsys)
    assert (ended.code, "selected on test by flat" in ended.err, "--mixed-protocols" in ended.err) == (2, True, True)
    assert not (tmp_path / "out").exists()
    assert compare.main([*runs, "--mixed-protocols"]) == 0
    assert set(pd.read_csv(tmp_path / "out" / "differences.csv")["selected_on_test"]) == {"flat"}
    assert "| flat (selected on test) |" in (tmp_path / "out" / "summary.md").read_text()


def test_different_slides_are_refused_with_their_count(tmp_path, capsys):
    first, second = write_run(tmp_path / "a", 1.0), write_run(tmp_path / "b", 1.0, bags=44)
    ended = run(compare.main, ["--run", str(first), "--run", str(second)], capsys)
    assert ended.code == 2
    assert "tested on different slides, 4 only by b (s40, s41, s42 and 1 more)" in ended.err
    assert not (first / "comparison").exists()


def test_different_labels_are_refused(tmp_path, capsys):
    first, second = write_run(tmp_path / "a", 1.0), write_run(tmp_path / "b", 1.0)
    table = pd.read_csv(second / "predictions.csv")
    table.loc[0, "target"] = "yes"
    table.to_csv(second / "predictions.csv", index=False)
    assert "other patients or labels for 1 slides (s0)" in run(
        compare.main, ["--run", str(first), "--run", str(second)], capsys
    ).err  # fmt: skip


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "a comparison needs two"),
        (["a", "missing"], "neither a run folder"),
        (["x=a", "x=a"], "a comparison needs two"),
    ],
)
def test_bad_arguments_are_said_in_one_sentence(tmp_path, capsys, names, message):
    write_run(tmp_path / "a", 1.0)
    runs = [
        f"--run={name.rpartition('=')[0]}{'=' * ('=' in name)}{tmp_path / name.rpartition('=')[2]}" for name in names
    ]
    ended = run(compare.main, runs, capsys)
    assert ended.code == 2
    assert message in ended.err
