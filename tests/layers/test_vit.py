"""Vision transformers beyond what the parity cases say: stochastic depth, patches, and the position table."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.layers.vit import ViTParameters, embed, encode, interpolated_positions, patches


@pytest.fixture(scope="module")
def vit():
    module = ViTParameters(8, 3, 2, "normal_0.02")
    shapes = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), 5)[1])
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=x.shape) * 0.3, jnp.float32) for x in leaves])
    return module.apply(params, 5)


@pytest.fixture(scope="module")
def tokens(vit):
    return embed(vit, jnp.asarray(np.random.default_rng(1).normal(size=(6, 8)), jnp.float32), (2, 3))


def test_the_class_token_alone_is_that_of_all_tokens(vit, tokens):
    every, attention = encode(vit, tokens, num_heads=2)
    alone, row = encode(vit, tokens, num_heads=2, class_only=True)
    np.testing.assert_allclose(alone, every[:1], atol=1e-5)
    np.testing.assert_allclose(row, attention[:, :1], atol=1e-6)


def test_tokens_that_are_masked_are_read_by_none(vit, tokens):
    mask = jnp.arange(7) != 4
    one, _ = encode(vit, tokens, num_heads=2, key_mask=mask)
    other, _ = encode(vit, tokens.at[4].set(3.0), num_heads=2, key_mask=mask)
    np.testing.assert_allclose(np.delete(other, 4, axis=0), np.delete(one, 4, axis=0), atol=1e-6)


def test_stochastic_depth_leaves_out_whole_branches_and_keeps_the_mean(vit, tokens):
    def drop(key: jax.Array, rate: float) -> jax.Array:
        return encode(vit, tokens, num_heads=2, drop_path_rate=rate, drop_path_key=key)[0]

    keys = jax.random.split(jax.random.key(0), 32)
    seen = np.asarray(jax.vmap(drop, in_axes=(0, None))(keys, 0.5)).reshape(32, -1)
    assert len(np.unique(seen.round(5), axis=0)) == 4  # the first block always stays, the two behind it may go
    np.testing.assert_allclose(drop(keys[0], 0.0), encode(vit, tokens, num_heads=2)[0], atol=1e-6)


def test_patches_go_row_by_row():
    image = jnp.arange(4 * 6 * 2).reshape(4, 6, 2)
    cut = patches(image, 2)
    assert cut.shape == (6, 8)
    np.testing.assert_array_equal(cut[1], image[:2, 2:4].ravel())
    np.testing.assert_array_equal(cut[3], image[2:, :2].ravel())


def test_the_table_of_its_own_grid_is_used_as_it_is(vit):
    assert interpolated_positions(vit.positions, (2, 2)) is vit.positions
