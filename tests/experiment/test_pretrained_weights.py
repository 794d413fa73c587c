"""First weights from a run folder or a PyTorch file: the right run's, strictly, and never of one that has seen the held-out bags."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.errors import UserError
from mil_jax.experiment.pretrained_weights import TargetRun, load_weights, weights_source
from mil_jax.interop.torch_checkpoints import export_state_dict
from mil_jax.run_folder.folder import RunFolder
from mil_jax.strategies import optimizers
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.supervised import Supervised
from tests.engine import cohorts
from tests.laws import law

_, FIELDS = aggregators.variants()["mhim_pure_attn"]
BAG = law.make_bag(0, 4, 8, (6,), 0.0)
PUPIL = TargetRun("fold b, seed 1", "label", 1, "b", 1, held_out=frozenset("yz"), tested=frozenset("z"))


def plain(**settings: Any) -> Supervised:
    module = aggregators.create("abmil", 2, **{**FIELDS, "feature_dim": 8, "attention_dim": 4, **settings})
    return Supervised(module, cohorts.TASK, optimizers.make(optimizers.OptimizerSettings()), Schedule())


def config(teacher: Path, normalize: str = "none") -> ConfigDict:
    strategy = {"name": "mhim", "teacher": str(teacher)}
    return ConfigDict({"strategy": strategy, "aggregator": {"name": "abmil"}, "data": {"normalize": normalize}})


def params(**settings: Any) -> Any:
    return jax.jit(plain(**settings).module.init)(jax.random.key(0), BAG)["params"]


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A run folder of folds a and b with one seed."""
    folder = RunFolder.create(tmp_path / "teacher", {"data": {"normalize": "none"}}, {})
    both = jax.tree.map(lambda x: np.stack([x, 2 * x]), params())
    runs = [{"fold": fold, "seed": 1, "epoch": 3, "training": ["v", "w"], "validation": ["y"]} for fold in ("a", "b")]
    checkpoints = Checkpoints(folder.checkpoints / "final", seconds=0)
    checkpoints.save(0, {"params": both, "constants": {}}, {"runs": runs}, wait=True)
    checkpoints.close()
    folder.write_json("summary.json", {"complete": True})
    return folder.path


def load(path: Path, pupil: TargetRun = PUPIL, normalize: str = "none", **settings: Any) -> Any:
    shapes: Any = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), BAG)
    bag: Bag = shapes
    settled = config(path, normalize)
    source = weights_source(settled)
    assert source
    return load_weights(source, settled, plain(**settings), bag, [pupil])


def test_the_same_run_of_a_run_folder_is_taken(teacher):
    loaded = load(teacher)
    np.testing.assert_array_equal(loaded.params["feature"]["kernel"], 2 * params()["feature"]["kernel"][None])
    assert str(teacher) in loaded.note


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ({"pupil": dataclasses.replace(PUPIL, seed=7, name="fold b, seed 7")}, "holds no run of fold b, seed 7"),
        (
            {"pupil": dataclasses.replace(PUPIL, held_out=frozenset("wz"))},
            "has seen 1 bags that fold b, seed 1 validates",
        ),
        ({"pupil": dataclasses.replace(PUPIL, tested=frozenset("y"))}, "has seen 1 bags that fold b, seed 1 validates"),
        ({"gated": True}, "does not fit this aggregator (missing: attention_u/kernel)"),
        ({"feature_dim": 9}, "of another shape: attention_v/kernel, classifier/kernel, feature/bias, feature/kernel"),
        ({"normalize": "zscore"}, "was trained with data.normalize=none, not zscore"),
    ],
    ids=["seed", "training", "validation", "keys", "shapes", "normalize"],
)
def test_weights_that_do_not_belong_here_are_refused(asked, complaint, teacher):
    with pytest.raises(UserError, match=re.escape(complaint)):
        load(teacher, **asked)


def test_pytorch_weights_of_each_fold_are_read_and_their_provenance_is_unknown(tmp_path):
    state = export_state_dict(plain().module, params(), "mhim_pure_attn")
    published = {re.sub(r"^feature\.", "patch_to_emb.", name): value for name, value in state.items()}
    np.savez(tmp_path / "weights.npz", **published)
    loaded = load(tmp_path / "weights.npz")
    np.testing.assert_allclose(loaded.params["feature"]["kernel"][0], params()["feature"]["kernel"])
    assert "provenance unknown" in loaded.note
    with pytest.raises(UserError, match=r"holds no fold_1_model_best_auc.pt"):
        load(tmp_path)


def test_pytorch_weights_with_other_keys_are_refused(tmp_path):
    state = export_state_dict(plain(gated=True).module, params(gated=True), "mhim_pure_attn")
    np.savez(tmp_path / "gated.npz", **state)
    with pytest.raises(UserError, match=r"attention_a.0.weight"):
        load(tmp_path / "gated.npz")
    assert jnp.isfinite(load(tmp_path / "gated.npz", gated=True).params["attention_u"]["kernel"]).all()
