"""The rule by which a parity case passes, and what the runner says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.parity import fill
from tests.parity.rule import compare
from tests.parity.runner import load_cases, run_case, run_folder

CASES = Path(__file__).parent / "cases"
SCRIPT = Path(__file__).parents[2] / "scripts" / "parity.py"


def _altered(folder: Path, name: str, alter) -> Path:
    """A copy of the case `name` with its arrays and meta changed by `alter(arrays, meta)`."""
    with np.load(CASES / f"{name}.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    meta = json.loads(str(arrays.pop("meta")))
    alter(arrays, meta)
    np.savez(folder / "case.npz", meta=json.dumps(meta), **arrays)
    return folder


def test_outputs_may_differ_by_a_ten_thousandth_of_their_largest_value():
    stored = np.array([2.0, -4.0])
    assert compare("out/x", stored + 3.9e-4, stored, {}).passed
    assert not compare("out/x", stored + 4.1e-4, stored, {}).passed


def test_gradients_have_ten_times_that():
    stored = np.array([2.0, -4.0])
    assert compare("grad/x", stored + 3.9e-3, stored, {}).passed
    assert not compare("grad_norm/x", stored + 4.1e-3, stored, {}).passed


def test_small_values_are_compared_with_a_hundredth():
    assert compare("out/x", np.array([9e-7]), np.array([0.0]), {}).passed
    assert not compare("out/x", np.array([1.1e-6]), np.array([0.0]), {}).passed


def test_integers_and_booleans_are_equal_or_fail():
    assert not compare("out/x", np.array([1, 2]), np.array([1, 3]), {"atol": 5.0}).passed
    assert compare("out/x", np.array([True]), np.array([1]), {}).passed


@pytest.mark.parametrize(
    ("key", "tolerance"),
    [
        ("out/x", {"by_output": {"x": 0.5}}),
        ("out/x", {"rtol_of_max": 0.5}),
        ("out/x", {"atol": 0.3, "rtol": 0.2}),
        ("grad/x", {"grad_atol": 0.5}),
        ("grad/x", {"grad_rtol_of_max": 0.5}),
        ("grad_norm/x", {"grad_norm_rtol": 0.5}),
        ("grad_norm/x", {"grad_norm_atol": 0.5}),
    ],
)
def test_the_cases_own_tolerance_holds_where_it_is_looser(key, tolerance):
    assert compare(key, np.array([1.49]), np.array([1.0]), tolerance).passed
    assert not compare(key, np.array([1.51]), np.array([1.0]), tolerance).passed


def test_a_missing_value_another_shape_and_nan_fail():
    assert not compare("out/x", np.array([np.nan]), np.array([1.0]), {"atol": 9.0}).passed
    assert not compare("out/x", np.array([1.0, 1.0]), np.array([1.0]), {}).passed
    assert compare("out/x", np.array([-np.inf, 1.0]), np.array([-np.inf, 1.0]), {}).passed


def test_a_case_with_other_sizes_classes_and_salt_runs(tmp_path):
    """Everything is read from the case: its values are computed here by the formula."""

    def alter(arrays, meta):
        n, d, c = 4, 6, 3
        meta["salt"], meta["inputs"]["x"] = "another", [n, d]
        meta["config"] |= {"in_dim": d, "attn_dim": 5, "n_classes": c, "label": [0.0, 1.0, 1.0]}
        meta["params"] = {
            "attention.0.weight": [5, d],
            "attention.0.bias": [5],
            "attention.2.weight": [1, 5],
            "attention.2.bias": [1],
            "classifier.weight": [c, d],
            "classifier.bias": [c],
        }
        p = fill.parameters(meta["params"], "another")
        x = fill.input_array("x", [n, d], "another")
        s = np.tanh(x @ p["attention.0.weight"].T + p["attention.0.bias"]) @ p["attention.2.weight"][0]
        a = np.exp(s) / np.exp(s).sum()
        arrays.clear()
        arrays["out/attention"] = a
        arrays["out/logits"] = (a @ x) @ p["classifier.weight"].T + p["classifier.bias"]

    (case,) = load_cases(_altered(tmp_path, "abmil_pathgene", alter))
    outcome = run_case(case, bucket=16)
    assert outcome.status == "passed", outcome.line(case.name)


def test_gradients_carry_the_cases_names_where_a_model_without_dropout_numbers_its_layers_otherwise(tmp_path):
    def alter(arrays, meta):
        meta["params"] = {name.replace("head.3", "head.2"): shape for name, shape in meta["params"].items()}
        arrays.clear()
        arrays["grad_norm/head.2.weight"] = np.ones(())

    (case,) = load_cases(_altered(tmp_path, "meanmax_mean", alter))
    outcome = run_case(case)
    assert outcome.worst == "grad_norm/head.2.weight", outcome.line(case.name)


def test_a_wrong_stored_value_fails_and_is_named(tmp_path):
    def alter(arrays, meta):
        arrays["out/logits"] = arrays["out/logits"] + 0.01

    lines: list[str] = []
    assert run_folder(_altered(tmp_path, "abmil_pathgene", alter), say=lines.append) == 1
    assert "case: failed" in lines[0]
    assert "failed: out/logits" in lines[0]
    assert lines[-1] == "0 passed, 1 failed, 0 not covered"


def test_a_stored_array_that_is_not_computed_fails(tmp_path):
    def alter(arrays, meta):
        arrays["out/novelty"] = np.ones(3)

    (case,) = load_cases(_altered(tmp_path, "abmil_pathgene", alter))
    assert run_case(case).failures == ["out/novelty (not computed)"]


def test_an_adapter_that_raises_is_a_failed_case(tmp_path):
    def alter(arrays, meta):
        meta["params"]["classifier.weight"] = [2, 5]

    (case,) = load_cases(_altered(tmp_path, "abmil_pathgene", alter))
    outcome = run_case(case)
    assert outcome.status == "failed"
    assert "classifier.weight" in outcome.failures[0]


def test_gradients_that_the_case_excludes_are_listed_with_the_reason():
    (case,) = load_cases(CASES, "abmil_pathgene.npz")
    assert "true gradient is zero" in run_case(case).skipped["grad/attention.2.bias"]


def test_a_case_of_another_method_is_not_covered_and_does_not_fail(tmp_path):
    def alter(arrays, meta):
        meta["method"] = "novel"

    lines: list[str] = []
    assert run_folder(_altered(tmp_path, "abmil_pathgene", alter), say=lines.append) == 0
    assert lines[-1] == "0 passed, 0 failed, 1 not covered"


def test_real_weights_that_are_absent_are_named(tmp_path, monkeypatch):
    def alter(arrays, meta):
        meta["params_from"] = "data/checkpoints/somewhere_else.npz"

    monkeypatch.delenv("MIL_JAX_SHARED", raising=False)
    (case,) = load_cases(_altered(tmp_path, "abmil_pathgene", alter))
    assert "somewhere_else.npz" in run_case(case).failures[0]


def test_a_case_without_a_bag_says_so_when_padding_is_asked_for():
    lines: list[str] = []
    assert run_folder(CASES, "pathgene_lookahead_radam", padded=True, say=lines.append) == 0
    assert "no bag to pad, ran bare" in lines[0]


def test_the_command_refuses_a_folder_without_cases_in_one_sentence(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "none"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"{tmp_path / 'none'}: no such folder of parity cases\n"
