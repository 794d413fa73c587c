"""From synthetic slides to a trained model, by the commands a user would type."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from scripts import slides_to_model


@pytest.mark.parametrize("small", [True, pytest.param(False, marks=pytest.mark.full)])
def test_the_whole_way_ends_with_a_trained_model(tmp_path, small):
    assert slides_to_model.main([f"--out={tmp_path}", *(["--small"] if small else [])]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["complete"]
    predictions = pd.read_csv(tmp_path / "run" / "predictions.csv", dtype=str)
    assert predictions["bag_id"].nunique() == (8 if small else 20)
    assert (tmp_path / "shards-inspect.png").stat().st_size > 5000
