"""The run folder: what is written can be read back, resumed and never mistaken."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from mil_jax.errors import RunFolderError
from mil_jax.run_folder import folder as module
from mil_jax.run_folder.folder import RunFolder, fingerprint

CONFIG = {"optimizer": {"name": "adam", "lr": 2e-4}, "train": {"epochs": 20}, "widths": (512, 384)}
DATA = {"features": "a1", "labels": "b2"}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.setattr(module, "describe_environment", lambda: {"started": "now"})


def test_the_settings_are_read_back_and_resumed(tmp_path):
    RunFolder.create(tmp_path / "run", CONFIG, DATA)
    run = RunFolder.create(tmp_path / "run", CONFIG, DATA, resume=True)
    assert run.resumed
    assert run.config == {**CONFIG, "widths": [512, 384]}
    assert len(run.read_json("environment.json")["sessions"]) == 2


def test_resuming_where_nothing_is_starts_a_run(tmp_path):
    assert not RunFolder.create(tmp_path / "run", CONFIG, DATA, resume=True).resumed


def test_a_start_killed_before_its_config_was_written_can_be_started_again(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / ".config.json.123.tmp").write_text("{")
    assert not RunFolder.create(tmp_path / "run", CONFIG, DATA, resume=True).resumed


def test_settings_named_free_may_differ_when_resuming(tmp_path):
    RunFolder.create(tmp_path / "run", CONFIG, DATA)
    RunFolder.create(tmp_path / "run", {**CONFIG, "train": {"epochs": 30}}, DATA, resume=True, free=("train",))


def test_overwriting_moves_the_older_runs_aside(tmp_path):
    for epochs in (1, 2, 3):
        run = RunFolder.create(tmp_path / "run", {"epochs": epochs}, DATA, overwrite=True)
    assert run.moved == tmp_path / "run.old2"
    kept = [RunFolder.open(tmp_path / name).config["epochs"] for name in ("run.old", "run.old2", "run")]
    assert kept == [1, 2, 3]


def test_automatic_choices_add_up_and_survive_resuming(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, DATA)
    run.write_choices({"ladder": (128, 512)})
    run.write_choices({"residency": "resident"})
    resumed = RunFolder.create(tmp_path / "run", CONFIG, DATA, resume=True)
    assert resumed.choices == {"ladder": [128, 512], "residency": "resident"}


@pytest.mark.parametrize("choices", [True, "x", {"ladder": "wide"}])
def test_damaged_choices_are_not_added_to(tmp_path, choices):
    run = RunFolder.create(tmp_path / "run", CONFIG, DATA)
    run.write_json("config.json", {**run.read_json("config.json"), "choices": choices})
    with pytest.raises(RunFolderError, match=r"config\.json"):
        run.write_choices({"residency": "resident"})


def test_metrics_grow_by_lines_and_are_cut_back_to_an_epoch(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, DATA)
    for epoch in range(3):
        rows = [{"phase": "b", "epoch": epoch, "fold": fold, "seed": 0, "loss": np.float32(0.5)} for fold in range(2)]
        run.append_metrics(rows)
    run.append_metrics([{"phase": "a", "epoch": 9, "fold": 0, "seed": 0}])
    run.truncate_metrics("b", last_epoch=1)
    assert [(row["epoch"], row["fold"]) for row in run.read_metrics()] == [(0, 0), (0, 1), (1, 0), (1, 1), (9, 0)]


def test_a_half_written_last_line_of_metrics_is_dropped(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, DATA)
    run.append_metrics([{"phase": "a", "epoch": 0, "fold": 0, "seed": 0}])
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "fo')
    run.truncate_metrics("a", last_epoch=5)
    run.append_metrics([{"phase": "a", "epoch": 1, "fold": 0, "seed": 0}])
    assert [row["epoch"] for row in run.read_metrics()] == [0, 1]


def test_json_is_standard_even_with_nan_and_numpy(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, DATA)
    run.write_json("summary.json", {"auc": np.nan, "folds": np.arange(2), "best": np.float64(0.5), "path": tmp_path})

    def refuse(word):
        raise AssertionError(word)

    content = json.loads((run.path / "summary.json").read_text(), parse_constant=refuse)
    assert content == {"auc": None, "folds": [0, 1], "best": 0.5, "path": str(tmp_path)}


def test_tables_keep_ids_as_text_and_every_digit(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, DATA)
    table = pd.DataFrame({"bag_id": ["007", "NA"], "target": ["1", "0"], "prob_1": [1 / 3, np.nan]})
    run.write_table("predictions.csv", table)
    pd.testing.assert_frame_equal(run.read_table("predictions.csv"), table)


def test_only_a_run_with_a_complete_summary_is_complete(tmp_path):
    run = RunFolder.create(tmp_path / "run", CONFIG, DATA)
    for content in (None, {"complete": False}):
        if content:
            run.write_json("summary.json", content)
        with pytest.raises(RunFolderError, match="--resume"):
            RunFolder.require_complete(run.path)
    run.write_json("summary.json", {"complete": True})
    assert RunFolder.require_complete(run.path).path == run.path


def test_a_fingerprint_follows_content_order_and_type():
    table = pd.DataFrame({"a": [1, 2]})
    same = fingerprint(np.arange(3), ["x", "y"], table)
    assert same == fingerprint(np.arange(3), ["x", "y"], table.copy())
    others = [
        fingerprint(np.arange(3), ["y", "x"], table),
        fingerprint(np.arange(3).astype(np.int32), ["x", "y"], table),
        fingerprint(np.arange(3), ["x", "y"], table + 1),
        fingerprint(np.arange(3), "xy", table),
    ]
    assert same not in others
