"""Cells that spreadsheets take for formulas are written inert and read back as they were."""

from __future__ import annotations

import csv

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mil_jax.csv_cells import inert, original
from mil_jax.data.tables import read_columns
from mil_jax.run_folder import folder as module
from mil_jax.run_folder.folder import RunFolder


@pytest.mark.parametrize(
    "text", ["=1+1", "+A1", "-A1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1", "'=1+1", "=HYPERLINK(1)"]
)
def test_a_formula_is_written_as_text(text):
    assert inert(text)[0] == "'"


@pytest.mark.parametrize("cell", ["-1", "+0.5", "-1e-3", "a=b", "", "TCGA-05-4244", "'quoted'", 3, -0.5, None])
def test_numbers_and_other_text_stay(cell):
    assert inert(cell) == cell


@given(st.text(alphabet="'=+-@\t\n\uff1da1", max_size=8))
def test_what_was_written_is_read_back(text):
    assert original(inert(text)) == text


def test_tables_of_a_run_and_label_tables_hold_ids_like_formulas(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "describe_environment", lambda: {"started": "now"})
    run = RunFolder.create(tmp_path / "run", {}, {})
    table = pd.DataFrame({"bag_id": ["=1+1", "s1"], "patient_id": ["@p", "p1"], "logit": [-1.5, 2.0]})
    run.write_table("predictions.csv", table)
    with (tmp_path / "run" / "predictions.csv").open() as file:
        assert next(csv.DictReader(file)) == {"bag_id": "'=1+1", "patient_id": "'@p", "logit": "-1.5"}
    pd.testing.assert_frame_equal(run.read_table("predictions.csv"), table)
    assert read_columns(tmp_path / "run" / "predictions.csv", ["bag_id"])["bag_id"].tolist() == ["=1+1", "s1"]
