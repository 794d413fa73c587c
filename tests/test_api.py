"""The front door for Python does what the commands do: the page that shows it is run, and its runs are complete."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import numpy as np
import pytest

import mil_jax as mj
from mil_jax import evaluate, train
from mil_jax.errors import ConfigError, DataError, RunFolderError
from tests.commands import run as command
from tests.invented import invent
from tests.skips import needs

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guide" / "python.md"
SMALL = {"aggregator.feature_dim": 8, "aggregator.attention_dim": 4, "train.epochs": 2, "data.max_buckets": 1}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A folder with features/, labels.csv, external/ and external.csv."""
    folder = tmp_path_factory.mktemp("cohort")
    for name, invented in (("features", invent(seed=0)), ("external", invent(6, seed=1))):
        (folder / name).mkdir()
        for slide, features in invented.features.items():
            np.save(folder / name / f"{slide if name == 'features' else f'other-{slide[13:]}'}.npy", features)
        if name == "features":
            invented.table.to_csv(folder / "labels.csv", index=False)
    return folder


@pytest.fixture(autouse=True)
def home(cohort, monkeypatch, tmp_path_factory):
    """Commands are run where the cohort is, with a cache of the session's."""
    monkeypatch.chdir(cohort)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cohort / "cache"))
    return cohort


@pytest.fixture(scope="module")
def fitted(cohort):
    """3 folds x 2 seeds on files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cohort)
        patch.setenv("XDG_CACHE_HOME", str(cohort / "cache"))
        return mj.fit(
            features="features/",
            labels="labels.csv",
            target="subtype",
            folds=3,
            seeds=2,
            out="runs/fitted",
            settings=SMALL,
            verbose=False,
        )


def test_every_line_of_the_page_on_python_holds():
    needs("torch")
    text = PAGE.read_text(encoding="utf-8").replace("```", "\n")
    page = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    assert len(page.examples) >= 20
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    failed, tried = runner.run(page, out=said.append)
    assert (failed, tried) == (0, len(page.examples)), "".join(said)
    assert {"runs/subtype", "runs/arrays"} <= {str(path) for path in Path("runs").iterdir()}


def test_the_command_gives_the_same_run(fitted, capsys, cohort):
    flags = [f"--config.{name}={value}" for name, value in SMALL.items()]
    flags += ["--config.splits.folds=3", "--config.train.num_seeds=2", "--config.run=runs/command"]
    data = ["--config.data.features=features/", "--config.data.labels=labels.csv", "--config.data.target=subtype"]
    assert command(train.main, ["--config=abmil", *data, *flags], capsys).code == 0
    same = ("predictions.csv", "splits.csv", "metrics.jsonl")
    assert (Path("runs/command") / same[0]).read_bytes() == (fitted.path / same[0]).read_bytes()
    assert (Path("runs/command") / same[1]).read_bytes() == (fitted.path / same[1]).read_bytes()
    settings = [
        json.loads((path / "config.json").read_text())["config"] for path in (Path("runs/command"), fitted.path)
    ]
    assert {**settings[0], "run": ""} == {**settings[1], "run": ""}


def test_a_run_from_python_is_evaluated_like_any_other(fitted, capsys):
    ended = command(evaluate.main, ["--run=runs/fitted", "--features=external/", "--out=scored"], capsys)
    assert ended.code == 0
    table = fitted.predict("external/")
    assert len(table) == len(list(Path("external").iterdir()))


def test_a_list_of_arrays_is_predicted_as_the_folder_that_holds_them(fitted):
    table = fitted.predict("external/").set_index("bag_id")
    arrays = {path.stem: np.load(path) for path in sorted(Path("external").iterdir())}
    found = fitted.predict(list(arrays.values()))
    np.testing.assert_allclose(found, table.loc[list(arrays), ["prob_LUAD", "prob_LUSC"]].to_numpy(), atol=1e-6)


def test_the_attention_of_a_bag_is_that_of_its_instances_in_order(fitted):
    x = np.load(next(Path("external").iterdir()))
    attention = fitted.attention(x)
    assert attention.shape == (len(x),)
    np.testing.assert_allclose(fitted.attention(x[::-1]), attention[::-1], atol=1e-6)


def test_published_names_hold_the_weights_of_the_fold_that_is_asked_for(fitted):
    needs("torch")
    first, second = fitted.to_torch(fold=0, seed=1), fitted.to_torch(fold=1, seed=1)
    assert first.keys() == second.keys()
    assert not np.array_equal(first["classifier.0.weight"].numpy(), second["classifier.0.weight"].numpy())


def test_a_run_on_several_label_columns_predicts_each():
    run = mj.fit(
        features="features/",
        labels="labels.csv",
        target="mutated,smoker",
        folds=2,
        out="runs/panel",
        settings=SMALL,
        verbose=False,
    )
    x = np.load(next(Path("external").iterdir()))
    found = run.predict(x)
    assert {name: values.shape for name, values in found.items()} == {"mutated": (1, 2), "smoker": (1, 2)}
    assert set(run.metrics["label_column"]) == {"mutated", "smoker"}
    assert set(run.predict("external/")["label_column"]) == {"mutated", "smoker"}


def test_bags_with_a_table_of_labels_may_have_several_columns_and_patients():
    import pandas as pd

    rng = np.random.default_rng(0)
    bags = [rng.normal(size=(6, 3)) for _ in range(24)]
    table = pd.DataFrame({"age": rng.uniform(40, 80, 24), "other": 1})
    run = mj.fit(
        bags=bags,
        labels=table,
        target="age",
        patients=[number // 2 for number in range(24)],
        folds=2,
        out="runs/ages",
        settings={**SMALL, "task.name": "regression"},
        verbose=False,
    )
    splits = pd.read_csv(run.path / "splits.csv")
    assert splits.groupby(["fold", "patient_id"])["part"].nunique().max() == 1
    assert run.predict(bags).shape == (24, 1)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"bags": [np.ones((3, 2))], "labels": [0, 1]}, "1 bags, 2 labels"),
        ({"bags": [np.ones((3, 2))], "labels": "labels.csv"}, "labels must be one for each bag"),
        ({"bags": [np.ones((3, 2))], "labels": [0], "features": "features/"}, "bags are given beside a folder"),
        (
            {"features": "features/", "labels": "labels.csv", "patients": [1, 2]},
            "patients must name a column or a rule",
        ),
        ({"features": "features/", "labels": "labels.csv", "settings": {"train.epoch": 3}}, "did you mean"),
        ({"features": "features/", "labels": "labels.csv", "config": "abml"}, "there is no such file"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(given, sentence):
    with pytest.raises((ConfigError, DataError), match=sentence):
        mj.fit(**given, verbose=False)


def test_what_a_run_cannot_say_is_said(fitted):
    with pytest.raises(RunFolderError, match="no run folder"):
        mj.load("features")
    with pytest.raises(ConfigError, match="fold 7, seed 0; there are: fold 0, seed 0"):
        fitted.to_torch(fold=7)
    with pytest.raises(DataError, match="no instances"):
        fitted.predict(np.zeros((0, 16)))


def test_every_public_name_is_there():
    assert len(mj.__all__) >= 25
    for name in mj.__all__:
        assert getattr(mj, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        mj.nothing  # noqa: B018
