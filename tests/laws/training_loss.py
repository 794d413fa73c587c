"""The law of the mask for an aggregator that has a training loss of its own: loss and gradient, padded and bare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.bags import Bag
from mil_jax.tasks.classification import Classification
from tests.laws import law


def run(module: nn.Module, task: Classification, target: Any, feature_shape: tuple[int, ...], train: bool) -> law.Run:
    """A compiled function of (bag, key) for `law.check_padding`: the loss of one bag, and its gradient."""
    params = jax.jit(module.init)(jax.random.key(0), law.make_bag(0, 4, law.SMALL_BUCKET, feature_shape, 0.0))["params"]
    value_and_grad = jax.jit(jax.value_and_grad(_loss_of(module, task, target, train)))
    return lambda bag, key: law.Seen(dict(zip(("loss", "gradients"), value_and_grad(params, bag, key))), {})


def _loss_of(module: nn.Module, task: Classification, target: Any, train: bool) -> Callable[..., jax.Array]:
    def loss(params: Any, bag: Bag, key: jax.Array) -> jax.Array:
        prediction = module.apply({"params": params}, bag, train=train, rngs={"dropout": key})
        batch = jax.tree.map(lambda x: x[None], prediction)
        return module.training_loss(task, batch, jnp.asarray(target)[None], jnp.ones(1))

    return loss
