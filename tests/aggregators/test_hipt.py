"""HIPT beyond what its parity cases say: frozen parts, published starts, the guided form, memory, bags of another shape."""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.encoders.vit import VisionTransformer
from mil_jax.errors import ConfigError, DataError
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict, load_state_dict
from mil_jax.strategies import optimizers
from mil_jax.strategies.base import Batch
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.supervised import Supervised
from mil_jax.tasks.classification import Classification
from tests.skips import needs

TASK = Classification(("a", "b"))
TILES, WIDTH = 4, 5
LEVEL_2 = {"region_dim": 8, "region_depth": 2, "region_heads": 2, "table_side": 3}
SMALL = {**LEVEL_2, "hidden_dim": 8, "num_heads": 2, "dropout": 0.0}
ENCODER = VisionTransformer(8, 2, 2, table_side=3)


def bag(num_regions: int = 8, seed: int = 0) -> Bag:
    features = np.random.default_rng(seed).normal(size=(num_regions, TILES, WIDTH)).astype(np.float32)
    return Bag(jnp.asarray(features), jnp.arange(num_regions) < num_regions - 3)


def grids(num_regions: int) -> Bag:
    return Bag(jnp.zeros((num_regions, 2, 2, WIDTH)), jnp.ones(num_regions, bool))


@pytest.fixture(scope="module")
def level_2() -> dict[str, np.ndarray]:
    """A state dict of level 2 by its published names."""
    params = jax.jit(ENCODER.init)(jax.random.key(5), grids(3))["params"]
    return export_state_dict(ENCODER, params, "hipt_vit4096")


def trained(steps: int = 3, optimizer: str = "adam", **fields: Any) -> tuple[Any, Any]:
    """(parameters at the start, after some steps), with a weight decay that would move anything."""
    module = aggregators.create("hipt", 2, **{**SMALL, **fields})
    of = Supervised(module, TASK, optimizers.make(optimizers.OptimizerSettings(optimizer)), Schedule())
    rates = {"optimizer.lr": jnp.float32(0.01), "optimizer.weight_decay": jnp.float32(0.1)}
    batch = Batch(jax.tree.map(lambda x: x[None], bag()), jnp.ones(1, jnp.int32), jnp.ones(1))
    first = jax.jit(lambda: of.init(jax.random.key(0), bag(), rates, {}, None))()
    step = jax.jit(lambda state, key: of.step(state, batch, {"lr": rates["optimizer.lr"]}, key)[0])
    state = first
    for number in range(steps):
        state = step(state, jax.random.key(number))
    return first.params, state.params


@pytest.mark.parametrize("optimizer", ["adam", pytest.param("lookahead_radam", marks=pytest.mark.full)])
def test_frozen_parts_stay_as_they_are_to_the_bit(optimizer, level_2, tmp_path):
    """Against weight decay, too, which is part of both optimisers."""
    np.savez(tmp_path / "level2.npz", **level_2)
    before, after = trained(optimizer=optimizer, frozen=True, region_weights=str(tmp_path / "level2.npz"))
    published = import_state_dict(ENCODER, level_2, "hipt_vit4096")
    for params in (before, after):
        jax.tree.map(np.testing.assert_array_equal, params["region_encoder"], published)
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), before["classifier"], after["classifier"])
    assert all(jax.tree.leaves(moved))


def test_a_frozen_encoder_without_weights_is_refused():
    with pytest.raises(ConfigError, match=r"name its checkpoint with aggregator\.region_weights"):
        trained(frozen=True)


def test_a_start_of_another_shape_is_refused(level_2, tmp_path):
    np.savez(tmp_path / "level2.npz", **{name: x for name, x in level_2.items() if not name.startswith("blocks.1")})
    with pytest.raises(DataError, match=r"missing: blocks\.1"):
        trained(region_weights=str(tmp_path / "level2.npz"))


@pytest.mark.full
def test_guidance_of_weight_zero_changes_nothing():
    _, plain = trained(dropout=0.25, region_depth=1)
    _, guided = trained(dropout=0.25, region_depth=1, guided=True, guidance_weight=0.0)
    assert set(guided) - set(plain) == {"guidance", "level"}
    for name, params in plain.items():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), guided[name], params)


@pytest.mark.full
def test_guidance_pulls_the_fine_vectors_towards_the_coarse_ones():
    module = aggregators.create("hipt", 2, **SMALL, guided=True)
    before, after = trained(12, optimizer="adam", guided=True, guidance_weight=1.0)
    distances = [float(module.apply({"params": params}, bag()).aux["guidance"]) for params in (before, after)]
    assert distances[1] < 0.5 * distances[0]
    assert (before["level"] != after["level"]).all()  # by the loss of the coarse prediction


def test_the_teacher_of_a_dino_checkpoint_is_read_without_its_head(level_2, tmp_path):
    torch = needs("torch")
    backbone = {f"module.backbone.{name}": torch.from_numpy(x.copy()) for name, x in level_2.items()}
    head = {"module.head.mlp.0.weight": torch.zeros(3, 8), "module.head.last_layer.weight_g": torch.ones(4, 1)}
    student = {name: torch.zeros_like(x) for name, x in backbone.items()}
    content = {"student": student, "teacher": backbone | head, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "dino.pth")
    found = import_state_dict(ENCODER, load_state_dict(tmp_path / "dino.pth"), "hipt_vit4096")
    jax.tree.map(np.testing.assert_array_equal, found, import_state_dict(ENCODER, level_2, "hipt_vit4096"))


def test_level_1_is_exported_as_it_was_imported():
    module = VisionTransformer(8, 1, 2, patch_size=16, table_side=2)
    images = Bag(jnp.zeros((1, 16, 32, 3)), jnp.ones(1, bool))
    params = jax.jit(module.init)(jax.random.key(0), images)["params"]
    exported = export_state_dict(module, params, "hipt_vit256")
    assert exported["patch_embed.proj.weight"].shape == (8, 3, 16, 16)
    assert exported["pos_embed"].shape == (1, 5, 8)
    jax.tree.map(np.testing.assert_array_equal, import_state_dict(module, exported, "hipt_vit256"), params)


@pytest.mark.full
def test_memory_of_the_backward_pass_is_not_that_of_the_layers_of_all_regions():
    params = jax.eval_shape(lambda: ENCODER.init(jax.random.key(0), grids(8))["params"])

    def temporary(num_regions: int) -> int:
        gradient = jax.grad(lambda params, bag: jnp.sum(ENCODER.apply({"params": params}, bag).features))
        analysed = jax.jit(gradient).lower(params, grids(num_regions)).compile().memory_analysis()
        return int(analysed.temp_size_in_bytes)

    token_bytes = (TILES + 1) * LEVEL_2["region_dim"] * 4  # of the many that a layer keeps for its backward pass
    assert temporary(64) - temporary(32) < 32 * 2 * token_bytes


@pytest.mark.parametrize(
    ("name", "fields", "shape", "said"),
    [
        ("hipt", {}, (6,), r"reads regions of square grids .* data_prep\.shard --regions 16"),
        ("hipt", {}, (5, 6), "reads regions of square grids"),
        ("hipt", {"region_encoder": "none"}, (4, 6), r"reads vectors of regions \[R, D\]"),
        ("hipt_none", {}, (6,), r"aggregator\.one_region=true"),
        ("hipt_none", {"one_region": True}, (4, 6), "leave data.regions at 0"),
    ],
)
def test_bags_of_another_shape_are_refused(name, fields, shape, said):
    module = aggregators.create(name, 2, **fields)
    with pytest.raises(ConfigError, match=said):
        jax.eval_shape(module.init, jax.random.key(0), Bag(jnp.zeros((3, *shape)), jnp.ones(3, bool)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"region_heads": 5}, r"region_dim=192 is not a multiple of aggregator\.region_heads=5"),
        ({"guided": True, "frozen": True}, "choose one"),
        ({"region_encoder": "none", "frozen": True}, "set aggregator.region_encoder='vit'"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        aggregators.create("hipt", 2, **fields)
