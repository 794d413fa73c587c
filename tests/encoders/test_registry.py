"""The named encoders: what their names fix, and how weights come to them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.bags import Bag
from mil_jax.encoders.registry import (
    ARCHITECTURES,
    ENCODERS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    bare_encoder,
    encoder_named,
    fitted_to,
    size_warning,
)
from mil_jax.encoders.weights import identity, load_weights
from mil_jax.errors import ConfigError, DataError
from mil_jax.interop.torch_checkpoints import export_state_dict

# Millions of parameters that the authors state, or that their layers sum up to.
MILLIONS = {
    "resnet50_trunc": 8.54,
    "ctranspath": 27.5,
    "uni_v1": 303.4,
    "uni_v2": 681.4,
    "virchow2": 631.2,
    "hoptimus0": 1134.8,
    "gigapath": 1134.9,
    "conch_v15": 306.0,
    "phikon": 85.8,
    "hipt_vit256": 21.7,
}
SMALL = ("resnet50_trunc", "phikon")


@pytest.mark.parametrize("name", [n if n in SMALL else pytest.param(n, marks=pytest.mark.full) for n in ENCODERS])
def test_a_name_fixes_the_network_and_its_width(name):
    encoder = ENCODERS[name]
    side = encoder.preprocessing.crop
    bag = Bag(jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32), jax.ShapeDtypeStruct((1,), bool))
    found, variables = jax.eval_shape(lambda bag: encoder.module.init_with_output(jax.random.key(0), bag), bag)
    assert found.features.shape == (1, encoder.width)
    norms = ("mean", "variance")  # statistics that PyTorch does not count as parameters
    sizes = [
        math.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if path[-1].key not in norms
    ]
    assert sum(sizes) / 1e6 == pytest.approx(MILLIONS[name], rel=5e-3)
    mapped = {path for path, _ in encoder.module.state_dict_map(name).values()}
    assert len(mapped) == len(jax.tree.leaves(variables["params"]))


def test_tiles_of_another_size_are_warned_of_from_20_percent_on():
    uni = encoder_named("uni_v1")
    assert not size_warning(uni, 128.0)
    assert not size_warning(uni, 128.0 * 1.19)
    assert "64 um wide, but uni_v1 was trained on tiles of 128 um" in size_warning(uni, 64.0)
    assert "not known" in size_warning(uni, math.nan)
    assert not size_warning(encoder_named("resnet50_trunc"), 64.0)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'uni_v[12]'"):
        encoder_named("uni_v")


def test_an_architecture_reads_only_sizes_that_fit_it():
    with pytest.raises(ConfigError, match="multiples of 16"):
        bare_encoder("vit_small_patch16", Preprocessing(100), "class")
    with pytest.raises(ConfigError, match="choose mean"):
        bare_encoder("resnet18", Preprocessing(64), "class")


def bare(name: str = "vit_small_patch16", pool: str = "class"):
    return bare_encoder(name, Preprocessing(32, IMAGENET_MEAN, IMAGENET_STD), pool)


@pytest.mark.parametrize("in_front", [3, *(pytest.param(rows, marks=pytest.mark.full) for rows in (0, 1))])
def test_an_architecture_takes_registers_gates_and_positions_from_its_weights(in_front):
    module = ARCHITECTURES["vit_small_patch16"].clone(
        dim=8,
        depth=1,
        num_heads=2,
        table_side=4,
        num_registers=2,
        positions_in_front=in_front,
        gated=True,
        layer_scale=True,
        hidden_dim=12,
    )
    bag = Bag(jnp.zeros((1, 32, 32, 3)), jnp.ones(1, bool))
    arrays = export_state_dict(module, module.init(jax.random.key(0), bag)["params"], "")
    fitted = fitted_to(bare(), arrays).module
    names = ("table_side", "num_registers", "positions_in_front", "gated", "layer_scale", "hidden_dim")
    assert [getattr(fitted, name) for name in names] == [getattr(module, name) for name in names]


def test_weights_must_be_asked_for():
    with pytest.raises(ConfigError, match=r"--weights is missing.*MahmoodLab/UNI.*--weights=random"):
        load_weights(encoder_named("uni_v1"), "")


def test_weights_of_another_architecture_are_refused_in_one_sentence(tmp_path):
    resnet = bare("resnet18", "mean")
    _, params = load_weights(resnet, "random")
    np.savez(tmp_path / "resnet.npz", **export_state_dict(resnet.module, params, ""))
    with pytest.raises(DataError, match=r"holds the weights of another network than vit_small_patch16") as raised:
        load_weights(bare(), str(tmp_path / "resnet.npz"))
    assert len(str(raised.value)) < 1500
    assert "sha256" in identity(str(tmp_path / "resnet.npz"))


def test_random_weights_are_always_the_same_and_say_so():
    first, second = (load_weights(bare("resnet18", "mean"), "random")[1] for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert "random" in identity("random")
