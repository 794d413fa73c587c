"""Scoring slides with a trained run, from end to end: who scores whom, what is refused, what is left in the results folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mil_jax import evaluate, train
from mil_jax.inference import score_cohort
from mil_jax.reports.evaluation.calibration import fitted, mean_of_scores
from mil_jax.run_folder.folder import RunFolder
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.metrics.instances import LabelledSlide, instance_result
from tests.commands import SMALL, Ended, contents, run
from tests.invented import Invented, invent, write_clam, write_labels, write_trident


def elsewhere(patients: int = 10, width: int = 16) -> Invented:
    """A cohort of other people."""
    cohort = invent(patients, width=width, seed=5)
    features = {name.replace("TCGA", "HOSP"): tiles for name, tiles in cohort.features.items()}
    table = cohort.table.assign(**{c: cohort.table[c].str.replace("TCGA", "HOSP") for c in ("slide_id", "case_id")})
    return Invented(
        features, table.assign(scanner=np.where(np.arange(len(table)) % 2, "A", "B"), site="Northern hospital")
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """own/ and own.csv, a run on them, and other/ and other.csv of other people."""
    home = tmp_path_factory.mktemp("evaluate")
    own, other = invent(20), elsewhere()
    write_trident(own, home / "own")
    write_labels(own, home / "own.csv")
    write_trident(other, home / "other")
    write_labels(other, home / "other.csv")
    data = [f"--config.data.features={home / 'own'}", f"--config.data.labels={home / 'own.csv'}"]
    more = ["--config.data.target=subtype", "--config.train.num_seeds=2", f"--config.data.cache={home / 'cache'}"]
    assert train.main([*SMALL, *data, *more, "--config.optimizer.lr=0.01", f"--config.run={home / 'run'}"]) == 0
    return home


def evaluated(home: Path, out: Path, *arguments: str, run_folder: str = "run") -> dict:
    assert evaluate.main(["--run", str(home / run_folder), *arguments, "--out", str(out)]) == 0
    return json.loads((out / "evaluation.json").read_text())


def refused(home: Path, capsys: pytest.CaptureFixture[str], out: Path, *arguments: str) -> Ended:
    ended = run(evaluate.main, ["--run", str(home / "run"), *arguments, "--out", str(out)], capsys)
    assert ended.code == 2
    assert not out.exists()
    return ended


@pytest.fixture(scope="module")
def own_scores(home: Path) -> Path:
    """The run's own slides, scored again."""
    evaluated(home, home / "scores_own", "--features", str(home / "own"), "--labels", str(home / "own.csv"))
    return home / "scores_own"


@pytest.fixture(scope="module")
def other_scores(home: Path) -> Path:
    """Other people's slides."""
    files = ["--features", str(home / "other"), "--labels", str(home / "other.csv")]
    evaluated(home, home / "scores_other", *files, "--by", "scanner,site")
    return home / "scores_other"


def test_the_slides_that_were_trained_on_never_get_a_training_score(home, own_scores):
    scored = pd.read_csv(own_scores / "predictions.csv")
    trained = RunFolder.open(home / "run").read_table("predictions.csv")
    test = trained[trained["part"] == "test"].groupby(["bag_id", "fold"])["prob_LUSC"].mean()
    assert len(scored) == len(test)
    mine = scored.set_index(["bag_id", "fold"])["prob_LUSC"]
    np.testing.assert_allclose(mine[test.index].to_numpy(), test.to_numpy(), rtol=1e-4, atol=1e-6)
    splits = pd.read_csv(home / "run" / "splits.csv")
    parts = scored.merge(splits, left_on=["fold_name", "bag_id"], right_on=["fold", "bag_id"])["part"]
    assert set(parts) == {"test"}


def test_what_a_run_selected_on_test_is_marked_where_it_is_scored_again(home, tmp_path):
    shutil.copytree(home / "run", home / "on_test")
    folder = RunFolder.open(home / "on_test")
    folder.write_json("summary.json", {**folder.read_json("summary.json"), "selected_on_test": True})
    files = ["--features", str(home / "own"), "--labels", str(home / "own.csv")]
    found = evaluated(home, tmp_path / "own", *files, run_folder="on_test")
    assert [one["selected_on_test"] for one in found["results"]] == [True]
    assert set(pd.read_csv(tmp_path / "own" / "predictions.csv")["selected_on"]) == {"test"}
    assert "held out (selected on test)" in (tmp_path / "own" / "summary.md").read_text()
    others = evaluated(home, tmp_path / "other", "--features", str(home / "other"), run_folder="on_test")
    assert [one["selected_on_test"] for one in others["results"]] == [False]


def test_every_model_that_scored_a_slide_held_it_out(home, own_scores):
    models = pd.read_csv(own_scores / "predictions_of_models.csv")
    splits = pd.read_csv(home / "run" / "splits.csv")
    joined = models.merge(splits, left_on=["fold_name", "bag_id"], right_on=["fold", "bag_id"])
    assert len(joined) == len(models)
    assert set(joined["part"]) == {"test"}


def test_people_whom_the_run_never_met_are_scored_by_all_models_averaged(other_scores):
    models = pd.read_csv(other_scores / "predictions_of_models.csv")
    averaged = pd.read_csv(other_scores / "predictions.csv").set_index("bag_id")["prob_LUSC"]
    assert (models.groupby("bag_id").size() == 4).all()  # 2 folds x 2 seeds
    means = models.groupby("bag_id")["prob_LUSC"].mean()
    np.testing.assert_allclose(averaged[means.index].to_numpy(), means.to_numpy(), rtol=1e-6)


def test_the_results_folder_is_readable_by_other_programs(other_scores):
    files = {"summary.md", "evaluation.json", "predictions.csv", "predictions_of_models.csv", "excluded.csv"}
    files |= {"clam/other_ensemble/fold_0.csv", "clam/other_ensemble/fold_1.csv"}
    files |= {"stamp/other_ensemble/patient-preds.csv", "figures/reliability_other_ensemble.png"}
    assert files <= set(contents(other_scores))
    clam = pd.read_csv(other_scores / "clam" / "other_ensemble" / "fold_0.csv")
    assert list(clam) == ["slide_id", "Y", "Y_hat", "p_0", "p_1"]
    stamp = pd.read_csv(other_scores / "stamp" / "other_ensemble" / "patient-preds.csv")
    assert list(stamp) == ["PATIENT", "label", "pred", "label_LUAD", "label_LUSC", "loss"]


def test_subgroups_are_given_for_any_column(other_scores):
    (result,) = json.loads((other_scores / "evaluation.json").read_text())["results"]
    groups = {(group["column"], group["value"]): group["num_bags"] for group in result["subgroups"]}
    assert groups.keys() == {("scanner", "A"), ("scanner", "B"), ("site", "Northern hospital")}
    assert sum(groups.values()) == 2 * result["num_bags"]


def test_several_cohorts_make_one_table_and_need_no_labels(home, tmp_path):
    files = ["--features", str(home / "other"), "--name", "unlabelled", "--features", str(home / "own")]
    content = evaluated(home, tmp_path / "out", *files, "--labels", str(home / "own.csv"))
    assert [(one["cohort"], one["scored"], one["labelled"]) for one in content["results"]] == [
        ("unlabelled", "ensemble", False),
        ("own", "held out", True),
    ]
    predictions = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert predictions[predictions["cohort"] == "unlabelled"]["target"].isna().all()


def test_labels_of_single_instances_give_their_auc_and_the_froc(home, capsys, tmp_path, monkeypatch):
    seen: list[list[LabelledSlide]] = []
    monkeypatch.setattr(score_cohort, "instance_result", lambda slides: seen.append(slides) or instance_result(slides))
    cohort = elsewhere()
    (tmp_path / "tiles").mkdir()
    positive = cohort.table.loc[cohort.table["subtype"] == "LUSC", "slide_id"]
    for slide in positive:
        np.save(tmp_path / "tiles" / f"{slide}.npy", (cohort.features[slide][:, 1] > 1.5).astype(np.int8))
    files = ["--features", str(home / "other"), "--labels", str(home / "other.csv")]
    content = evaluated(home, tmp_path / "out", *files, "--instance-labels", str(tmp_path / "tiles"))
    (one,), (slides,) = content["instances"], seen
    assert (one["slides"], one["scored"], one["bags_left_out"]) == (len(cohort.table), "ensemble", 0)
    labelled = [slide for slide in slides if slide.labels.any()]
    labels, scores = (np.concatenate([slide[part] for slide in labelled]) for part in (1, 0))
    assert one["instance_auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    averaged = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index("bag_id")["prob_LUSC"]
    tops = pd.Series([slide.scores.max() for slide in slides], [*averaged.index])
    assert (tops <= averaged + 1e-6).all()  # equal where the models agree on the instance
    assert one["froc"]["8.0"] >= one["froc"]["0.25"]
    assert "Single instances" in (tmp_path / "out" / "summary.md").read_text()

    np.save(tmp_path / "tiles" / f"{positive.iloc[0]}.npy", np.ones(3))
    ended = refused(home, capsys, tmp_path / "no", *files, "--instance-labels", str(tmp_path / "tiles"))
    assert "3 labels, and slide" in ended.err


def test_patients_in_training_of_every_model_are_refused_or_left_out(home, capsys, tmp_path):
    table = pd.read_csv(home / "run" / "splits.csv")
    patient = table["patient_id"].iloc[0]
    copy = home / "run_seen"
    if not copy.exists():
        shutil.copytree(home / "run", copy)
        table.loc[(table["patient_id"] == patient) & (table["part"] == "test"), "part"] = "train"
        table.to_csv(copy / "splits.csv", index=False)
    files = ["--run", str(copy), "--features", str(home / "own"), "--labels", str(home / "own.csv")]
    ended = run(evaluate.main, [*files, "--out", str(tmp_path / "out")], capsys)
    assert ended.code == 2
    assert "1 of 20 patients" in ended.err
    assert patient in ended.err
    assert evaluate.main([*files, "--out", str(tmp_path / "out"), "--exclude-seen"]) == 0
    assert patient not in set(pd.read_csv(tmp_path / "out" / "predictions.csv")["patient_id"])
    assert "trained or validated on" in (tmp_path / "out" / "excluded.csv").read_text()


def test_other_features_are_refused_naming_both(home, capsys, tmp_path):
    wide = write_trident(elsewhere(4, width=12), tmp_path / "wide")
    assert (
        "shape 12, and the run was trained on 16" in refused(home, capsys, tmp_path / "o", "--features", f"{wide}").err
    )
    (wide / "20x_256px_0px_overlap").rename(tmp_path / "moved")
    same = write_trident(elsewhere(4), tmp_path / "other")
    folder = same / "20x_256px_0px_overlap"
    (folder / "features_uni_v1").rename(folder / "features_conch")
    for path in (folder / "features_conch").iterdir():
        with h5py.File(path, "r+") as file:
            file["features"].attrs["encoder"] = "conch"
    err = refused(home, capsys, tmp_path / "o", "--features", str(same)).err
    assert "encoder conch, and the run was trained on uni_v1" in err
    assert "--accept=encoder" in err
    content = evaluated(home, tmp_path / "o", "--features", str(same), "--accept=encoder")
    assert any("accepted by --accept=encoder" in note for note in content["cohorts"][0]["notes"])


def test_a_run_of_an_older_version_has_the_defaults_of_settings_that_are_younger(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    del stored["config"]["data"]["duplicates"], stored["config"]["train"]["epochs_of"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    files = ["--features", str(home / "other"), "--labels", str(home / "other.csv")]
    assert evaluate.main(["--run", str(tmp_path / "run"), *files, "--out", str(tmp_path / "out")]) == 0


def test_features_that_do_not_say_their_encoder_are_scored_and_that_is_said(home, tmp_path):
    clam = write_clam(elsewhere(4), tmp_path / "clam")
    content = evaluated(home, tmp_path / "o", "--features", str(clam))
    assert any("the encoder is not compared" in note for note in content["cohorts"][0]["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--features (or --shards) is missing"),
        (["--labels", "a.csv", "--features", "x", "--features", "y"], "stands before all --features"),
        (["--features", "x", "--labels"], "--labels has no value"),
        (["--features", "x", "--config.train.epochs=3"], "is the run's and stays as it was trained"),
        (["--features", "x/a", "--features", "y/a"], "two cohorts are called a"),
        (["--features", "other", "--by", "scanner"], "other has none"),
    ],
)
def test_bad_arguments_are_said_in_one_sentence(home, capsys, tmp_path, arguments, message):
    arguments = [str(home / "other") if argument == "other" else argument for argument in arguments]
    assert message in refused(home, capsys, tmp_path / "o", *arguments).err


def test_a_label_that_the_run_does_not_know_is_named_with_its_row(home, capsys, tmp_path):
    table = pd.read_csv(home / "other.csv")
    table.loc[3, "subtype"] = "SCLC"
    table.to_csv(tmp_path / "labels.csv", index=False)
    files = ["--features", str(home / "other"), "--labels", str(tmp_path / "labels.csv")]
    assert "line 5: 'SCLC' in column 'subtype'" in refused(home, capsys, tmp_path / "o", *files).err


def test_help_shows_an_example(capsys):
    assert evaluate.main(["--help"]) == 0
    assert "python -m mil_jax.evaluate --run runs/subtype --features external/" in capsys.readouterr().out


@pytest.fixture(scope="module")
def final(home: Path) -> Path:
    """The final model, with the epochs of the run."""
    data = [f"--config.data.features={home / 'own'}", f"--config.data.labels={home / 'own.csv'}"]
    more = ["--config.data.target=subtype", f"--config.data.cache={home / 'cache'}", "--config.optimizer.lr=0.01"]
    arguments = [*(one for one in SMALL if "folds" not in one), *data, *more, "--config.splits.folds=0"]
    arguments += [f"--config.train.epochs_of={home / 'run'}", f"--config.run={home / 'final'}"]
    assert train.main(arguments) == 0
    return home / "final"


def test_the_final_model_is_trained_on_everything_for_the_epochs_that_were_chosen(home, final):
    splits = pd.read_csv(final / "splits.csv")
    assert set(splits["part"]) == {"train"}
    assert set(splits["bag_id"]) == set(pd.read_csv(home / "run" / "splits.csv")["bag_id"])
    chosen = [json.loads(line) for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]
    best = {(row["fold"], row["seed"]): row["epoch"] + 1 for row in chosen if row["improved"]}
    trained = [json.loads(line)["epoch"] + 1 for line in (final / "metrics.jsonl").read_text().splitlines()]
    assert max(trained) == int(np.median(list(best.values())))
    assert "cross-validated result of" in (final / "summary.md").read_text()


def test_the_final_model_scores_strangers_and_refuses_everybody_it_was_trained_on(home, final, capsys, tmp_path):
    other = ["--features", str(home / "other"), "--labels", str(home / "other.csv")]
    content = evaluated(home, tmp_path / "out", *other, run_folder="final")
    assert [one["num_models"] for one in content["results"]] == [1]
    own = ["--run", str(final), "--features", str(home / "own"), "--out", str(tmp_path / "own"), "--exclude-seen"]
    ended = run(evaluate.main, own, capsys)
    assert ended.code == 2
    assert "20 of 20 patients" in ended.err


def test_the_final_model_has_the_thresholds_and_temperature_of_the_cross_validated_run(home, final, tmp_path):
    predictions = pd.read_csv(home / "run" / "predictions.csv")
    copied = pd.read_csv(final / "validation.csv")
    own = predictions[predictions["part"] == "val"].reset_index(drop=True)
    pd.testing.assert_frame_equal(copied, own)
    assert "chosen on the validation predictions of" in (final / "summary.md").read_text()
    shutil.copytree(final, tmp_path / "final")  # in which there are enough cases
    enough = predictions[predictions["part"] == "test"].assign(part="val")
    enough.to_csv(tmp_path / "final" / "validation.csv", index=False)
    other = ["--features", str(home / "other"), "--labels", str(home / "other.csv")]
    content = evaluated(home, tmp_path / "out", *other, run_folder=str(tmp_path / "final"))
    (result,) = content["results"]
    task = Classification(("LUAD", "LUSC"))
    found = fitted(task, mean_of_scores(task, enough, ["bag_id", "fold"]))
    assert result["temperature"] == {"0": pytest.approx(found.temperature, rel=1e-3)}
    assert result["calibrated"]
    assert "accuracy_at_threshold" in result["metrics"]
    assert any("which the final model was made from" in line for line in content["statements"])


def test_the_epochs_of_a_run_with_other_settings_are_refused(home, capsys, tmp_path):
    data = [f"--config.data.features={home / 'own'}", f"--config.data.labels={home / 'own.csv'}"]
    more = ["--config.data.target=subtype", f"--config.data.cache={home / 'cache'}", f"--config.run={tmp_path / 'f'}"]
    common = [*(one for one in SMALL if "folds" not in one), *data, *more, "--config.splits.folds=0"]
    ended = run(train.main, [*common, f"--config.train.epochs_of={home / 'run'}"], capsys)
    assert ended.code == 2
    assert "optimizer.lr (was 0.01" in ended.err
    assert "train.epochs_of=RUN" in run(train.main, common, capsys).err


TASKS = {
    "survival": [
        "--config.data.target=months",
        "--config.data.event=dead",
        "--config.task.bins=2",
        "--config.train.epochs=2",
    ],
    "survival_cox": ["--config.data.target=months", "--config.data.event=dead", "--config.train.epochs=2"],
    "regression": ["--config.data.target=age", "--config.train.epochs=2"],
    "multilabel": ["--config.data.target=mutated,smoker", "--config.train.epochs=2"],
    "multiclass": ["--config.data.target=subtype,grade", "--config.train.epochs=2"],
    "linear_probe": ["--config.data.target=subtype"],
    "mhim_abmil": ["--config.data.target=subtype", "--config.train.epochs=2", "--config.train.patience=0"],
    "ibmil_abmil": [
        *("--config.data.target=subtype", "--config.train.epochs=2", "--config.train.monitor=val_loss"),
        *("--config.strategy.clusters=3", "--config.strategy.query_dim=4"),
    ],
    "abmil": ["--config.data.target=mutated,smoker", "--config.train.epochs=2", "--config.train.replica_axis=vmap"],
    "mean_pooling": [
        "--config.data.target=subtype",
        "--config.data.normalize=zscore",
        "--config.data.unit=patient",
        "--config.train.epochs=2",
    ],
}


@pytest.mark.full
@pytest.mark.parametrize("name", TASKS)
def test_every_task_and_way_of_training_gives_its_test_predictions_again(home, tmp_path, name):
    table = pd.read_csv(home / "own.csv")
    patient = table.groupby("case_id").ngroup()
    table["months"], table["dead"] = 1.5 + patient * 7 % 20, (patient % 3 > 0).astype(int)
    table["grade"] = patient.map(lambda number: (*"abc", "")[number % 4])
    table.to_csv(tmp_path / "labels.csv", index=False)
    files = [f"--config.data.features={home / 'own'}", f"--config.data.labels={tmp_path / 'labels.csv'}"]
    common = [f"--config.data.cache={home / 'cache'}", "--config.splits.folds=2", f"--config.run={tmp_path / 'run'}"]
    assert train.main([f"--config=configs/{name}.py", *files, *common, *TASKS[name]]) == 0
    own = ["--features", str(home / "own"), "--labels", str(tmp_path / "labels.csv")]
    assert evaluate.main(["--run", str(tmp_path / "run"), *own, "--out", str(tmp_path / "out")]) == 0
    scored, trained = (pd.read_csv(tmp_path / folder / "predictions.csv") for folder in ("out", "run"))
    by = [column for column in ("label_column", "bag_id", "fold") if column in trained]
    trained = trained[trained["part"] == "test"].set_index(by).sort_index()
    scored = scored.set_index(by).sort_index()
    outputs = [
        column for column in trained.select_dtypes("number") if column in scored and column not in ("seed", "leaked")
    ]
    assert len(outputs) >= 2
    pd.testing.assert_frame_equal(scored[outputs], trained[outputs], rtol=1e-3, atol=1e-5, check_dtype=False)
