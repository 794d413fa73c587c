"""Real cohort tables with their published splits, and features with a planted signal: runs reach what was planted.

The tables may not be shipped: they are read from the folder of optional data.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil_jax.data.ids import base_name
from mil_jax.tasks.metrics import binary_auc
from mil_jax.tasks.survival import bin_edges, bin_of
from mil_jax.tasks.survival_metrics import Cases, concordance
from mil_jax.train import main

WIDTH = 6


def planted_features(folder: Path, names: list[str], score: np.ndarray) -> Path:
    """Four instances a slide, whose first feature is the score in a third of the instances' noise; the others mean nothing."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name, value in zip(names, score):
        rows = rng.normal(size=(4, WIDTH)).astype(np.float32)
        rows[:, 0] = value + 0.1 * rows[:, 0]
        np.save(folder / f"{name}.npy", rows)
    return folder


def run(tmp_path: Path, features: Path, config: str, **settings: object) -> dict:
    arguments = [f"--config.{name.replace('__', '.')}={value}" for name, value in settings.items()]
    common = [f"--config.data.features={features}", f"--config.data.cache={tmp_path / 'cache'}"]
    assert main(["--config", f"configs/{config}.py", f"--config.run={tmp_path / config}", *common, *arguments]) == 0
    return json.loads((tmp_path / config / "summary.json").read_text())


@pytest.mark.parametrize(
    ("name", "edges", "patients"),
    [
        ("ucec", [0.069999, 12.125, 23.46, 33.855, 225.330001], [61, 122, 80, 217]),
        ("luad", [0.129999, 10.0975, 20.55, 35.445, 238.110001], [77, 133, 123, 120]),
    ],
)
def test_bins_of_real_times_are_the_published_ones(shared, name, edges, patients):
    table = pd.read_csv(shared / f"data/cohorts/patchgcn/tcga_{name}_survival.csv")
    table = table.drop_duplicates("case_id")
    found = bin_edges(table["survival_months"].to_numpy(), 1 - table["censorship"].to_numpy(), 4)
    assert found == pytest.approx(edges, abs=1e-9)
    assert np.bincount(bin_of(table["survival_months"].to_numpy(), found)).tolist() == patients


@pytest.mark.full
@pytest.mark.parametrize("loss_name", ["nll", "cox"])
def test_survival_of_tcga_luad_reaches_the_planted_c_index(shared, tmp_path, loss_name):
    folder = shared / "data/cohorts/patchgcn"
    table = pd.read_csv(folder / "tcga_luad_survival.csv")
    rng = np.random.default_rng(1)
    score = -np.log1p(table["survival_months"].to_numpy()) + rng.normal(size=len(table))
    score = table.assign(score=score).groupby("case_id")["score"].transform("mean").to_numpy()
    patients = table.assign(score=score).drop_duplicates("case_id")
    cases = Cases(
        patients["survival_months"].to_numpy(),
        patients["censorship"].to_numpy() == 0,
        patients["score"].to_numpy(),
        np.zeros(len(patients)),
    )
    planted = float(concordance(cases, np.ones((1, len(patients)))).harrell[0])
    features = planted_features(tmp_path / "features", table["slide_id"].tolist(), score)
    summary = run(
        tmp_path,
        features,
        "linear_probe",
        task__name="survival",
        task__loss_name=loss_name,
        data__labels=folder / "tcga_luad_survival.csv",
        data__target="survival_months",
        data__censored="censorship",
        data__unit="patient",
        splits__file=folder / "tcga_luad_splits.csv",
    )
    assert summary["num_bags"] == 453
    assert summary["metrics"]["c_index"]["pooled"] > planted - 0.03
    assert summary["risk_groups"]["p"] < 1e-6


@pytest.mark.full
def test_subtypes_of_tcga_lung_reach_the_planted_auc_and_the_leaks_are_reported(shared, tmp_path):
    folder = shared / "data/cohorts/hipt"
    table = pd.read_csv(folder / "tcga_lung_subset.csv")
    squamous = (table["oncotree_code"] == "LUSC").to_numpy()
    score = squamous + np.random.default_rng(1).normal(size=len(table))
    planted = binary_auc(score, squamous)
    features = planted_features(tmp_path / "features", table["slide_id"].tolist(), score)
    summary = run(
        tmp_path,
        features,
        "linear_probe",
        data__labels=folder / "tcga_lung_subset.csv",
        data__target="oncotree_code",
        splits__file=folder / "tcga_lung_splits.csv",
    )
    assert summary["metrics"]["auc"]["pooled"] > planted - 0.03
    assert sum("leak: fold" in line for line in summary["statements"]) >= 10
    assert summary["leak_free"]["auc"]["pooled"] == pytest.approx(planted, abs=0.03)


@pytest.mark.full
@pytest.mark.parametrize("protocol", ["clean", "reference"])
def test_pathgenes_layout_reaches_the_planted_auc_under_both_protocols(shared, tmp_path, protocol):
    path = shared / "data/cohorts/pathgene_synthetic/SYN_LUAD_TP53_2.csv"
    table = pd.read_csv(path)
    score = table["label"].to_numpy() + np.random.default_rng(1).normal(size=len(table))
    planted = binary_auc(score, table["label"].to_numpy() > 0)
    features = planted_features(tmp_path / "features", [base_name(name) for name in table["path"]], score)
    # As the real tables come: without a header, with Windows drives, and with a typing error among the labels.
    lines = [f"K:\\pt_files\\{base_name(row.path)}.pt,{row.label},{row.Fold}" for row in table.itertuples()]
    lines[3] = lines[3].replace(",0,", ",11,").replace(",1,", ",11,")
    labels = tmp_path / "LUAD_TP53_2_1.csv"
    labels.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    settings = (
        {"train__protocol": "reference", "train__select": "val_selection_score"} if protocol == "reference" else {}
    )
    summary = run(
        tmp_path,
        features,
        "pathgene",
        data__labels=labels,
        data__classes="0,1",
        data__patient="regex:^SYN-[0-9]{4}",
        splits__file=labels,
        optimizer__lr=1e-2,
        train__epochs=8,
        **settings,
    )
    assert summary["num_bags"] == len(table) - 1
    assert any("none of the classes and dropped (11)" in note for note in summary["notes"])
    assert summary["metrics"]["auc"]["pooled"] > planted - 0.04
    assert summary["selected_on_test"] == (protocol == "reference")
    assert summary["metrics"]["pathgene_auc"]["mean"] > planted - 0.06
