"""The read-out of IBMIL from its dictionary, against the formulas, in every shape that embeddings and dictionaries have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.layers.deconfounding import Deconfounding

WIDTH, ENTRIES, CLASSES = 6, 4, 3
DRAWN = np.random.default_rng(0)
EMBEDDING = jnp.asarray(DRAWN.standard_normal((CLASSES, WIDTH)), jnp.float32)
DICTIONARY = jnp.asarray(DRAWN.standard_normal((ENTRIES, CLASSES, WIDTH)), jnp.float32)


def said(branch: Deconfounding, embedding: jax.Array, dictionary: jax.Array, **settings):
    params = branch.init(jax.random.key(0), embedding, dictionary)["params"]
    return params, branch.apply({"params": params}, embedding, dictionary, **settings)


@pytest.mark.parametrize("own", [False, True], ids=["one dictionary", "one for each class"])
def test_every_class_reads_for_itself(own):
    dictionary = DICTIONARY if own else DICTIONARY[:, 0]
    params, (_, merged, attention) = said(Deconfounding(2, query_dim=5), EMBEDDING, dictionary)
    for c in range(CLASSES):
        entries = DICTIONARY[:, c] if own else dictionary
        query = EMBEDDING[c] @ params["query"]["kernel"] + params["query"]["bias"]
        keys = entries @ params["key"]["kernel"] + params["key"]["bias"]
        expected = jax.nn.softmax(keys @ query / np.sqrt(5.0))
        np.testing.assert_allclose(attention[:, c], expected, atol=1e-5)
        np.testing.assert_allclose(merged[c, WIDTH:], expected @ entries, atol=1e-5)
        alone = {"params": {**params, "classifier": {"kernel": jnp.zeros((2 * WIDTH, 2)), "bias": jnp.zeros(2)}}}
        _, one, _ = Deconfounding(2, query_dim=5).apply(alone, EMBEDDING[c], entries)
        np.testing.assert_allclose(merged[c], one, atol=1e-5)


@pytest.mark.parametrize("merge", ["cat", "add", "sub"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_classifier_reads_the_merged_embedding(merge, norm):
    branch = Deconfounding(2, merge=merge, merged_norm=norm)
    params, (logits, merged, attention) = said(branch, EMBEDDING[0], DICTIONARY[:, 0])
    read = attention @ DICTIONARY[:, 0]
    parts = {"cat": [EMBEDDING[0], read], "add": [EMBEDDING[0] + read], "sub": [EMBEDDING[0] - read]}
    expected = jnp.concatenate(parts[merge])
    if norm:
        expected = (expected - expected.mean()) / jnp.sqrt(expected.var() + 1e-5)
    np.testing.assert_allclose(merged, expected, atol=1e-5)
    np.testing.assert_allclose(
        logits, merged @ params["classifier"]["kernel"] + params["classifier"]["bias"], atol=1e-5
    )


def test_dropout_is_of_the_keys_alone_and_of_training():
    branch = Deconfounding(2, dictionary_dropout=0.5)
    rngs = {"dropout": jax.random.key(3)}
    _, plain = said(branch, EMBEDDING[0], DICTIONARY[:, 0])
    _, (_, merged, attention) = said(branch, EMBEDDING[0], DICTIONARY[:, 0], train=True, rngs=rngs)
    assert not np.allclose(attention, plain[2])
    np.testing.assert_allclose(merged[WIDTH:], attention @ DICTIONARY[:, 0], atol=1e-6)
    np.testing.assert_array_equal(said(branch, EMBEDDING[0], DICTIONARY[:, 0], rngs=rngs)[1][2], plain[2])
