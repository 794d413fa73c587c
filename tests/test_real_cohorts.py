"""Real cohort tables with their published splits, and features with a planted signal: runs reach what was planted.

The tables may not be shipped: they are read from the folder of optional data.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil_jax.data.cohort.ids import base_name
from mil_jax.tasks.metrics.classification import binary_auc
from mil_jax.tasks.metrics.survival import Cases, concordance
from mil_jax.tasks.survival import bin_edges, bin_of
from mil_jax.train import main

MEANINGLESS = 5  # features


def planted_features(folder: Path, names: list[str], score: np.ndarray) -> Path:
    """Four instances a slide, whose first features are the scores [M] or [M, K] in little noise; the others mean nothing."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    scores = score.reshape(len(names), -1)
    for name, values in zip(names, scores):
        rows = rng.normal(size=(4, len(values) + MEANINGLESS)).astype(np.float32)
        rows[:, : len(values)] = values + 0.1 * rows[:, : len(values)]
        np.save(folder / f"{name}.npy", rows)
    return folder


def planted_subtypes(labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Scores [M, C] that lie 1.5 higher for a slide's own class, and the mean AUC of the best decision on them."""
    own = labels[:, None] == np.unique(labels)
    score = 1.5 * own + np.random.default_rng(1).normal(size=own.shape)
    posterior = np.exp(1.5 * score)
    posterior /= posterior.sum(axis=1, keepdims=True)
    return score, float(np.mean([binary_auc(p, y) for p, y in zip(posterior.T, own.T)]))


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
@pytest.mark.parametrize(
    ("name", "loss_name", "num_patients"),
    [("luad", "nll", 453), ("luad", "cox", 453), ("ucec", "nll", 480), ("ucec", "cox", 480)],
)
def test_survival_of_patients_reaches_the_planted_c_index(shared, tmp_path, name, loss_name, num_patients):
    folder = shared / "data/cohorts/patchgcn"
    table = pd.read_csv(folder / f"tcga_{name}_survival.csv")
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
        data__labels=folder / f"tcga_{name}_survival.csv",
        data__target="survival_months",
        data__censored="censorship",
        data__unit="patient",
        splits__file=folder / f"tcga_{name}_splits.csv",
    )
    assert summary["num_bags"] == num_patients
    assert summary["metrics"]["c_index"]["estimate"] > planted - 0.03
    assert summary["risk_groups"]["p"] < 1e-6


@pytest.mark.full
def test_survival_of_an_attention_model_reaches_the_planted_c_index(shared, tmp_path):
    folder = shared / "data/cohorts/patchgcn"
    table = pd.read_csv(folder / "tcga_luad_survival.csv")
    score = -np.log1p(table["survival_months"].to_numpy()) + np.random.default_rng(1).normal(size=len(table))
    score = table.assign(score=score).groupby("case_id")["score"].transform("mean").to_numpy()
    patients = table.assign(score=score).drop_duplicates("case_id")
    time, died = patients["survival_months"].to_numpy(), patients["censorship"].to_numpy() == 0
    cases = Cases(time, died, patients["score"].to_numpy(), np.zeros(len(patients)))
    summary = run(
        tmp_path,
        planted_features(tmp_path / "features", table["slide_id"].tolist(), score),
        "survival",
        aggregator__feature_dim=16,
        aggregator__attention_dim=8,
        data__labels=folder / "tcga_luad_survival.csv",
        data__target="survival_months",
        data__censored="censorship",
        data__unit="patient",
        splits__file=folder / "tcga_luad_splits.csv",
        optimizer__lr=3e-3,
        train__epochs=15,
    )
    planted = float(concordance(cases, np.ones((1, len(patients)))).harrell[0])
    assert summary["metrics"]["c_index"]["estimate"] > planted - 0.04


@pytest.mark.parametrize(
    ("genes", "subtypes"),
    [
        (("TP53",), ["LUAD"]),
        pytest.param(
            ("TP53", "PIK3CA", "RAS", "ALK", "KEAP1", "RB1", "NF1", "ATM"), ["LUAD", "LUSC"], marks=pytest.mark.full
        ),
    ],
)
def test_mutations_of_tcga_lung_reach_the_planted_aucs_and_the_leaks_are_reported(shared, tmp_path, genes, subtypes):
    folder = shared / "data/cohorts/hipt"
    table = pd.read_csv(folder / "tcga_lung_subset.csv").query("oncotree_code in @subtypes")
    columns = [f"{gene}_mut" for gene in genes]
    mutated = table[columns].to_numpy() > 0
    score = 1.5 * mutated + np.random.default_rng(1).normal(size=mutated.shape)
    summary = run(
        tmp_path,
        planted_features(tmp_path / "features", table["slide_id"].tolist(), score),
        "linear_probe",
        strategy__strengths="(0.1, 1.0, 10.0)",
        data__labels=folder / "tcga_lung_subset.csv",
        data__target=",".join(columns),
        data__filter=f"oncotree_code in {subtypes}",
        data__min_matched=0.3,
        splits__file=folder / "tcga_lung_splits.csv",
    )
    targets = summary.get("targets") or {columns[0]: summary}
    assert list(targets) == columns
    assert sum("leak: fold" in line for line in summary["statements"]) >= 10
    short = []
    for column, one_score, label in zip(columns, score.T, mutated.T):
        found = targets[column]["metrics"]["auc"]["estimate"]
        short.append(binary_auc(one_score, label) - found)
    assert np.mean(short) < 0.03
    assert max(short) < 0.07  # of ALK, which 48 slides have


@pytest.mark.full
@pytest.mark.parametrize(("name", "num_slides"), [("kidney", 905), ("brca", 875)])
def test_subtypes_of_an_attention_model_reach_the_planted_auc(shared, tmp_path, name, num_slides):
    folder = shared / "data/cohorts/hipt"
    table = pd.read_csv(folder / f"tcga_{name}_subset.csv")
    if name == "brca":
        table = table[table["oncotree_code"].isin(["IDC", "ILC"])]
    score, planted = planted_subtypes(table["oncotree_code"].to_numpy())
    summary = run(
        tmp_path,
        planted_features(tmp_path / "features", table["slide_id"].tolist(), score),
        "abmil",
        aggregator__feature_dim=16,
        aggregator__attention_dim=8,
        data__labels=folder / f"tcga_{name}_subset.csv",
        data__target="oncotree_code",
        data__filter="oncotree_code in ['IDC', 'ILC']" if name == "brca" else "",
        splits__file=folder / f"tcga_{name}_splits.csv",
        optimizer__lr=3e-3,
        train__epochs=6,
        train__min_epochs=0,
        train__patience=0,
    )
    assert sum("leak: fold" in line for line in summary["statements"]) >= 10
    assert summary["num_bags"] <= num_slides  # the ten test parts overlap, and need not hold every slide
    assert summary["metrics"]["auc"]["estimate"] > planted - 0.03


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
    assert summary["metrics"]["auc"]["estimate"] > planted - 0.03
    assert sum("leak: fold" in line for line in summary["statements"]) >= 10
    assert summary["leak_free"]["auc"]["estimate"] == pytest.approx(planted, abs=0.03)


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
    assert summary["metrics"]["auc"]["estimate"] > planted - 0.04
    assert summary["selected_on_test"] == (protocol == "reference")
    assert summary["metrics"]["pathgene_auc"]["mean"] > planted - 0.06
