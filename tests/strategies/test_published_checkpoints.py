"""Checkpoints of IBMIL and MHIM-MIL v2: the published names of all parameters, there and back, and what does not fit."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mil_jax import aggregators
from mil_jax.aggregators.reembedding import reembedded
from mil_jax.config import base_config
from mil_jax.errors import ConfigError, DataError
from mil_jax.strategies import optimizers
from mil_jax.strategies.ibmil import IBMIL, TwoTierIBMIL
from mil_jax.strategies.ibmil_settings import IBMILSettings
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.mhim_merging import MergingMHIM
from mil_jax.strategies.mhim_settings import MHIMSettings
from mil_jax.strategies.published_checkpoints import LAYOUTS, export_params, import_params
from mil_jax.tasks.classification import Classification
from tests.laws import law

TASK = Classification(("a", "b"))
COMMON = {"feature_layer": "none", "dropout": 0.0}
TRANSMIL = {"feature_dim": 8, "num_heads": 2, "head_dim": 4, "num_landmarks": 4, "residual_kernel": 3}
PLAIN = {"gated": False, "attention_dropout": 0.0, "attention_dim": 4, "feature_dim": 8}
AGGREGATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "ibmil_abmil": ("abmil", {**COMMON, **PLAIN, "feature_dim": 6, "attention_dim": None}),
    "ibmil_dsmil": ("dsmil", {"query_dim": 4}),
    "ibmil_transmil": ("transmil", TRANSMIL),
    "ibmil_dtfd": ("dtfd", {"feature_dim": 8, "attention_dim": 4}),
    "ibmil_mean_pooling": ("mean_pooling", COMMON),
    "ibmil_max_pooling": ("max_pooling", {**COMMON, "choose": "feature"}),
    "ibmil_mhim": ("abmil", PLAIN),
    "mhim_v2_attn": ("abmil", PLAIN),
    "mhim_v2_selfattn": ("transmil", {**TRANSMIL, "squaring": False}),
    "mhim_v2_dsmil": ("dsmil", {"feature_layer": "linear", "feature_dim": 8, "value": "relu", "query_dim": 4}),
}
SLOW = ("ibmil_transmil", "mhim_v2_selfattn")
BRANCH = {"confounder_feat", "W_q", "W_k"}
CONFOUNDER = {"confounder_feat", "confounder_W_q", "confounder_W_k"}
DTFD_ATTENTION = {f"attention.attention_{part}" for part in ("V.0", "U.0", "weights")}
LAYERS = {  # as the parameter maps of the references have them, without ".weight" and ".bias"
    "ibmil_abmil": {"attention.0", "attention.2", "classifier", *BRANCH},
    "ibmil_dsmil": {"i_classifier.fc.0", *(f"b_classifier.{name}" for name in ("q.0", "q.2", "fcc", *CONFOUNDER))},
    "ibmil_dtfd": {
        *("dim_reduction.fc1", "classifier.fc", *DTFD_ATTENTION),
        *(f"att_classifier.{name}" for name in (*DTFD_ATTENTION, "classifier", *BRANCH)),
    },
    "ibmil_mean_pooling": {"classifier", *CONFOUNDER},
    "ibmil_mhim": {"embedding.embed.0", "attention.0", "attention.2", "head", *BRANCH},
    "mhim_v2_attn": {
        *("feature.0", "online_encoder.attention.attention.0", "online_encoder.attention.attention.2", "predictor"),
        *("merge.norm", "merge.attn.to_kv", "merge.attn.to_q", "merge.attn.to_out.0"),
        *("merge.global_q", "merge.global_q_mm"),
    },
}


def strategy(layout: str, **settings: Any) -> Any:
    name, fields = AGGREGATORS[layout]
    of = (aggregators.create(name, 2, **fields), TASK, optimizers.make(optimizers.OptimizerSettings()), Schedule())
    if layout.startswith("mhim"):
        return MergingMHIM(*of, masking=MHIMSettings(mask_high=0.1, merge_queries=3, init_student="none"))
    kind = TwoTierIBMIL if name == "dtfd" else IBMIL
    return kind(*of, confounders=IBMILSettings(**{"clusters": "3", "query_dim": 5, **settings}))


def params_of(of: Any) -> Any:
    """Random ones; the classifier that the branch replaces is zero."""
    rng = np.random.default_rng(0)
    bag = law.make_bag(0, 4, 8, (6,), 0.0)
    params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), of.parameter_shapes(bag))
    if isinstance(of, IBMIL):
        flat = flatten_dict(params, sep="/")
        own = "tier2/classifier" if isinstance(of, TwoTierIBMIL) else "classifier"
        flat |= {name: np.zeros_like(x) for name, x in flat.items() if name.rpartition("/")[0] == own}
        params = unflatten_dict(flat, sep="/")
    return params


@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=pytest.mark.full) if name in SLOW else name for name in LAYOUTS]
)
def test_a_layout_holds_every_parameter_and_gives_it_back(layout):
    of = strategy(layout)
    params = params_of(of)
    state = export_params(of, params, layout)
    if layout in LAYERS:
        assert {name.removesuffix(".weight").removesuffix(".bias") for name in state} == LAYERS[layout]
    found = import_params(of, state, layout)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_entries_are_as_the_reference_lays_them_out():
    of = strategy("ibmil_dsmil", mode="specific")
    state = export_params(of, params_of(of), "ibmil_dsmil")
    assert state["b_classifier.confounder_feat"].shape == (3, 2, 6)
    assert state["b_classifier.fcc.weight"].shape == (2, 2, 12)
    assert state["b_classifier.confounder_W_q.weight"].shape == (5, 6)
    merging = strategy("mhim_v2_attn")
    state = export_params(merging, params_of(merging), "mhim_v2_attn")
    assert state["merge.attn.to_kv.weight"].shape == (1024, 8)
    np.testing.assert_array_equal(state["merge.global_q"], state["merge.global_q_mm"])


@pytest.mark.parametrize("merged_norm", [True, False])
def test_the_norm_of_transmil_is_read_where_it_is_used(merged_norm):
    of = strategy("ibmil_transmil", merged_norm=merged_norm)
    params = params_of(of)
    state = export_params(of, params, "ibmil_transmil")
    assert state["norm2.weight"].shape == (16,)
    assert state["norm2.weight"].any() == merged_norm
    state["norm2.weight"] = np.ones(16, np.float32)
    found = import_params(of, state, "ibmil_transmil")
    assert ("norm" in found["deconfounding"]) == merged_norm


def test_dtfd_is_read_as_the_dict_of_state_dicts_that_it_saves():
    of = strategy("ibmil_dtfd")
    params = params_of(of)
    saved: dict[str, dict[str, np.ndarray]] = {}
    for name, value in export_params(of, params, "ibmil_dtfd").items():
        network, _, rest = name.partition(".")
        saved.setdefault(network, {})[rest] = value
    assert set(saved) == {"dim_reduction", "attention", "classifier", "att_classifier"}
    found = import_params(of, saved, "ibmil_dtfd")
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_what_does_not_fit_is_refused():
    of = strategy("ibmil_abmil")
    read = functools.partial(import_params, of, layout="ibmil_abmil")
    state = export_params(of, params_of(of), "ibmil_abmil")
    with pytest.raises(DataError, match=r"missing: W_q\.bias; unexpected: other"):
        read({**{name: x for name, x in state.items() if name != "W_q.bias"}, "other": np.zeros(1)})
    with pytest.raises(DataError, match=r"wrong shape: confounder_feat \[4, 6\] as dictionary, expected \[3, 6\]"):
        read({**state, "confounder_feat": np.zeros((4, 6))})
    added = strategy("ibmil_abmil", merge="add")
    with pytest.raises(DataError, match=r"classifier\.weight .* as deconfounding/classifier/kernel, expected"):
        import_params(added, state, "ibmil_abmil")


def test_a_layout_of_another_strategy_is_refused():
    of = strategy("ibmil_abmil")
    with pytest.raises(ConfigError, match=r"layout 'mhim_v2_attn' is none of strategy\.name=ibmil; choose one of"):
        import_params(of, {}, "mhim_v2_attn")
    config = base_config().reembed
    config.name = "rrt"
    with pytest.raises(ConfigError, match=r"no published weights with reembed\.name"):
        import_params(IBMIL(reembedded(of.module, config), *list(vars(of).values())[1:4]), {}, "ibmil_abmil")
