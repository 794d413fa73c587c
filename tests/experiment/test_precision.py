"""`train.precision=auto` takes bfloat16 where a GPU is used and the committed measurement allows it, and what bfloat16 costs in AUC."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mil_jax import train
from mil_jax.config import base_config
from mil_jax.experiment import phases
from tests.commands import run

ROOT = Path(__file__).parents[2]
BAR = 0.005  # of the AUC, on average over the seeds: what is under it may be a default
LARGEST_AUC_DIFFERENCE = 0.01  # of one seed over 5 folds


def settings(name, **groups):
    config = base_config()
    config.aggregator.name = name
    config.update(groups)
    return config


def test_without_a_gpu_the_choice_is_float32():
    assert phases.resolve_precision(settings("abmil")) == "float32"


def test_on_a_gpu_what_was_measured_is_bfloat16_unless_something_else_is_asked_for(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert [phases.resolve_precision(settings(name)) for name in phases.MEASURED] == ["bfloat16"] * len(phases.MEASURED)
    assert phases.resolve_precision(settings("patch_gcn")) == "float32"
    assert phases.resolve_precision(settings("abmil", train={"precision": "float32"})) == "float32"
    assert phases.resolve_precision(settings("abmil", strategy={"name": "mhim"})) == "float32"
    assert phases.resolve_precision(settings("abmil", reembed={"name": "r2t"})) == "float32"


def test_only_what_the_committed_measurement_shows_may_be_bfloat16_by_default():
    files = sorted((ROOT / "benchmarks" / "results").glob("precision-*.json"))
    figures = [json.loads(file.read_text())["figures"] for file in files]
    cost = {
        name: np.mean(np.subtract(aucs["bfloat16"], aucs["float32"])) for one in figures for name, aucs in one.items()
    }
    assert set(phases.MEASURED) == {name for name, difference in cost.items() if abs(difference) < BAR}


@pytest.mark.full
def test_bfloat16_changes_the_auc_on_the_digits_by_little(tmp_path, capsys):
    aucs = {}
    for kind in ("float32", "bfloat16"):
        folder = tmp_path / kind
        arguments = ["--config=configs/abmil.py", f"--config.run={folder}", f"--config.train.precision={kind}"]
        assert run(train.main, arguments, capsys).code == 0
        rows = pd.read_csv(folder / "predictions.csv").query("part == 'test'")
        aucs[kind] = np.mean(
            [roc_auc_score(one["target"] == "nine", one["prob_nine"]) for _, one in rows.groupby("fold")]
        )
    assert aucs["bfloat16"] != aucs["float32"]
    assert abs(aucs["bfloat16"] - aucs["float32"]) < LARGEST_AUC_DIFFERENCE
