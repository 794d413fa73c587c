"""Patch-GCN's settings, its need of a graph, and its published layouts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.config import base_config
from mil_jax.data.shards import SlideBag, write_shards
from mil_jax.errors import ConfigError, DataError
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict
from mil_jax.training.sources import open_shards


def test_a_bag_without_a_graph_is_an_error():
    bag = Bag(jnp.zeros((4, 6)), jnp.ones(4, bool))
    with pytest.raises(ConfigError, match=r"set data\.neighbors=8"):
        jax.eval_shape(lambda: aggregators.create("patch_gcn", 2).init(jax.random.key(0), bag))


@pytest.mark.parametrize("fields", [{"block": "dense"}, {"readout": "sum"}, {"hidden_dim": 0}, {"conv_dropout": 1.0}])
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


def test_shards_without_neighbors_name_the_command(tmp_path):
    write_shards([SlideBag("a", np.ones((3, 4), np.float32))], tmp_path / "shards", for_tensorflow=False)
    config = base_config()
    config.data.update(shards=str(tmp_path / "shards"), neighbors=8)
    with pytest.raises(DataError, match=r"hold no neighbours.* python -m data_prep.shard --neighbors 8"):
        open_shards(config, None)
