"""Checkpoints of CLAM and DSMIL: their wrappers, unused entries and other releases, and the real files where they are at hand."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.errors import ConfigError, DataError
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict, load_state_dict
from tests.skips import needs

SMALL = {
    "clam": {"feature_dim": 8, "attention_dim": 4},
    "dsmil": {"feature_dim": 8, "query_dim": 4},
}


def model(variant: str, num_outputs: int = 2, width: int = 6, small: bool = True, **settings: Any) -> tuple[Any, Any]:
    name, fields = aggregators.variants()[variant]
    widths = SMALL[name.split("_")[0]] if small else {}
    module = aggregators.create(name, num_outputs, **{**fields, **widths, **settings})
    bag = Bag(jnp.zeros((3, width)), jnp.ones(3, bool))
    return module, jax.jit(module.init)(jax.random.key(0), bag)["params"]


def assert_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def renamed(state: dict[str, Any], *names: tuple[str, str]) -> dict[str, Any]:
    for old, new in names:
        state = {new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in state.items()}
    return state


@pytest.mark.parametrize("gated", [True, False])
def test_clam_trained_on_several_gpus_loses_the_wrapper_and_nothing_else(gated):
    """A plain attention has a `.module.` of its own."""
    module, params = model("clam_sb", gated=gated)
    state = renamed(export_state_dict(module, params, "clam_sb"), ("attention_net.", "attention_net.module."))
    state["instance_loss_fn.labels"] = np.arange(2)
    assert_equal(import_state_dict(module, state, "clam_sb"), params)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("variant", ["clam_sb", "clam_mb"])
def test_clam_built_without_dropout_numbers_its_layers_otherwise(variant, gated):
    module, params = model(variant, gated=gated)
    without = [("attention_net.3.module.3.", "attention_net.2.module.2."), ("attention_net.3.", "attention_net.2.")]
    state = renamed(export_state_dict(module, params, variant), *without)
    assert_equal(import_state_dict(module, state, variant), params)


def test_pathgenes_clam_has_a_layer_more_for_other_widths():
    module, params = model("pathgene_clam_sb", pre_feature_dim=5)
    state = export_state_dict(module, params, "pathgene_clam_sb")
    assert state["attention_net.0.weight"].shape == (5, 6)
    assert "attention_net.4.attention_c.weight" in state
    assert_equal(import_state_dict(module, state, "pathgene_clam_sb"), params)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, {"b_classifier.q.0", "b_classifier.q.2"}),
        ({"nonlinear_query": False, "value": "relu"}, {"b_classifier.q", "b_classifier.v.1"}),
    ],
)
def test_the_names_of_dsmil_follow_its_form(settings, names):
    module, params = model("official", **settings)
    state = export_state_dict(module, params, "official")
    expected = names | {"i_classifier.fc.0", "b_classifier.fcc"}
    assert {key.rpartition(".")[0] for key in state} == expected
    assert state["b_classifier.fcc.weight"].shape == (2, 2, 6)
    assert_equal(import_state_dict(module, state, "official"), params)


def test_dsmil_with_an_image_encoder_calls_its_instance_classifier_otherwise():
    module, params = model("official")
    state = renamed(export_state_dict(module, params, "official"), ("i_classifier.fc.0.", "i_classifier.fc."))
    assert_equal(import_state_dict(module, state, "official"), params)


@pytest.mark.parametrize(
    ("variant", "unused"), [("mhim_pure_dsmil", "predictor.weight"), ("milab", "b_classifier.fcc.weight")]
)
def test_parameters_that_the_reference_never_reads_are_ignored_and_written_as_zeros(variant, unused):
    module, params = model(variant)
    state = export_state_dict(module, params, variant)
    assert not np.any(state[unused])
    state[unused] = np.ones_like(state[unused])
    assert_equal(import_state_dict(module, state, variant), params)


def test_a_checkpoint_of_another_method_names_what_is_missing_and_unexpected():
    clam, params = model("clam_sb")
    dsmil, _ = model("official")
    with pytest.raises(DataError, match=r"missing: b_classifier\.fcc\.bias.*unexpected: attention_net\.0\.bias"):
        import_state_dict(dsmil, export_state_dict(clam, params, "clam_sb"), "official")


def test_a_checkpoint_of_several_branches_does_not_fit_one():
    several, params = model("clam_mb")
    one, _ = model("clam_sb")
    with pytest.raises(DataError, match=r"missing: classifiers\.bias.*unexpected: classifiers\.0\.bias"):
        import_state_dict(one, export_state_dict(several, params, "clam_mb"), "clam_sb")
    with pytest.raises(ConfigError, match="choose one of clam_sb"):
        import_state_dict(one, {}, "clam_mb")


def test_a_checkpoint_of_another_size_names_both_shapes():
    big, params = model("clam_sb", attention_dim=6)
    small, _ = model("clam_sb")
    with pytest.raises(DataError, match=r"attention_a\.0\.weight \[8, 6\] as attention_v/kernel, expected \[8, 4\]"):
        import_state_dict(small, export_state_dict(big, params, "clam_sb"), "clam_sb")


@pytest.mark.parametrize(
    ("file", "variant", "num_outputs", "width"),
    [
        ("clam_sb_demo.pt", "clam_sb", 2, 1024),
        ("dsmil_c16_aggregator.pth", "official", 1, 512),
        ("dsmil_tcga_aggregator.pth", "official", 2, 512),
    ],
)
def test_the_real_file_loads_and_is_written_back(shared, file, variant, num_outputs, width):
    needs("torch")
    path = shared / "data" / "checkpoints" / file
    module, _ = model(variant, num_outputs, width, small=False)
    state = load_state_dict(path)
    params = import_state_dict(module, state, variant)
    assert_equal(import_state_dict(module, load_state_dict(path.with_suffix(".npz")), variant), params)
    exported = export_state_dict(module, params, variant)
    stored = {key.replace("attention_net.module.", "attention_net."): value for key, value in state.items()}
    stored.pop("instance_loss_fn.labels", None)
    assert_equal(exported, stored)


def test_dsmils_starting_weights_are_of_an_older_form_and_cover_a_part(shared):
    """The authors load this file without checking: nothing of it arrives in the present form."""
    needs("torch")
    state = load_state_dict(shared / "data" / "checkpoints" / "dsmil_init.pth")
    present, _ = model("official", width=512, small=False)
    with pytest.raises(DataError, match=r"missing: b_classifier\.fcc\.bias.*unexpected: b_classifier\.q\.bias"):
        import_state_dict(present, state, "official")
    older, params = model("official", width=512, small=False, nonlinear_query=False, value="relu")
    started = import_state_dict(older, export_state_dict(older, params, "official") | state, "official")
    np.testing.assert_array_equal(started["query"]["kernel"], state["b_classifier.q.weight"].T)
