"""Dictionaries of confounders from another run or a file: the right run's, of the right shape, never of held-out bags."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest
from ml_collections import ConfigDict

from mil_jax.data.label_columns import LabelColumns
from mil_jax.data.splits.splits import TEST, TRAIN
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.plan import Plan, Replica
from mil_jax.errors import UserError
from mil_jax.experiment import ibmil_dictionary, pretrained_weights
from mil_jax.experiment.pretrained_weights import TargetRun
from mil_jax.run_folder.folder import RunFolder
from mil_jax.strategies.ibmil_settings import DICTIONARY

PUPIL = TargetRun("fold b, seed 1", "label", 1, "b", 1, held_out=frozenset("yz"), tested=frozenset("z"))
SHAPE = jax.ShapeDtypeStruct((3, 4), np.float32)


def config(**strategy: str) -> ConfigDict:
    settings = {"name": "ibmil", "clusters": "3", "backbone": "train", "dictionary": "", **strategy}
    return ConfigDict({"strategy": settings, "data": {"normalize": "none"}})


@pytest.fixture
def experiment() -> Any:
    """Runs of folds a and b, of five bags v to z of which the last two are tested on."""
    parts = np.array([[TRAIN, TRAIN, TRAIN, TEST, TEST]] * 2, np.int8)
    splits = SimpleNamespace(names=["a", "b"], parts=parts)
    return SimpleNamespace(
        config=config(),
        plan=Plan((Replica(0, 1), Replica(1, 1)), {}),
        targets=(SimpleNamespace(name="label", splits=splits),),
        columns=LabelColumns(("label",)),
        cohort=SimpleNamespace(bags=pd.DataFrame({"bag_id": list("vwxyz")})),
        run_name=lambda run: f"fold {'ab'[run.fold]}, seed {run.seed}",
    )


@pytest.fixture
def made(tmp_path: Path, experiment: Any) -> Path:
    """A run folder with the dictionaries of both runs."""
    folder = RunFolder.create(tmp_path / "made", {"data": {"normalize": "none"}}, {})
    entries = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    cluster = np.array([0, 2, 1], np.int32).reshape(1, 3, 1, 1).repeat(2, axis=0)
    bags = np.array([[2, 0, 1]] * 2, np.int32)
    ibmil_dictionary.save(
        experiment, folder, {"params": {DICTIONARY: entries}, "bags": bags, "per_bag": {"cluster": cluster}}
    )
    runs = [{"fold": fold, "seed": 1, "epoch": 3, "training": list("vwx"), "validation": []} for fold in "ab"]
    checkpoints = Checkpoints(folder.checkpoints / "final", seconds=0)
    checkpoints.save(0, {"params": {"w": np.zeros(2)}, "constants": {}}, {"runs": runs}, wait=True)
    checkpoints.close()
    folder.write_json("summary.json", {"complete": True})
    return folder.path


def load(path: Path, pupil: TargetRun = PUPIL, shape: Any = SHAPE) -> Any:
    source = ibmil_dictionary.source(config(dictionary=str(path)))
    assert source
    return ibmil_dictionary.load(source, "none", shape, [pupil])


def test_what_is_saved_can_be_looked_at_and_the_same_run_is_read(made):
    table = pd.read_csv(made / "dictionary.csv")
    assert table[table["fold_name"] == "b"][["bag_id", "entry"]].to_numpy().tolist() == [["x", 0], ["v", 2], ["w", 1]]
    loaded = load(made)
    np.testing.assert_array_equal(loaded.params[DICTIONARY][0], np.load(made / "dictionary.npz")["fold b, seed 1"])
    assert loaded.params[DICTIONARY][0, 0, 0] == 12
    assert "that of the same run" in loaded.note


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"pupil": dataclasses.replace(PUPIL, seed=7, name="fold b, seed 7")}, "holds no run of fold b, seed 7"),
        ({"pupil": dataclasses.replace(PUPIL, fold_name="c", name="fold c, seed 1")}, "holds no run of fold c, seed 1"),
        (
            {"pupil": dataclasses.replace(PUPIL, held_out=frozenset("wz"))},
            "has seen 1 bags that fold b, seed 1 validates",
        ),
        (
            {"shape": jax.ShapeDtypeStruct((3, 5), np.float32)},
            "dictionary of the shape [3, 4], and this run reads one of [3, 5]",
        ),
    ],
    ids=["seed", "fold", "leak", "width"],
)
def test_a_dictionary_that_does_not_belong_here_is_refused(asked, complaint, made):
    with pytest.raises(UserError, match=re.escape(complaint)):
        load(made, **asked)


def test_a_file_is_one_for_all_and_its_provenance_unknown(tmp_path):
    np.save(tmp_path / "proto_3.npy", np.ones((3, 4)))
    loaded = load(tmp_path / "proto_3.npy")
    assert "provenance unknown" in loaded.note
    np.save(tmp_path / "nan.npy", np.full((3, 4), np.nan))
    with pytest.raises(UserError, match="of finite numbers"):
        load(tmp_path / "nan.npy")
    with pytest.raises(UserError, match=r"neither a run folder nor a \.npy file"):
        load(tmp_path / "absent.npy")
    (tmp_path / "text.npy").write_text("no")
    with pytest.raises(UserError, match="cannot be read as arrays"):
        load(tmp_path / "text.npy")


def test_a_run_without_dictionaries_is_refused(made):
    (made / "dictionary.npz").unlink()
    with pytest.raises(UserError, match=r"holds no dictionary.npz: name a run of strategy.name=ibmil"):
        load(made)


def test_more_clusters_than_training_bags_are_refused(experiment):
    experiment.config.strategy.clusters = "2,4"
    with pytest.raises(
        UserError, match=re.escape("asks for 4 clusters of training bags, and fold a has 3 training bags")
    ):
        ibmil_dictionary.require_bags(experiment)


@pytest.mark.parametrize(
    ("strategy", "meant"),
    [
        ({"backbone": "trian"}, "train"),
        ({"name": "mhim", "teacher": "trian"}, "train"),
        ({"name": "mhim", "teacher": "nona"}, "none"),
    ],
)
def test_a_misspelt_stage_is_no_file(strategy, meant):
    setting, value = list(strategy.items())[-1]
    said = rf"strategy\.{setting}={value}: there is no such run folder or file; did you mean {meant}"
    with pytest.raises(UserError, match=said):
        pretrained_weights.weights_source(config(**strategy))
