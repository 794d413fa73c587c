"""Smooth max pooling: instance logits, pooled by a soft maximum.

z_i = W2 relu(W1 x_i + b1) + b2 [C],   logits = logsumexp_i(r z_i) / r: with large r the maximum, the evidence of the best instance.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

import mil_jax as mj
from mil_jax.layers import masked


class SmoothMax(mj.Aggregator):
    """hidden_dim: width of the hidden layer. sharpness: r of the module's formula."""

    hidden_dim: int = 64
    sharpness: float = 4.0

    @nn.compact
    def __call__(self, bag: mj.Bag, train: bool = False) -> mj.Prediction:
        x = masked.zero_padding(bag.features, bag.mask)  # [N, D], so that no NaN in the padding meets a gradient
        h = nn.relu(nn.Dense(self.hidden_dim, name="hidden")(x))  # [N, hidden_dim]
        z = nn.Dense(self.num_outputs, name="classifier")(h)  # [N, C]
        weights = jnp.where(bag.mask, 1.0, 0.0)[:, None]
        logits = jax.nn.logsumexp(self.sharpness * z, axis=0, b=weights) / self.sharpness  # [C]
        return mj.Prediction(logits=logits, instance_logits=jnp.where(bag.mask[:, None], z, 0.0))


AGGREGATORS = {"smooth_max": SmoothMax}  # by this line mil_jax finds it
