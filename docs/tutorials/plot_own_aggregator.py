"""
Your own aggregator
===================

An aggregator is a Flax module that turns one bag into one prediction. There is no batch axis and no padding to think of but the mask;
batches, folds, seeds and devices are the engine's business.
"""

# %%
# The module
# ----------
# Ours pools the logits of single instances by a soft maximum:
#
# .. literalinclude:: ../tutorials/own_aggregator/smooth_max.py

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import mil_jax as mj
from mil_jax import aggregators
from mil_jax.data.datasets.digits import draw_bags

# In a clone of mil_jax put the file into `mil_jax/aggregators/`. This line has the same effect from outside of it.
aggregators.__path__.append(str(Path("own_aggregator").absolute()))
module = aggregators.create("smooth_max", num_outputs=2)
print(module)

# %%
# The law of the mask
# -------------------
# Bags are padded to a few lengths, so whatever lies in the padding must change nothing: neither outputs nor gradients. The check takes
# three lines: the same bag bare, and padded with NaN.

x = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
bare = mj.Bag.from_array(x)
padded = mj.Bag.from_array(x, pad_to=32)
padded = padded.replace(features=jnp.where(padded.mask[:, None], padded.features, jnp.nan))
params = module.init(jax.random.key(0), bare)["params"]


def loss(params, bag):
    """The cross entropy of class 1."""
    return -jax.nn.log_softmax(module.apply({"params": params}, bag).logits)[1]


values = [jax.value_and_grad(loss)(params, bag) for bag in (bare, padded)]
largest = max(
    float(jnp.max(jnp.abs(one - other))) for one, other in zip(jax.tree.leaves(values[0]), jax.tree.leaves(values[1]))
)
print(f"largest difference of loss and gradients: {largest:.1e}")
assert largest < 1e-5

# %%
# Our module keeps the law because it replaces padded features by zero before anything else, and gives padded instances the weight 0 in the
# sum. `tests/laws/law.py` of mil_jax checks it thoroughly, with dropout, permutations and several runs side by side.
#
# Train it
# --------
# The fields of the module are its settings, `aggregator.hidden_dim` and `aggregator.sharpness`. The config names it:
#
# .. literalinclude:: ../tutorials/smooth_max_config.py

folder = Path(tempfile.mkdtemp())
(folder / "features").mkdir()
slides, table, _ = draw_bags(np.random.default_rng(0))
for slide in slides:
    np.save(folder / "features" / f"{slide.slide_id}.npy", slide.features)
table[["slide_id", "patient_id", "label"]].to_csv(folder / "labels.csv", index=False)

run = mj.fit(
    features=folder / "features",
    labels=folder / "labels.csv",
    target="label",
    config="smooth_max_config.py",
    folds=3,
    seeds=1,
    out=folder / "run",
)
run.metrics

# %%
# All the rest works with it, too: other tasks (`--config.task.name=survival`), sweeps over its settings, external cohorts. What more an
# aggregator may have (numeric settings that runs differ in, losses of its own, published weights) is in
# :doc:`contributing </contributing>`.
