"""Patch-GCN's settings, its need of a graph, and its published layouts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.config import base_config
from mil_jax.data.features.graphs import nearest_neighbors
from mil_jax.data.shards.writer import write_shards
from mil_jax.errors import ConfigError, DataError
from mil_jax.experiment.data_sources import open_shards
from mil_jax.interop.slide_bag import SlideBag
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict


def test_a_bag_without_a_graph_is_an_error():
    bag = Bag(jnp.zeros((4, 6)), jnp.ones(4, bool))
    with pytest.raises(ConfigError, match=r"set data\.neighbors=8"):
        jax.eval_shape(lambda: aggregators.create("patch_gcn", 2).init(jax.random.key(0), bag))


@pytest.mark.parametrize(
    "fields",
    [
        {"block": "dense"},
        {"readout": "sum"},
        {"coarse_graph": "fine"},
        {"cell_tiles": 0},
        {"feature_clusters": -1},
        {"hidden_dim": 0},
        {"conv_dropout": 1.0},
    ],
)
def test_settings_that_cannot_work(fields):
    with pytest.raises(ConfigError, match=f"aggregator.{next(iter(fields))}="):
        aggregators.create("patch_gcn", 2, **fields)


@pytest.mark.parametrize("variant", ["patch_gcn", "patch_gcn_pyg1"])
def test_published_layouts_survive_the_round_trip(variant):
    name, fields = aggregators.variants()[variant]
    module = aggregators.create(name, 3, hidden_dim=4, **fields)
    bag = Bag(jnp.zeros((4, 6)), jnp.ones(4, bool), neighbors=jnp.zeros((4, 2), jnp.int32))
    params = jax.jit(module.init)(jax.random.key(0), bag)["params"]
    exported = export_state_dict(module, params, variant)
    assert exported["layers.0.norm.weight"].shape == (4,)
    assert ("layers.1.conv.t" in exported) == (variant == "patch_gcn_pyg1")
    jax.tree.map(np.testing.assert_array_equal, import_state_dict(module, exported, variant), params)


def test_a_coarse_graph_that_ends_with_zeros_leaves_the_model_as_it_is():
    rng = np.random.default_rng(0)
    coords = jnp.asarray(np.stack([np.arange(12) % 4, np.arange(12) // 4], axis=1) * 256, jnp.int32)
    neighbors = jnp.asarray(nearest_neighbors(np.asarray(coords), 3, "a"))
    bag = Bag(jnp.asarray(rng.standard_normal((12, 6)), jnp.float32), jnp.ones(12, bool), coords, neighbors=neighbors)
    sizes = {"hidden_dim": 4, "num_convolutions": 1}
    plain = aggregators.create("patch_gcn", 2, **sizes)
    coarse = aggregators.create("patch_gcn", 2, coarse_graph="sequential", cell_tiles=2, **sizes)
    params = jax.jit(coarse.init)(jax.random.key(0), bag)["params"]
    logits = jax.jit(lambda params: coarse.apply({"params": params}, bag).logits)
    before = logits(params)
    params["coarse_conv_0"]["contract"]["kernel"] *= 0.0
    without = logits(params)
    assert np.abs(before - without).max() > 1e-4
    own = {name: x for name, x in params.items() if not name.startswith("coarse")}
    expected = jax.jit(lambda params: plain.apply({"params": params}, bag).logits)(own)
    np.testing.assert_allclose(without, expected, rtol=0, atol=1e-6)


def test_tiles_of_different_clusters_hear_nothing_of_each_other():
    rng = np.random.default_rng(0)
    group = np.arange(12) % 2
    features = rng.standard_normal((12, 6)) + 20 * group[:, None]
    everybody = np.array([[j for j in range(12) if j != i] for i in range(12)], np.int32)
    module = aggregators.create("patch_gcn", 2, hidden_dim=4, num_convolutions=2, feature_clusters=2)
    bag = Bag(jnp.asarray(features, jnp.float32), jnp.ones(12, bool), neighbors=jnp.asarray(everybody))
    params = jax.jit(module.init)(jax.random.key(0), bag)["params"]

    @jax.jit
    def nodes(bag):
        _, sown = module.apply({"params": params}, bag, mutable="intermediates")
        return sown["intermediates"]["nodes"][-1]

    other = bag.replace(features=bag.features.at[group == 1].multiply(-1.0))
    before, after = nodes(bag), nodes(other)
    np.testing.assert_allclose(after[group == 0], before[group == 0], rtol=0, atol=1e-5)
    assert np.abs(after[group == 1] - before[group == 1]).max() > 1e-2


def test_a_coarse_graph_needs_coordinates_and_has_no_published_weights():
    module = aggregators.create("patch_gcn", 2, coarse_graph="parallel")
    bag = Bag(jnp.zeros((4, 6)), jnp.ones(4, bool), neighbors=jnp.zeros((4, 2), jnp.int32))
    with pytest.raises(ConfigError, match="coarse_graph needs coordinates"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), bag))
    with pytest.raises(ConfigError, match=r"no published weights with aggregator\.coarse_graph='parallel'"):
        module.state_dict_map("patch_gcn")


def test_shards_without_neighbors_name_the_command(tmp_path):
    write_shards([SlideBag("a", np.ones((3, 4), np.float32))], tmp_path / "shards", for_tensorflow=False)
    config = base_config()
    config.data.update(shards=str(tmp_path / "shards"), neighbors=8)
    with pytest.raises(DataError, match=r"hold no neighbours.* python -m data_prep.shard --neighbors 8"):
        open_shards(config, tmp_path, None)
