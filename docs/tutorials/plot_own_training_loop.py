"""
Your own training loop
======================

The aggregators are plain Flax modules: they train in any JAX program. This is the whole of it, without the engine.
"""

# %%
# Bags
# ----
# Bags have different sizes; padded to one length they can be stacked, so that one compiled step serves all. The mask keeps the padding
# out of every sum.

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.metrics import roc_auc_score

import mil_jax as mj
from mil_jax.data.datasets.digits import draw_bags

slides, table, _ = draw_bags(np.random.default_rng(0))
labels = jnp.asarray(table["label"] == "nine", jnp.int32)  # [M]
longest = max(len(slide.features) for slide in slides)
bags = [mj.Bag.from_array(np.asarray(slide.features, np.float32), pad_to=longest) for slide in slides]
bags = jax.tree.map(lambda *leaves: jnp.stack(leaves), *bags)  # one Bag whose leaves begin with the bags' axis
print(bags.features.shape, bags.mask.shape)

# Bags of one fold share no image with those of another: the first 480 train, the last 120 test.
train, test = np.arange(480), np.arange(480, 600)

# %%
# A step
# ------
# `vmap` makes a batch of the module that sees one bag.

module = mj.ABMIL(num_outputs=2, feature_dim=64, attention_dim=32)
optimizer = optax.adam(2e-3)


def bag_at(number):
    """The bag with this number."""
    return jax.tree.map(lambda leaf: leaf[number], bags)


def loss(params, batch, key):
    """The mean cross entropy of a batch of bag numbers [B]."""

    def logits(number, key):
        return module.apply({"params": params}, bag_at(number), train=True, rngs={"dropout": key}).logits

    each = jax.vmap(logits)(batch, jax.random.split(key, len(batch)))  # [B, C]
    return optax.softmax_cross_entropy_with_integer_labels(each, labels[batch]).mean()


@jax.jit
def epoch(params, state, key):
    """An epoch in batches of eight, in one call."""
    order, dropout = jax.random.split(key)
    batches = jax.random.permutation(order, train).reshape(-1, 8)

    def step(carry, batch_and_key):
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params, *batch_and_key)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(params, updates), state), value

    keys = jax.random.split(dropout, len(batches))
    (params, state), losses = jax.lax.scan(step, (params, state), (batches, keys))
    return params, state, losses.mean()


@jax.jit
def probabilities(params, numbers):
    """The probability of a nine [M] of bag numbers [M]."""
    predict = jax.vmap(lambda number: module.apply({"params": params}, bag_at(number)).logits)
    return jax.nn.softmax(predict(numbers))[:, 1]


# %%
# The loop
# --------

params = module.init(jax.random.key(0), bag_at(0))["params"]
state = optimizer.init(params)
history = []
for number in range(30):
    params, state, value = epoch(params, state, jax.random.fold_in(jax.random.key(1), number))
    history.append(float(value))
auc = roc_auc_score(labels[test], probabilities(params, test))
print(f"test AUC {auc:.3f}")
assert auc > 0.9

plt.plot(history)
plt.xlabel("epoch")
plt.ylabel("training loss")

# %%
# What the engine adds
# --------------------
# `mj.fit` does the same for all folds and seeds at once, with buckets instead of one length, validation that chooses the epoch,
# checkpoints, streaming of cohorts that do not fit into memory, several devices, and the reports.
