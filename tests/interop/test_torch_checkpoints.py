"""Published PyTorch checkpoints load strictly into each variant, and are written back."""

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

SMALL = {"feature_dim": 8, "attention_dim": 4, "region_dim": 12, "region_depth": 2}


def _model(variant: str) -> tuple[Any, Any]:
    name, fields = aggregators.variants()[variant]
    known = aggregators.default_fields(name)
    small = {key: value for key, value in SMALL.items() if key in known and fields.get(key, 0) is not None}
    module = aggregators.create(name, 2, **{**fields, **small})
    shape = (28, 28, 1) if fields.get("feature_layer") == "lenet" else (6,)
    if variant in ("hipt", "hipt_c2f", "hipt_none"):
        shape = (4, 6)  # regions of tiles
    graph = jnp.zeros((3, 1), jnp.int32)  # for those that read one
    bag = Bag(jnp.zeros((3, *shape)), jnp.ones(3, bool), neighbors=graph)
    return module, jax.jit(module.init)(jax.random.key(0), bag)["params"]


def _assert_equal(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("variant", aggregators.variants())
def test_export_then_import_gives_the_parameters_back(variant):
    module, params = _model(variant)
    _assert_equal(import_state_dict(module, export_state_dict(module, params, variant), variant), params)


def test_linear_weights_are_output_by_input():
    module, params = _model("mhim_dattention")
    assert export_state_dict(module, params, "mhim_dattention")["feature.0.weight"].shape == (8, 6)


def test_a_torch_file_is_read_and_gives_torchs_outputs(tmp_path):
    torch = needs("torch")
    feature, v, w, head = (torch.nn.Linear(*sizes) for sizes in ((6, 8), (8, 4), (4, 1), (8, 2)))
    layers = {"feature.0": feature, "attention.0": v, "attention.2": w, "classifier": head}
    state = {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}
    torch.save({"model": state, "epoch": torch.tensor(3)}, tmp_path / "model.pt")
    module, _ = _model("mhim_dattention")
    params = import_state_dict(module, load_state_dict(tmp_path / "model.pt"), "mhim_dattention")
    x = torch.randn(5, 6)
    h = torch.relu(feature(x))
    expected = head(torch.softmax(w(torch.tanh(v(h))), dim=0).T @ h)[0]
    logits = module.apply({"params": params}, Bag(jnp.asarray(x.numpy()), jnp.ones(5, bool))).logits
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_numpy_archive_is_read(tmp_path):
    module, params = _model("pathgene")
    np.savez(tmp_path / "weights.npz", **export_state_dict(module, params, "pathgene"))
    _assert_equal(import_state_dict(module, load_state_dict(tmp_path / "weights.npz"), "pathgene"), params)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_prefixes_of_wrappers_are_taken_off(prefix):
    module, params = _model("milab_gated")
    state = {prefix + key: value for key, value in export_state_dict(module, params, "milab_gated").items()}
    _assert_equal(import_state_dict(module, state, "milab_gated"), params)


@pytest.mark.parametrize(
    ("variant", "new", "old"),
    [
        ("mhim_pure_attn", "feature.", "patch_to_emb."),
        ("mean_pooling", "head.3.", "head.2."),
        ("milab_plain", "global_attn.module.3.", "global_attn.module.2."),
    ],
)
def test_names_of_other_releases_and_of_models_without_dropout_are_understood(variant, new, old):
    module, params = _model(variant)
    state = {key.replace(new, old): value for key, value in export_state_dict(module, params, variant).items()}
    assert any(key.startswith(old) for key in state)
    _assert_equal(import_state_dict(module, state, variant), params)


def test_missing_and_unexpected_entries_are_named():
    module, params = _model("mhim_gated")
    state = export_state_dict(module, params, "mhim_gated")
    state["extra.weight"] = state.pop("attention_c.bias")
    with pytest.raises(DataError, match=r"missing: attention_c\.bias; unexpected: extra\.weight"):
        import_state_dict(module, state, "mhim_gated")


def test_a_wrong_shape_is_named_with_the_expected_one():
    module, params = _model("mhim_gated")
    state = export_state_dict(module, params, "mhim_gated")
    state["attention_a.0.weight"] = np.zeros((5, 8), np.float32)
    with pytest.raises(DataError, match=r"attention_a\.0\.weight \[8, 5\] as attention_v/kernel, expected \[8, 4\]"):
        import_state_dict(module, state, "mhim_gated")


def test_a_variant_that_does_not_describe_the_model_is_refused():
    plain, params = _model("mhim_dattention")
    state = export_state_dict(plain, params, "mhim_dattention")
    gated, _ = _model("mhim_gated")
    with pytest.raises(DataError, match="does not describe this model"):
        import_state_dict(gated, state, "mhim_dattention")


def test_an_unknown_variant_is_refused():
    module, _ = _model("mhim_gated")
    with pytest.raises(ConfigError, match="choose one of"):
        import_state_dict(module, {}, "clam_sb")


def test_a_file_that_would_run_code_is_not_loaded(tmp_path):
    torch = needs("torch")
    torch.save({"model": object()}, tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"model\.pt: cannot be read .*it holds object; objects are not loaded"):
        load_state_dict(tmp_path / "model.pt")


@pytest.mark.parametrize(("name", "content"), [("model.pt", b"no checkpoint"), ("model.npz", b"no archive")])
def test_a_file_of_another_kind_is_refused(tmp_path, name, content):
    if name.endswith(".pt"):
        needs("torch")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_state_dict(tmp_path / name)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.pt: no such checkpoint"):
        load_state_dict(tmp_path / "nowhere.pt")
