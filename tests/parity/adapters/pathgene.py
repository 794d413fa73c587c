"""Cases of PathGene that are no model: its optimiser."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mil_jax.training.optimizers import OptimizerSettings, make
from tests.parity.adapters.base import Answer
from tests.parity.case import Case


class LookaheadRAdam:
    """A trajectory with given gradients and learning rates."""

    def bag_sizes(self, case: Case) -> list[int]:
        return []

    def answer(self, case: Case, bucket: int | None) -> Answer:
        config = case.config
        settings = OptimizerSettings(
            "lookahead_radam",
            b1=config["betas"][0],
            b2=config["betas"][1],
            eps=config["eps"],
            lookahead_steps=config["k"],
            lookahead_alpha=config["alpha"],
        )
        optimizer = make(settings)
        weight_decay = config["weight_decay"]

        def step(carry, row):
            params, state = carry
            gradient, lr = row
            updates, state = optimizer.update(gradient, state, params, lr=lr, weight_decay=weight_decay)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        start = jnp.asarray(case.input("w0"))
        rows = (jnp.asarray(case.input("grads")), jnp.asarray(case.arrays["out/lrs"], jnp.float32))
        _, trajectory = jax.lax.scan(step, (start, optimizer.init(start)), rows)
        return Answer({"out/trajectory": trajectory}, {"out/lrs": "the learning rates are given, not computed"})


ADAPTERS = {("pathgene", "lookahead_radam"): LookaheadRAdam()}
