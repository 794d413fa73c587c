"""The law finds the mistakes it is there for: each module here makes one."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from mil_jax.bags import Bag, Prediction
from mil_jax.layers import masked
from tests.laws import law


class Mean(nn.Module):
    """Masked mean of a linear layer; `mistake` names what it does wrong."""

    mistake: str = ""

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        x = bag.features if self.mistake == "padding not zeroed" else masked.zero_padding(bag.features, bag.mask)
        h = jnp.tanh(nn.Dense(4, bias_init=nn.initializers.ones)(x))
        if train:
            shape = h.shape[::-1] if self.mistake == "instance axis trails in a draw" else h.shape
            draw = jax.random.uniform(self.make_rng("dropout"), shape)
            h = h * (draw.reshape(shape).T if shape != h.shape else draw)
        everything = jnp.ones_like(bag.mask)
        embedding = masked.mean(h, everything if self.mistake == "mean over padding" else bag.mask)
        if self.mistake == "order of instances matters":
            embedding = embedding + h[0]
        return Prediction(nn.Dense(2)(embedding), embedding=embedding)


def test_a_faultless_module_passes():
    law.check_aggregator(Mean(), (3,), bare_sizes=(1,))


@pytest.mark.parametrize(
    ("mistake", "promise", "complaint"),
    [
        ("mean over padding", "padding", "instances"),
        ("padding not zeroed", "padding", "NaN"),
        ("instance axis trails in a draw", "padding_train", "instances"),
        ("order of instances matters", "permutation", "permuted"),
    ],
)
def test_a_mistake_is_found(mistake, promise, complaint):
    with pytest.raises(AssertionError, match=complaint):
        law.check_aggregator(Mean(mistake), (3,), promises=[promise], bare_sizes=())
